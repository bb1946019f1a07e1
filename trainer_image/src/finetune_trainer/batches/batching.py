"""Which rows make up a step, and how they are cut into forward passes.

A step is always `batchSize` rows (fewer only at the end of an epoch). Rows of one step are sorted by rank and cut into
micro-batches, so that rows that gain from each other's company are together, and a step has the very same rows as without.
"""

import inspect
import random
from collections.abc import Iterator, Sequence
from typing import Any, Final

from finetune_trainer.data import IGNORED, TokenRow

CPU_TOKENS_PER_PASS: Final = 1024
"""Tokens from which a CPU's matrix products no longer gain from more rows, while memory still grows."""
GPU_TOKENS_PER_PASS: Final = 8192
"""Tokens that keep an accelerator busy; logits of a 128k vocabulary then take 4 GiB in float32."""


def choose_micro_batch_size(row_tokens: float, batch_size: int, wanted: int | None, *, on_gpu: bool) -> int:
    """Rows per forward pass: a divisor of `batch_size`, at most `wanted`, or as many as fill a pass with tokens.

    `row_tokens` is what a row costs in a pass, see `BatchLayout.row_tokens`.
    """
    if wanted is None:
        budget = GPU_TOKENS_PER_PASS if on_gpu else CPU_TOKENS_PER_PASS
        wanted = max(1, int(budget / row_tokens))
    return max(d for d in range(1, batch_size + 1) if batch_size % d == 0 and d <= max(1, wanted))


class StepSampler:
    """Order of rows: a permutation per epoch that depends on seed and epoch only, sorted by rank within each step."""

    def __init__(self, ranks: Sequence[int], batch_size: int, seed: int) -> None:
        self._ranks = ranks
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation; accelerate's data loader calls this before each epoch, and on resumption."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._ranks)

    def __iter__(self) -> Iterator[int]:
        order = list(range(len(self._ranks)))
        random.Random(f"order-{self._seed}-{self._epoch}").shuffle(order)  # noqa: S311
        for start in range(0, len(order), self._batch_size):
            yield from sorted(order[start : start + self._batch_size], key=lambda i: (self._ranks[i], i))


class Collator:
    """Rows of a micro-batch as tensors, padded on the right to the longest of them.

    With `only_loss_logits` the model computes logits only at positions that predict a token with loss in some row. The loss
    is the same; the largest tensor of training shrinks to the share of positions that carry loss, and with it the work of
    the output layer (a fifth of all work for SmolLM2-135M on short rows).
    """

    def __init__(self, pad_token_id: int, *, only_loss_logits: bool = False) -> None:
        self._pad = pad_token_id
        self._only_loss_logits = only_loss_logits

    def __call__(self, rows: Sequence[TokenRow]) -> dict[str, Any]:
        """The keyword arguments of the model's forward."""
        import torch

        width = max(len(row.input_ids) for row in rows)
        ids = torch.full((len(rows), width), self._pad, dtype=torch.long)
        labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            size = len(row.input_ids)
            ids[i, :size] = torch.tensor(row.input_ids)
            labels[i, :size] = torch.tensor(row.labels)
            mask[i, :size] = 1
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {**batch, **_loss_positions(labels)} if self._only_loss_logits else batch


def supports_loss_logits(model: Any) -> bool:
    """Whether the model can be told at which positions logits are wanted, and computes its loss as others do."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    takes_positions = "logits_to_keep" in inspect.signature(model.forward).parameters
    return takes_positions and getattr(model, "loss_function", None) is ForCausalLMLoss


def _loss_positions(labels: Any) -> dict[str, Any]:
    """The positions at which logits are needed, and the tokens to be predicted there (transformers' own argument names)."""
    predicted = labels[:, 1:]
    positions = (predicted != IGNORED).any(dim=0).nonzero().squeeze(1)
    return {"logits_to_keep": positions, "shift_labels": predicted[:, positions].contiguous()}
