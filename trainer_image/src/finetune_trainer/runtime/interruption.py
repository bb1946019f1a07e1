"""Stop request, made by SIGTERM (eviction, suspension, deletion) or Ctrl-C, and checked between steps.

A signal handler may run between any two bytecodes, so it only sets a flag, which the run checks at safe points.
"""

import logging
import signal
import threading
from types import FrameType

from finetune_api.reasons import Reason
from finetune_trainer.errors import TrainingError

logger = logging.getLogger(__name__)


class StopSignal:
    """Flag for a stop request; once set, it stays set."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def requested(self) -> bool:
        """True once a stop was requested."""
        return self._event.is_set()

    def request(self) -> None:
        """Request a stop at the next safe point."""
        self._event.set()

    def check(self, message: str) -> None:
        """Raise TrainingError (Interrupted) with this message if a stop was requested."""
        if self.requested:
            raise TrainingError(Reason.INTERRUPTED, message, retryable=True)

    def install(self) -> None:
        """Install handlers of SIGTERM and SIGINT that set this flag; a second SIGINT raises KeyboardInterrupt."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.request()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        logger.warning("stop requested signal=%s; ending after the current step", signal.Signals(number).name)


STOP = StopSignal()
"""Stop signal of this process; process-wide, because signals are."""
