"""Which attempt of a run may write: a file of attempt numbers on the output volume, asked right before each commit."""

import os
from pathlib import Path

from finetune_api.reasons import Reason
from finetune_trainer.errors import TrainingError


class Fence:
    """Lets only the newest attempt of a run write.

    Attempts append their number to one file and read the highest back. Appending never takes a number away, so there is no
    moment at which an older attempt could hide a newer one.
    """

    def __init__(self, path: Path, attempt: int) -> None:
        self._path = path
        self._attempt = attempt

    def acquire(self) -> None:
        """Make this attempt known. Raises TrainingError (Fenced) if a newer one is."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._attempt not in self._attempts():
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                # In a line of its own whatever a full disk left of another attempt's: run together they would be a number
                # that no attempt ever reaches.
                os.write(descriptor, f"\n{self._attempt}\n".encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            fsync_directory(self._path.parent)
        self.check()

    def check(self) -> None:
        """Raise TrainingError (Fenced) if a newer attempt exists; called right before each rename."""
        newest = max(self._attempts(), default=self._attempt)
        if newest > self._attempt:
            raise TrainingError(
                Reason.FENCED,
                f"Attempt {self._attempt} stopped without writing: attempt {newest} of the same job has started.",
            )

    def _attempts(self) -> list[int]:
        try:
            lines = self._path.read_text(errors="replace").split()
        except FileNotFoundError:
            return []
        return [int(line) for line in lines if line.isdecimal()]


def fsync_directory(path: Path) -> None:
    """Make what was made, renamed or removed in a folder survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
