"""How rows go through the model: packed where the model is shown to support it, padded anywhere else.

Both ways give the same losses and gradients for the same rows; they differ in what is computed for nothing.
"""

import contextlib
import heapq
import logging
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final, Protocol

import numpy as np

from finetune_trainer.batches.batching import Collator, StepSampler, supports_loss_logits
from finetune_trainer.batches.packing import GPU_MIN_SHARED_TOKENS, MIN_SHARED_TOKENS, PackedCollator
from finetune_trainer.data import IGNORED, TokenRow
from finetune_trainer.errors import one_line
from finetune_trainer.kernels.attention import packed_attention, supports_packing
from finetune_trainer.model.loaded import BaseModel

logger = logging.getLogger(__name__)

CHECKED_ROWS: Final = 3
"""Rows by which packed and padded are compared before training, and one more that begins like the first of them."""
CHECKED_TOKENS: Final = 16
"""Tokens that are compared of each of these rows: enough for a shared beginning, and few, as training waits for it."""
ROUNDING: Final = {"float32": (1e-3, 1e-4), "float16": (0.05, 0.01), "bfloat16": (0.25, 0.05)}
"""Difference of a token's log-probability p that is put down to rounding: the first plus the second times |p|, since the less
likely a token, the larger the logits that it comes from. Seen: a hundredth of it in float32, a third in bfloat16."""
LONG_PASS: Final = 4
"""How many times the tokens of a usual pass the largest one may have."""
SAMPLED_STEPS: Final = 16
"""Steps by which it is estimated how many tokens a row takes."""


class BatchLayout(Protocol):
    """A way through the model."""

    name: str

    def collate(self, rows: Sequence[TokenRow]) -> dict[str, Any]:
        """A micro-batch as the keyword arguments of the model's forward."""

    def order(self, rows: Sequence[TokenRow]) -> list[int]:
        """For each row a rank; rows of one step with like ranks belong in the same micro-batch."""

    def row_tokens(self, rows: Sequence[TokenRow], batch_size: int) -> float:
        """Tokens that a row of a step takes in a pass; what a micro-batch's size is chosen by."""

    def applied(self, model: Any) -> contextlib.AbstractContextManager[None]:
        """The context in which the peft model `model` takes such micro-batches."""


class PaddedLayout:
    """Rows padded to the longest of their micro-batch."""

    name = "padded"

    def __init__(self, base: BaseModel) -> None:
        self._collator = Collator(base.pad_token_id, only_loss_logits=supports_loss_logits(base.model))

    def collate(self, rows: Sequence[TokenRow]) -> dict[str, Any]:
        """See `BatchLayout`."""
        return self._collator(rows)

    def order(self, rows: Sequence[TokenRow]) -> list[int]:
        """Long rows first, so that rows of like length are padded together."""
        return [-len(row.input_ids) for row in rows]

    def row_tokens(self, rows: Sequence[TokenRow], batch_size: int) -> float:
        """A row is padded to the longest of its micro-batch, so it is a long one that counts."""
        return sorted(len(row.input_ids) for row in rows)[math.ceil(len(rows) * 0.9) - 1]

    @contextlib.contextmanager
    def applied(self, model: Any) -> Iterator[None]:
        """See `BatchLayout`."""
        with _lean(model):
            yield


class PackedLayout:
    """Rows as one flat sequence in which common beginnings are there once; see `packing`."""

    name = "packed"

    def __init__(self, min_shared: int = MIN_SHARED_TOKENS) -> None:
        self._collator = PackedCollator(min_shared)

    def collate(self, rows: Sequence[TokenRow]) -> dict[str, Any]:
        """See `BatchLayout`."""
        return self._collator(rows)

    def order(self, rows: Sequence[TokenRow]) -> list[int]:
        """Lexicographic, so that rows with a common beginning are neighbors."""
        keys = [np.asarray(row.input_ids, dtype=">u4").tobytes() for row in rows]
        ranks = [0] * len(rows)
        for rank, index in enumerate(sorted(range(len(rows)), key=keys.__getitem__)):
            ranks[index] = rank
        return ranks

    def row_tokens(self, rows: Sequence[TokenRow], batch_size: int) -> float:
        """The mean over a few steps, in which common beginnings are there once; more where a few rows are very long.

        Long rows may come together, so a pass of the longest only has to stay within `LONG_PASS` times what is meant.
        """
        order = list(islice(StepSampler([0] * len(rows), batch_size, seed=0), SAMPLED_STEPS * batch_size))
        steps = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        sampled = [[rows[i] for i in step] for step in steps]
        mean = sum(self._collator.count_tokens(step) for step in sampled) / len(order)
        return max(mean, max(self._collator.longest_own(step) for step in sampled) / LONG_PASS)

    @contextlib.contextmanager
    def applied(self, model: Any) -> Iterator[None]:
        """See `BatchLayout`."""
        with packed_attention(model.get_base_model()), _lean(model):
            yield


@contextlib.contextmanager
def _lean(model: Any) -> Iterator[None]:
    """What makes a pass of either kind faster and smaller, wherever a peft model has the layers for it."""
    # Here, since they import peft: a preflight asks for the size of passes, and does without the seconds.
    from finetune_trainer.kernels.chunked_loss import chunked_loss
    from finetune_trainer.kernels.fused_lora import fused_lora
    from finetune_trainer.kernels.fused_norm import fused_norm

    with fused_lora(model), fused_norm(model), chunked_loss(model.get_base_model()):
        yield


def choose_layout(model: Any, base: BaseModel, rows: Sequence[TokenRow]) -> BatchLayout:
    """Packed if the model's class claims to support it and a few rows prove it, else padded."""
    padded = PaddedLayout(base)
    if not supports_packing(base.model):
        return padded
    packed = PackedLayout(GPU_MIN_SHARED_TOKENS if base.on_gpu else MIN_SHARED_TOKENS)
    # So few tokens would share nothing where it has to be worth its while.
    sample, sharing = sample_rows(rows), PackedLayout(min_shared=1)
    try:
        difference = largest_difference(model, sample, sharing, padded, ROUNDING[base.dtype])
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        logger.warning("rows are padded: packed, this model fails problem=%s", one_line(error))
        return padded
    if difference <= 1:
        return packed
    logger.warning(
        "rows are padded: packed, this model differs times_rounding=%.2g model_class=%s",
        difference,
        type(base.model).__name__,
    )
    return padded


def sample_rows(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """Short rows that try what packing does: rows beside each other, two of which have a common beginning.

    Both of these end with a token that has loss, by which it shows whether that beginning was seen.
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
    """The last tokens of a row up to its last one with loss."""
    end = int(np.flatnonzero(np.asarray(row.labels) != IGNORED)[-1]) + 1
    part = slice(max(0, end - CHECKED_TOKENS), end)
    return TokenRow(row.input_ids[part], row.labels[part])


def largest_difference(
    model: Any, rows: Sequence[TokenRow], passes: BatchLayout, padded: BatchLayout, rounding: tuple[float, float]
) -> float:
    """Largest difference of a learnt token's log-probability between `passes` and `padded`, over `rounding`."""
    import torch

    model.eval()
    # As in training: the Trainer runs a model of bfloat16 weights under autocast.
    mixed = torch.autocast(model.device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16)
    with torch.inference_mode(), mixed:
        expected = _log_probabilities(model, padded.collate(rows))
        with passes.applied(model):
            found = _log_probabilities(model, passes.collate(rows))
    absolute, relative = rounding
    return float(((expected - found).abs() / (absolute + relative * expected.abs())).max())


def _log_probabilities(model: Any, batch: dict[str, Any]) -> Any:
    """[N] log-probability of each token with loss, row after row."""
    import torch

    batch = {key: value.to(model.device) for key, value in batch.items()}
    labels = batch.pop("labels")
    targets = batch.pop("shift_labels", labels[:, 1:])
    logits = model(**batch, use_cache=False).logits[:, : targets.shape[1]].flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits.float(), targets.flatten(), reduction="none")
    return -losses[targets.flatten() != IGNORED]
