"""Fencing token of a run: a file of attempt numbers on the output volume, checked right before each commit."""

import os
from pathlib import Path

from finetune_api.reasons import Reason
from finetune_trainer.errors import TrainingError


class Fence:
    """Fence that lets only the newest attempt of a run write.

    Attempts append their number to one file and read the highest back. Appending never removes a number, so an older attempt
    can never hide a newer one.
    """

    def __init__(self, path: Path, attempt: int) -> None:
        self._path = path
        self._attempt = attempt

    def acquire(self) -> None:
        """Register this attempt. Raises TrainingError (Fenced) if a newer one is registered."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._attempt not in self._attempts():
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                # A line break first: a full disk may have cut another attempt's line, and run together they would be a number
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
    """Flush a folder, so that files created, renamed or removed in it survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
