"""Merging an adapter into the base model's weights, for a server of this one adapter (mergeAdapter).

The weights are computed in float32 and rounded once, to the model's dtype. In float32 the answers are those of the unmerged
adapter; in bfloat16 they differ by the rounding of the weights, which an unmerged adapter does not have. A small change can be
rounded away, so both are compared on the adapter's fingerprint before anything is served.
"""

import logging
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from finetune_api.artifacts import FINGERPRINT_FILE
from finetune_api.fingerprint import Fingerprint, mean_distance
from finetune_inference.adapters.verification import AdapterRefusedError
from finetune_inference.backends.common.lora_batch import LoraBatch
from finetune_inference.backends.common.lora_weights import LoadedLora, LoraDelta
from finetune_inference.engine.interface import VerifiedAdapter
from finetune_model.model_files import quantization_of

log = logging.getLogger(__name__)


def merge_compared(model: Any, lora: LoadedLora, adapter: VerifiedAdapter) -> None:
    """Merge an adapter, and compare the answers with those of the unmerged adapter.

    Raises AdapterRefusedError as `merge` does, and if the answers differ by more than an endpoint may differ from its fingerprint.
    """
    fingerprint = _fingerprint_of(adapter, model)
    if fingerprint is None:
        log.warning("%s has no usable fingerprint, so the merged weights were not compared", adapter.directory)
        merge(model, lora)
        return
    batch = LoraBatch(model)
    with batch.applied([lora]):
        unmerged = _scores(model, fingerprint)
    batch.remove_hooks()
    merge(model, lora)
    distance = mean_distance(list(zip(unmerged, _scores(model, fingerprint), strict=True)))
    tolerance = fingerprint.tolerance
    dtype = str(model.dtype).removeprefix("torch.")
    log.info("Merged as %s, answers differ by %.4f nats per token, %.4f allowed", dtype, distance, tolerance)
    if not distance <= tolerance:
        raise AdapterRefusedError(
            f"merged into weights of {dtype}, the answers of {adapter.directory} differ by {distance:.3f} nats per token from those of "
            f"the unmerged adapter, at most {tolerance:.3f} is allowed: rounding to {dtype} removes a part of its change. Set "
            "mergeAdapter to false, or precision to float32"
        )


def _fingerprint_of(adapter: VerifiedAdapter, model: Any) -> Fingerprint | None:
    """Return the adapter's fingerprint; None if it has none, or one that cannot be of this model."""
    try:
        fingerprint = Fingerprint.model_validate_json((adapter.directory / FINGERPRINT_FILE).read_bytes())
    except (OSError, ValidationError):
        return None
    rows = model.get_input_embeddings().weight.shape[0]
    fits = all(
        min(p.token_ids) >= 0 and max(p.token_ids) < rows and p.prompt_tokens < len(p.token_ids)
        for p in fingerprint.probes
    )
    return fingerprint if fits else None


@torch.inference_mode()
def _scores(model: Any, fingerprint: Fingerprint) -> list[list[float]]:
    """Return the log-probability in nats of each continuation token, for each probe."""
    scores = []
    for probe in fingerprint.probes:
        ids = torch.tensor([probe.token_ids], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, probe.prompt_tokens - 1 : -1]
        chosen = logits.float().log_softmax(dim=-1).gather(1, ids[0, probe.prompt_tokens :, None])
        scores.append([float(value) for value in chosen[:, 0]])
    return scores


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
