"""Problems of a dataset: each names its row, what was found and what is expected.

Messages never repeat the user's data, only its shape, because more people may read the status than the data.
"""

import re
from collections.abc import Iterable
from typing import Final

from finetune_api.reasons import Reason
from finetune_trainer.errors import TrainingError

SHOWN_PROBLEMS: Final = 5
"""Row errors that are spelled out; the rest is counted, because a termination message has 4096 bytes."""


def invalid(message: str) -> TrainingError:
    """Return the error (DatasetInvalid) with this message."""
    return TrainingError(Reason.DATASET_INVALID, message[:1].upper() + message[1:])


class Problems:
    """Problems of one dataset's rows, collected so that its author can fix all of them at once."""

    def __init__(self, name: str) -> None:
        """Collect problems of `dataset` or `evaluation`, as the author calls it."""
        self.name = name
        self._shown: list[str] = []
        self._count = 0

    def add(self, problem: str) -> None:
        """Add a problem that begins with the row's place."""
        self._count += 1
        if len(self._shown) < SHOWN_PROBLEMS:
            self._shown.append(problem[:400])

    def raise_any(self) -> None:
        """Raise TrainingError (DatasetInvalid) if any problem was added."""
        if not self._count:
            return
        rest = self._count - len(self._shown)
        raise invalid(f"{self.name} {'; '.join(self._shown)}" + (f"; and {rest} more rows" if rest else ""))


def listed(names: Iterable[object]) -> str:
    """Join column names for a message: at most eight, each short and on one line."""
    shown = [re.sub(r"\s+", " ", str(name))[:40] for name in names]
    return ", ".join(shown[:8]) + (", …" if len(shown) > 8 else "") if shown else "none"
