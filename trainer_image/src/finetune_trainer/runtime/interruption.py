"""A request to stop, made by SIGTERM (eviction, suspension, deletion) or Ctrl-C, and asked for between steps.

A signal handler may run between any two bytecodes, so it only sets a flag; whoever is at a safe point looks at it.
"""

import logging
import signal
import threading
from types import FrameType

from finetune_api.reasons import Reason
from finetune_trainer.errors import TrainingError

logger = logging.getLogger(__name__)


class StopSignal:
    """A flag that stays set."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def requested(self) -> bool:
        """Whether somebody wants this process to end soon."""
        return self._event.is_set()

    def request(self) -> None:
        """Ask to stop at the next safe point."""
        self._event.set()

    def check(self, message: str) -> None:
        """Raise the error of an interrupted run if a stop was requested."""
        if self.requested:
            raise TrainingError(Reason.INTERRUPTED, message, retryable=True)

    def install(self) -> None:
        """Handle SIGTERM and SIGINT with this flag; a second SIGINT ends the process in the ordinary way."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.request()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        logger.warning("stop requested signal=%s; ending after the current step", signal.Signals(number).name)


STOP = StopSignal()
"""The flag of this process: signals are process-wide, so it is too."""
