"""transformers' loss of a causal language model, some rows of logits at a time.

Stock makes three tensors of the size of the logits in float32 on the way to one number and its gradient; with a large
vocabulary they are the peak of a step. Here there are the logits and their gradient, each in its own dtype.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch.nn.functional import cross_entropy
from transformers.loss.loss_utils import ForCausalLMLoss

from finetune_trainer.data import IGNORED

CHUNK: Final = 1 << 18
"""Logits that are in float32 at a time: 1 MiB, which fits into a core's cache."""
GPU_CHUNK: Final = 1 << 26
"""The same on an accelerator, for which each call counts: 256 MiB."""


class SummedCrossEntropy(torch.autograd.Function):
    """logits [N, V], targets [N]: the sum of all -log p(target) in float32, those left out that are `IGNORED`."""

    @staticmethod
    def forward(ctx: Any, logits: Any, targets: Any) -> Any:
        """Nothing is kept but what came in."""
        ctx.save_for_backward(logits, targets)
        losses = [
            cross_entropy(part.float(), target, ignore_index=IGNORED, reduction="none")
            for part, target in _chunks(logits, targets)
        ]
        return torch.cat(losses).sum()

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        """Probabilities, less one where the target is."""
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
    """Within this context a model with the usual loss computes it by `SummedCrossEntropy`."""
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
    """What `ForCausalLMLoss` computes from the same arguments."""
    if shift_labels is None:
        shift_labels = torch.nn.functional.pad(labels, (0, 1), value=IGNORED)[..., 1:]
    targets = shift_labels.flatten().to(logits.device)
    if num_items_in_batch is None:
        num_items_in_batch = (targets != IGNORED).sum()
    return SummedCrossEntropy.apply(logits.view(-1, vocab_size), targets) / num_items_in_batch


def _chunks(logits: Any, *others: Any) -> Iterator[tuple[Any, ...]]:
    rows = max(1, (CHUNK if logits.device.type == "cpu" else GPU_CHUNK) // logits.shape[1])
    yield from zip(*(tensor.split(rows) for tensor in (logits, *others)), strict=True)
