"""Can this model compute many sequences in one pass? Tried on a few tokens rather than guessed from its architecture."""

import logging
from typing import Any

import torch

from finetune_inference.backends.transformers.kv_cache import SMALLEST_CAPACITY
from finetune_inference.backends.transformers.model_runner import Chunk, ModelRunner

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 3e-2}
"""Largest difference of two logits over the largest logit; a mistake in attention is of the order of one."""
CACHED_TOKENS = 4 * SMALLEST_CAPACITY
"""Room for both in the cache, also where one sequence may not be that long."""
LENGTHS = (7, 4)
"""Tokens of the two sequences; read in slices, side by side."""


def moving_positions(config: Any) -> str | None:
    """Why what the model makes of positions depends on the longest of a pass; None if it does not.

    Such models look right in a short trial: they change their frequencies beyond some length, for all who share the pass.
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
    """Logits [tokens of both sequences, vocabulary] as the model computes them on its own."""
    rows = [
        model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
        for ids in _sequences(vocabulary_size)
    ]
    return torch.cat(rows)


@torch.inference_mode()
def disagreement(batched: ModelRunner, reference: torch.Tensor, computed_in: torch.dtype) -> str | None:
    """Why `batched` is no replacement for the model that gave the reference; None if it is one.

    `computed_in`: the coarsest type on the way, whose rounding is no disagreement.
    """
    try:
        found = _batched_logits(batched, reference.shape[-1])
    except Exception as error:
        # Models fail in ways of their own when they do not find the cache or the attention they expect.
        log.debug("the batched pass failed", exc_info=True)
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
    """The same logits from slices: first two tokens, then all but the last, then one, side by side."""
    sequences = _sequences(vocabulary_size)
    rows: list[list[torch.Tensor]] = [[] for _ in sequences]
    for begin, end in ((0, 2), (2, -1), (-1, None)):
        pieces = []
        for key, ids in enumerate(sequences):
            part = ids[begin:end]
            batched.reserve(key, len(ids))
            pieces.append(Chunk(key, part, len(ids) + begin if begin < 0 else begin, None, len(part)))
        logits = batched.forward(pieces)
        for key, piece in enumerate(pieces):
            rows[key].append(logits[: piece.wanted])
            logits = logits[piece.wanted :]
    return torch.cat([row for parts in rows for row in parts])
