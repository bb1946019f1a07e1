"""An adapter as a part of the base model's weights, for a server that serves nothing else.

The weights are computed as 32-bit floats and rounded once, to the type that they are kept in. In float32 the answers are those
of the unmerged adapter; in bfloat16 they differ by the rounding of the weights, which an unmerged adapter does not have.
"""

from typing import Any

import torch
from torch import nn

from finetune_inference.adapters.verification import AdapterRefusedError
from finetune_inference.backends.transformers.lora_batch import LoadedLora, LoraDelta
from finetune_model.model_files import quantization_of


@torch.no_grad()
def merge(model: Any, lora: LoadedLora) -> None:
    """Change the modules of `model` to what they compute with the adapter.

    Raises AdapterRefusedError if the weights are quantized: rounding the sum to four bits again would lose most of the adapter.
    """
    if method := quantization_of(model.config):
        raise AdapterRefusedError(
            f"the base model's weights are quantized ({method}) and cannot take it in; set mergeAdapter to false, and it is served "
            "beside them"
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
    # Only linear layers have [out, in]; embeddings and transformers' Conv1D keep the transpose.
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
    """A parameter of the module's own: its old one may be shared with another module, which the adapter leaves alone."""
    setattr(module, name, nn.Parameter(value.contiguous(), requires_grad=False))
