"""Sampling rules that both engines apply to logits."""

import torch
from torch import nn

from finetune_inference.engine.interface import Sampling

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy, because a division by them would overflow."""


def keep_candidates(probabilities: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Zero the tokens that top_k, top_p and min_p exclude, in transformers' order. probabilities: [vocabulary]; not renormalized."""
    if 0 < sampling.top_k < probabilities.shape[0]:
        least = probabilities.topk(sampling.top_k).values[-1]
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
        probabilities = probabilities / probabilities.sum()
    if sampling.top_p < 1.0:
        probabilities = keep_top_p(probabilities, sampling.top_p)
    if sampling.min_p > 0.0:
        probabilities = probabilities.masked_fill(probabilities < sampling.min_p * probabilities.max(), 0.0)
    return probabilities


def keep_top_p(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zero all but the smallest set of likeliest tokens that holds `top_p`. probabilities: [vocabulary]; not renormalized."""
    ordered, indices = probabilities.sort(descending=True)
    # A token stays if the tokens before it hold less than top_p; so the first token always stays.
    outside = ordered.cumsum(-1) - ordered >= top_p
    outside[0] = False
    return probabilities.index_fill(0, indices[outside], 0.0)


def forbid_end_tokens(logits: torch.Tensor, end_tokens: torch.Tensor) -> torch.Tensor:
    """Return [vocabulary] logits with -inf for `end_tokens`, unless a constraint allows nothing else."""
    rest = logits.index_fill(-1, end_tokens, -torch.inf)
    return logits if rest.max() == -torch.inf else rest


def forbidden_tokens(allowed: bytes, logits: torch.Tensor) -> torch.Tensor:
    """Return [vocabulary] True where `allowed` (see `engine.Constraint`) has no bit, or a bit that is not set."""
    packed = torch.frombuffer(bytearray(allowed), dtype=torch.uint8).to(logits.device)
    bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=logits.device)) & 1
    known = bits.flatten()[: logits.shape[0]] == 0
    return nn.functional.pad(known, (0, logits.shape[0] - known.shape[0]), value=True)
