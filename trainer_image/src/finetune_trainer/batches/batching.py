"""Sampling of the rows of a step, and their padded micro-batches.

A step is always `batchSize` rows (fewer only at the end of an epoch). The rows of a step are sorted by a key and cut into
micro-batches, so that similar rows share a micro-batch; the set of rows in a step does not depend on the sorting.
"""

import inspect
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from finetune_trainer.data import IGNORED, TokenRow

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CPU_TOKENS_PER_PASS: Final = 1024
"""Tokens per forward pass beyond which a CPU's matrix products no longer get more efficient, while memory still grows."""
GPU_TOKENS_PER_PASS: Final = 8192
"""Tokens per forward pass that keep an accelerator busy; logits of a 128k vocabulary then take 4 GiB in float32."""


def choose_micro_batch_size(row_tokens: float, batch_size: int, maximum: int | None, *, on_gpu: bool) -> int:
    """Return the rows per forward pass: a divisor of `batch_size`, at most `maximum` or else the token budget's rows.

    `row_tokens` is the cost of a row in tokens, see `BatchLayout.row_tokens`.
    """
    if maximum is None:
        budget = GPU_TOKENS_PER_PASS if on_gpu else CPU_TOKENS_PER_PASS
        maximum = max(1, int(budget / row_tokens))
    return max(d for d in range(1, batch_size + 1) if batch_size % d == 0 and d <= max(1, maximum))


class StepSampler:
    """Order of rows: a permutation per epoch that depends on seed and epoch only, sorted by key within each step."""

    def __init__(self, keys: Sequence[int], batch_size: int, seed: int, *, shuffle: bool = True) -> None:
        """`keys` holds the sort key of each row, see `BatchLayout.order`; without `shuffle` steps take the rows in order."""
        self._keys = keys
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Select the permutation; accelerate's data loader calls this before each epoch, and on resumption."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[int]:
        order = list(range(len(self._keys)))
        if self._shuffle:
            random.Random(f"order-{self._seed}-{self._epoch}").shuffle(order)  # noqa: S311
        for start in range(0, len(order), self._batch_size):
            yield from sorted(order[start : start + self._batch_size], key=lambda i: (self._keys[i], i))


class Collator:
    """Rows of a micro-batch as tensors, padded on the right to the longest of them.

    With `only_loss_logits` the model computes logits only at positions that predict a token with loss in some row. The loss
    is the same; the largest tensor of training, and the work of the output layer (a fifth of all work for SmolLM2-135M on
    short rows), shrink to the share of positions that carry loss.
    """

    def __init__(self, pad_token_id: int, *, only_loss_logits: bool = False) -> None:
        self._pad = pad_token_id
        self._only_loss_logits = only_loss_logits

    def __call__(self, rows: Sequence[TokenRow]) -> dict[str, Any]:
        """Collate rows into the keyword arguments of the model's forward."""
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


def supports_loss_logits(model: "PreTrainedModel") -> bool:
    """Check if the model's forward takes `logits_to_keep`, and its loss is transformers' causal one."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    takes_positions = "logits_to_keep" in inspect.signature(model.forward).parameters
    return takes_positions and getattr(model, "loss_function", None) is ForCausalLMLoss


def _loss_positions(labels: "torch.Tensor") -> "dict[str, torch.Tensor]":
    """Return the positions at which logits are needed, and the labels there, by transformers' argument names."""
    predicted = labels[:, 1:]
    positions = (predicted != IGNORED).any(dim=0).nonzero().squeeze(1)
    return {"logits_to_keep": positions, "shift_labels": predicted[:, positions].contiguous()}
