"""Sampling rules that both engines apply to logits."""

import torch
from torch import nn

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy, because a division by them would overflow."""


def keep_top_p(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zero all but the smallest set of likeliest tokens that holds `top_p`. probabilities: [vocabulary]; not renormalized."""
    ordered, indices = probabilities.sort(descending=True)
    # A token stays if the tokens before it hold less than top_p; so the first token always stays.
    outside = ordered.cumsum(-1) - ordered >= top_p
    outside[0] = False
    return probabilities.index_fill(0, indices[outside], 0.0)


def forbidden_tokens(allowed: bytes, logits: torch.Tensor) -> torch.Tensor:
    """Return [vocabulary] True where `allowed` (see `engine.Constraint`) has no bit, or a bit that is not set."""
    packed = torch.frombuffer(bytearray(allowed), dtype=torch.uint8).to(logits.device)
    bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=logits.device)) & 1
    known = bits.flatten()[: logits.shape[0]] == 0
    return nn.functional.pad(known, (0, logits.shape[0] - known.shape[0]), value=True)
