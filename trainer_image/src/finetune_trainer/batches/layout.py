"""Batch layouts: rows are packed where the model is shown to support it, and padded elsewhere.

Both layouts give the same losses and gradients for the same rows; they differ in the tokens that are computed needlessly.
"""

import contextlib
import heapq
import logging
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from finetune_trainer.batches.batching import Collator, StepSampler, supports_loss_logits
from finetune_trainer.batches.packing import GPU_MIN_SHARED_TOKENS, MIN_SHARED_TOKENS, PackedCollator
from finetune_trainer.data import IGNORED, TokenRow
from finetune_trainer.errors import one_line
from finetune_trainer.kernels.attention import packed_attention, supports_packing
from finetune_trainer.model.loaded import BaseModel

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

logger = logging.getLogger(__name__)

CHECKED_ROWS: Final = 3
"""Rows by which the packed and the padded layout are compared before training; one more shares a prefix with the first."""
CHECKED_TOKENS: Final = 16
"""Tokens compared of each of these rows: enough for a shared prefix, and few, because training waits for the result."""
ROUNDING: Final = {"float32": (1e-3, 1e-4), "float16": (0.05, 0.01), "bfloat16": (0.25, 0.05)}
"""Tolerated difference of a token's log-probability p, by dtype: the first number plus the second times |p|, because less
likely tokens come from larger logits. Measured: a hundredth of it in float32, a third in bfloat16."""
LONG_PASS: Final = 4
"""Maximum tokens of the largest micro-batch, as a multiple of the average one."""
SAMPLED_STEPS: Final = 16
"""Steps sampled to estimate the tokens of a row."""


class BatchLayout(Protocol):
    """Layout of the rows of a micro-batch in the tensors that the model takes."""

    name: str

    def collate(self, rows: Sequence[TokenRow]) -> dict[str, Any]:
        """Collate a micro-batch into the keyword arguments of the model's forward."""

    def order(self, rows: Sequence[TokenRow]) -> list[int]:
        """Return a sort key for each row; rows of a step with close keys belong in the same micro-batch."""

    def row_tokens(self, rows: Sequence[TokenRow], batch_size: int) -> float:
        """Return the tokens that a row takes in a micro-batch, by which the micro-batch size is chosen."""

    def applied(self, model: "PeftModel") -> contextlib.AbstractContextManager[None]:
        """Prepare the peft model `model` for such micro-batches within this context."""


class PaddedLayout:
    """Layout with rows padded to the longest of their micro-batch."""

    name = "padded"

    def __init__(self, base: BaseModel) -> None:
        self._collator = Collator(base.pad_token_id, only_loss_logits=supports_loss_logits(base.model))

    def collate(self, rows: Sequence[TokenRow]) -> dict[str, Any]:
        """Collate a micro-batch; see `BatchLayout`."""
        return self._collator(rows)

    def order(self, rows: Sequence[TokenRow]) -> list[int]:
        """Sort long rows first, so that rows of similar length are padded together."""
        return [-len(row.input_ids) for row in rows]

    def row_tokens(self, rows: Sequence[TokenRow], batch_size: int) -> float:
        """Return the 90th percentile of lengths, because a row is padded to the longest of its micro-batch."""
        return sorted(len(row.input_ids) for row in rows)[math.ceil(len(rows) * 0.9) - 1]

    @contextlib.contextmanager
    def applied(self, model: "PeftModel") -> Iterator[None]:
        """Prepare the model; see `BatchLayout`."""
        with _fused_kernels(model):
            yield


class PackedLayout:
    """Layout with rows as one flat sequence that contains shared prefixes once; see `packing`."""

    name = "packed"

    def __init__(self, min_shared: int = MIN_SHARED_TOKENS) -> None:
        self._collator = PackedCollator(min_shared)

    def collate(self, rows: Sequence[TokenRow]) -> dict[str, Any]:
        """Collate a micro-batch; see `BatchLayout`."""
        return self._collator(rows)

    def order(self, rows: Sequence[TokenRow]) -> list[int]:
        """Sort lexicographically, so that rows with a shared prefix are neighbors."""
        contents = [np.asarray(row.input_ids, dtype=">u4").tobytes() for row in rows]
        keys = [0] * len(rows)
        for key, index in enumerate(sorted(range(len(rows)), key=contents.__getitem__)):
            keys[index] = key
        return keys

    def row_tokens(self, rows: Sequence[TokenRow], batch_size: int) -> float:
        """Return the mean over a few steps with shared prefixes counted once, or more where a few rows are very long.

        Long rows may share a micro-batch, so one of the longest rows has to stay within `LONG_PASS` times the mean.
        """
        order = list(islice(StepSampler([0] * len(rows), batch_size, seed=0), SAMPLED_STEPS * batch_size))
        steps = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        sampled = [[rows[i] for i in step] for step in steps]
        mean = sum(self._collator.count_tokens(step) for step in sampled) / len(order)
        return max(mean, max(self._collator.longest_own(step) for step in sampled) / LONG_PASS)

    @contextlib.contextmanager
    def applied(self, model: "PeftModel") -> Iterator[None]:
        """Prepare the model; see `BatchLayout`."""
        with packed_attention(model.get_base_model()), _fused_kernels(model):
            yield


@contextlib.contextmanager
def _fused_kernels(model: "PeftModel") -> Iterator[None]:
    """Replace the layers of a peft model by fused kernels, where they exist, within this context."""
    # Imported here, because they import peft, which takes seconds that a preflight saves.
    from finetune_trainer.kernels.chunked_loss import chunked_loss
    from finetune_trainer.kernels.fused_lora import fused_lora
    from finetune_trainer.kernels.fused_norm import fused_norm

    with fused_lora(model), fused_norm(model), chunked_loss(model.get_base_model()):
        yield


def choose_layout(model: "PeftModel", base: BaseModel, rows: Sequence[TokenRow]) -> BatchLayout:
    """Return the packed layout if the model's class claims to support it and a few rows confirm it, else the padded one."""
    padded = PaddedLayout(base)
    if not supports_packing(base.model):
        return padded
    packed = PackedLayout(GPU_MIN_SHARED_TOKENS if base.on_gpu else MIN_SHARED_TOKENS)
    # The sample's prefixes are shorter than the usual minimum, so any prefix is shared here.
    sample, sharing = sample_rows(rows), PackedLayout(min_shared=1)
    try:
        difference = largest_difference(model, sample, sharing, padded, ROUNDING[base.dtype])
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        logger.warning("padding rows: the model fails on packed rows problem=%s", one_line(error))
        return padded
    if difference <= 1:
        return packed
    logger.warning(
        "padding rows: the model gives other results for packed rows times_rounding=%.2g model_class=%s",
        difference,
        type(base.model).__name__,
    )
    return padded


def sample_rows(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """Return short rows to compare layouts by: neighbors in a sequence, two of which share a prefix.

    Both of these end with a token that has loss, so its log-probability depends on the shared prefix.
    """
    sample = [_around_loss(row) for row in heapq.nsmallest(CHECKED_ROWS, rows, key=lambda row: len(row.input_ids))]
    first, last = sample[0], sample[-1]
    begin, end = len(first.input_ids) // 2, len(last.input_ids) // 2
    grafted = TokenRow(
        np.concatenate([first.input_ids[:begin], last.input_ids[end:]]),
        np.concatenate([first.labels[:begin], last.labels[end:]]),
    )
    return [*sample, grafted]


def _around_loss(row: TokenRow) -> TokenRow:
    """Return the last tokens of a row up to its last one with loss."""
    end = int(np.flatnonzero(np.asarray(row.labels) != IGNORED)[-1]) + 1
    part = slice(max(0, end - CHECKED_TOKENS), end)
    return TokenRow(row.input_ids[part], row.labels[part])


def largest_difference(
    model: "PeftModel",
    rows: Sequence[TokenRow],
    layout: BatchLayout,
    padded: BatchLayout,
    rounding: tuple[float, float],
) -> float:
    """Return the largest difference of a token's log-probability between `layout` and `padded`, relative to `rounding`."""
    import torch

    model.eval()
    # As in training, where a model with bfloat16 weights runs under autocast.
    mixed = torch.autocast(model.device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16)
    with torch.inference_mode(), mixed:
        expected = _log_probabilities(model, padded.collate(rows))
        with layout.applied(model):
            found = _log_probabilities(model, layout.collate(rows))
    absolute, relative = rounding
    return float(((expected - found).abs() / (absolute + relative * expected.abs())).max())


def _log_probabilities(model: "PeftModel", batch: "dict[str, torch.Tensor]") -> "torch.Tensor":
    """Return the [N] log-probability of each token with loss, row after row."""
    import torch

    batch = {key: value.to(model.device) for key, value in batch.items()}
    labels = batch.pop("labels")
    targets = batch.pop("shift_labels", labels[:, 1:])
    logits = model(**batch, use_cache=False).logits[:, : targets.shape[1]].flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits.float(), targets.flatten(), reduction="none")
    return -losses[targets.flatten() != IGNORED]
