"""Merging an adapter into the base model's weights, for a server of this one adapter (mergeAdapter).

The weights are computed in float32 and rounded once, to the model's dtype. In float32 the answers are those of the unmerged
adapter; in bfloat16 they differ by the rounding of the weights, which an unmerged adapter does not have.
"""

from typing import Any

import torch
from torch import nn

from finetune_inference.adapters.verification import AdapterRefusedError
from finetune_inference.backends.common.lora_weights import LoadedLora, LoraDelta
from finetune_model.model_files import quantization_of


@torch.no_grad()
def merge(model: Any, lora: LoadedLora) -> None:
    """Merge an adapter into the modules of `model`.

    Raises AdapterRefusedError if the weights are quantized, because rounding the sum to four bits would lose most of the adapter.
    """
    if method := quantization_of(model.config):
        raise AdapterRefusedError(
            f"the base model's weights are quantized ({method}), so an adapter cannot be merged into them; set mergeAdapter to false "
            "to serve the adapter unmerged"
        )
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for path, replacement in lora.replacements.items():
        _set(modules[path], "weight", replacement.weight)
        if replacement.bias is not None:
            _set(modules[path], "bias", replacement.bias)
    for path, delta in lora.deltas.items():
        _merge_delta(modules[path], delta)


def _merge_delta(module: nn.Module, delta: LoraDelta) -> None:
    weight: Any = module.weight
    # Linear weights are [out, in]; embeddings and transformers' Conv1D store the transpose.
    is_linear = isinstance(module, nn.Linear)
    change = delta.scaling * (delta.b.float() @ delta.a.float())
    tuned = weight.float() + (change if is_linear else change.t())
    factor = None if delta.magnitude is None else delta.magnitude.float()
    if factor is not None:
        tuned = tuned * (factor[:, None] if is_linear else factor)
    _set(module, "weight", tuned.to(weight.dtype))
    if delta.bias is not None:
        added = delta.scaling * delta.bias.float() * (1.0 if factor is None else factor)
        own: Any = getattr(module, "bias", None)
        _set(module, "bias", (added if own is None else own.float() + added).to(weight.dtype))


def _set(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Set a new parameter. The old one may be shared (tied) with a module that the adapter does not change."""
    setattr(module, name, nn.Parameter(value.contiguous(), requires_grad=False))
