"""Held-out rows as prompts with a reference answer, for metrics that compare generated answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from finetune_api.reasons import Reason
from finetune_api.training import TrainingConfig
from finetune_trainer.data import IGNORED, TokenRow
from finetune_trainer.dataset import PreparedDataset
from finetune_trainer.errors import TrainingError
from finetune_trainer.evaluation.answer_metrics import generated_metrics

DEFAULT_ROWS: Final = 200
"""Held-out rows that answers are generated for, unless the configuration sets a number."""


@dataclass(frozen=True)
class Prompt:
    """A row up to its last answer, and that answer, as token ids."""

    ids: list[int]
    reference: list[int]


def find_prompts(rows: Sequence[TokenRow], limit: int | None = None) -> list[Prompt]:
    """Split rows into prompt and reference: at most `limit` rows, evenly spread, without rows that have no prompt."""
    limit = limit or DEFAULT_ROWS
    answered = [(row, answer) for row in rows if (answer := _last_answer(row)) is not None]
    step = max(1.0, len(answered) / limit)
    return [_prompt(*answered[int(i * step)]) for i in range(min(len(answered), limit))]


def check_prompts(config: TrainingConfig, dataset: PreparedDataset) -> None:
    """Raise TrainingError (SpecInvalid) if requested metrics compare answers, and no held-out row has a prompt."""
    names = generated_metrics(config)
    if not names or config.dpo or dataset.evaluation is None:
        return
    if not find_prompts(dataset.evaluation.rows, config.evaluation_settings.generated_rows):
        raise TrainingError(
            Reason.SPEC_INVALID,
            f"evaluation.metrics names {names[0]}, which compares answers, but no held-out row has a prompt before its "
            "answer: rows of plain text, and hyperparameters.lossOn: all, have loss from the first token on. Use rows with "
            "prompt and completion, or messages, with lossOn: completion; or remove the metric.",
        )


def _last_answer(row: TokenRow) -> slice | None:
    """Return the last run of tokens with loss (of a chat, the assistant's last turn); None if no token precedes it."""
    learnt = np.asarray(row.labels) != IGNORED
    if not learnt.any():
        return None
    end = int(np.flatnonzero(learnt)[-1]) + 1
    others = np.flatnonzero(~learnt[:end])
    return slice(int(others[-1]) + 1, end) if len(others) else None


def _prompt(row: TokenRow, answer: slice) -> Prompt:
    ids = np.asarray(row.input_ids)
    return Prompt(ids[: answer.start].tolist(), ids[answer].tolist())
