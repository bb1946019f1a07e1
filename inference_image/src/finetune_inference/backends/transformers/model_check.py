"""Trial of a model with many sequences in one pass, on a few tokens, so that no list of architectures is needed."""

import logging
from typing import Any

import torch

from finetune_inference.backends.transformers.kv_cache import SMALLEST_CAPACITY
from finetune_inference.backends.transformers.model_runner import Chunk, ModelRunner

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 3e-2}
"""Largest difference of two logits, relative to the largest logit. Wrong attention differs by about 1."""
CACHED_TOKENS = 4 * SMALLEST_CAPACITY
"""Cache budget for both sequences, even if the context length is shorter than one row."""
LENGTHS = (7, 4)
"""Tokens of the two sequences, which are computed in chunks, side by side."""


def length_dependent_positions(config: Any) -> str | None:
    """Return why the position embedding depends on the longest sequence of a pass; None if it does not.

    A short trial does not reveal such models: beyond some length they change their frequencies for all sequences of the pass.
    """
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    # Some models have one set of parameters, others one for each type of layer.
    for each in (parameters, *(value for value in parameters.values() if isinstance(value, dict))):
        kind = each.get("rope_type") or ""
        if kind == "longrope" or "dynamic" in kind:
            return f"its rotary embedding is of type {kind}, which depends on the longest sequence"
    return None


@torch.inference_mode()
def reference_logits(model: Any, vocabulary_size: int) -> torch.Tensor:
    """Compute logits [tokens of both sequences, vocabulary] with the unchanged model."""
    rows = [
        model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
        for ids in _sequences(vocabulary_size)
    ]
    return torch.cat(rows)


@torch.inference_mode()
def disagreement(batched: ModelRunner, reference: torch.Tensor, computed_in: torch.dtype) -> str | None:
    """Return how the logits of `batched` differ from the reference; None if they agree.

    `computed_in`: the coarsest type of the computation, whose rounding error is tolerated.
    """
    try:
        found = _batched_logits(batched, reference.shape[-1])
    except Exception as error:
        # Models raise various exceptions when they miss the cache or the attention that they expect.
        log.debug("The trial of the batched pass failed", exc_info=True)
        return f"{type(error).__name__}: {error}"
    finally:
        batched.clear()
    scale = float(reference.float().abs().max()) or 1.0
    difference = float((found.float() - reference.float()).abs().max()) / scale
    if not difference <= TOLERANCE.get(computed_in, TOLERANCE[torch.bfloat16]):
        return f"its logits differ by {difference:.2g} of the largest one"
    return None


def _sequences(vocabulary_size: int) -> list[list[int]]:
    return [[(7 * i + 11 * n + 3) % vocabulary_size for i in range(length)] for n, length in enumerate(LENGTHS)]


def _batched_logits(batched: ModelRunner, vocabulary_size: int) -> torch.Tensor:
    """Compute the same logits in chunks, side by side: the first two tokens, then all but the last, then the last."""
    sequences = _sequences(vocabulary_size)
    rows: list[list[torch.Tensor]] = [[] for _ in sequences]
    for begin, end in ((0, 2), (2, -1), (-1, None)):
        chunks = []
        for key, ids in enumerate(sequences):
            part = ids[begin:end]
            batched.reserve(key, len(ids))
            chunks.append(Chunk(key, part, len(ids) + begin if begin < 0 else begin, None, len(part)))
        logits = batched.forward(chunks)
        for key, chunk in enumerate(chunks):
            rows[key].append(logits[: chunk.wanted])
            logits = logits[chunk.wanted :]
    return torch.cat([row for parts in rows for row in parts])
