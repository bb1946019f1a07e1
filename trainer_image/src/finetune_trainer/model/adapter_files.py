"""Names and tensors of the adapter in memory and on the volume."""

from typing import Any, Final

import torch
from peft import get_peft_model_state_dict

ADAPTER: Final = "default"
"""Name that peft gives to the only adapter of a model."""
BEST_ADAPTER_FILE: Final = "best_adapter_model.safetensors"
"""The adapter of the best evaluation so far; the Trainer does not know this file, `evaluation` reads it."""


def adapter_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Copy the adapter's tensors to main memory, under the names that peft saves them by."""
    tensors: dict[str, torch.Tensor] = _copied(
        get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    )
    return tensors


def _copied(value: Any) -> Any:
    """Copy a nested value with its tensors in main memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value
