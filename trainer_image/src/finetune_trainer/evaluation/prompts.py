"""Held-out rows as questions with a wanted answer, for metrics that compare answers."""

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

ROWS: Final = 200
"""Held-out rows that are answered unless the configuration says otherwise."""


@dataclass(frozen=True)
class Question:
    """A row up to its last answer, and that answer, as token ids."""

    prompt: list[int]
    wanted: list[int]


def find_questions(rows: Sequence[TokenRow], most: int | None = None) -> list[Question]:
    """Rows as questions, at most so many, evenly spread. Rows that are learnt from their first token on ask nothing."""
    most = most or ROWS
    asking = [(row, answer) for row in rows if (answer := _last_answer(row)) is not None]
    step = max(1.0, len(asking) / most)
    return [_question(*asking[int(i * step)]) for i in range(min(len(asking), most))]


def check_questions(config: TrainingConfig, dataset: PreparedDataset) -> None:
    """Raise TrainingError (SpecInvalid) if metrics are asked for that compare answers, and no held-out row has one."""
    names = generated_metrics(config)
    if not names or config.dpo or dataset.evaluation is None:
        return
    if not find_questions(dataset.evaluation.rows, config.evaluation_settings.generated_rows):
        raise TrainingError(
            Reason.SPEC_INVALID,
            f"evaluation.metrics names {names[0]}, which compares answers, and no held-out row says where its answer begins: rows "
            "of plain text and hyperparameters.lossOn: all have loss from the first token on. Give prompt and completion, or "
            "messages, with lossOn: completion; or leave the metric out.",
        )


def _last_answer(row: TokenRow) -> slice | None:
    """The last run of tokens with loss: of a chat, the last turn of the assistant. None if there is nothing before it."""
    learnt = np.asarray(row.labels) != IGNORED
    if not learnt.any():
        return None
    end = int(np.flatnonzero(learnt)[-1]) + 1
    others = np.flatnonzero(~learnt[:end])
    return slice(int(others[-1]) + 1, end) if len(others) else None


def _question(row: TokenRow, answer: slice) -> Question:
    ids = np.asarray(row.input_ids)
    return Question(ids[: answer.start].tolist(), ids[answer].tolist())
