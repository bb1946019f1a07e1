"""transformers' causal language model loss, computed over chunks of logit rows.

The stock loss materializes three float32 tensors of the logits' size; with a large vocabulary they are the memory peak of a
step. This loss keeps only the logits and their gradient, each in its own dtype.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch.nn.functional import cross_entropy
from transformers.loss.loss_utils import ForCausalLMLoss

from finetune_trainer.data import IGNORED

CHUNK: Final = 1 << 18
"""Logits converted to float32 at a time: 1 MiB, which fits into a core's cache."""
GPU_CHUNK: Final = 1 << 26
"""The same on an accelerator, where each kernel launch counts: 256 MiB."""


class SummedCrossEntropy(torch.autograd.Function):
    """Sum of -log p(target) in float32 over logits [N, V] and targets [N], without targets that are `IGNORED`."""

    @staticmethod
    def forward(ctx: Any, logits: Any, targets: Any) -> Any:
        """Keep only the inputs for the backward pass."""
        ctx.save_for_backward(logits, targets)
        losses = [
            cross_entropy(part.float(), target, ignore_index=IGNORED, reduction="none")
            for part, target in _chunks(logits, targets)
        ]
        return torch.cat(losses).sum()

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        """Return the softmax minus one at the target."""
        logits, targets = ctx.saved_tensors
        result = torch.empty_like(logits)
        scales = torch.where(targets == IGNORED, 0, grad)[:, None]
        wanted = targets.clamp(min=0)[:, None]
        for part, into, scale, target in _chunks(logits, result, scales, wanted):
            probabilities = part.float().softmax(-1).mul_(scale)
            into.copy_(probabilities.scatter_add_(1, target, -scale))
        return result, None


@contextlib.contextmanager
def chunked_loss(model: Any) -> Iterator[None]:
    """Replace the standard loss of a model by `SummedCrossEntropy` within this context."""
    before = getattr(model, "loss_function", None)
    if before is not ForCausalLMLoss:
        yield
        return
    model.loss_function = _loss
    try:
        yield
    finally:
        model.loss_function = before


def _loss(
    logits: Any,
    labels: Any,
    vocab_size: int,
    num_items_in_batch: Any = None,
    shift_labels: Any = None,
    **_: Any,
) -> Any:
    """Compute the same value as `ForCausalLMLoss`."""
    if shift_labels is None:
        shift_labels = torch.nn.functional.pad(labels, (0, 1), value=IGNORED)[..., 1:]
    targets = shift_labels.flatten().to(logits.device)
    if num_items_in_batch is None:
        num_items_in_batch = (targets != IGNORED).sum()
    return SummedCrossEntropy.apply(logits.view(-1, vocab_size), targets) / num_items_in_batch


def _chunks(logits: Any, *others: Any) -> Iterator[tuple[Any, ...]]:
    rows = max(1, (CHUNK if logits.device.type == "cpu" else GPU_CHUNK) // logits.shape[1])
    yield from zip(*(tensor.split(rows) for tensor in (logits, *others)), strict=True)
