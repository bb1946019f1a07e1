"""Progress of a running training: the interface of a reporter, and the reporters of log, console and Celery backend.

A reporter must never fail, block or slow training. The reporter to Redis runs on a thread of its own, keeps only the latest
progress, and times out quickly: a lost broker costs live progress and nothing else.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from finetune_api.outcome import PROGRESS_STATE, Outcome, Progress

if TYPE_CHECKING:
    from tqdm import tqdm  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)

LOG_INTERVAL: Final = 10.0
"""Minimum seconds between two progress lines in the log; the first and the last step are always logged."""
BACK_OFF: Final = 10.0
"""Seconds until the next try after a failure."""
FINISHED_STATE: Final = "SUCCESS"
"""Celery's state of a task that returned; the Outcome is its result."""
CLOSE_TIMEOUT: Final = 3.0
"""Seconds that the end of a run waits for the last report."""


class Reporter(Protocol):
    """Receives the progress of each finished step."""

    def report(self, progress: Progress) -> None:
        """Report a finished step; returns at once and never raises."""

    def close(self, outcome: Outcome | None = None) -> None:
        """Report the outcome, if the run has one, and end reporting."""


class Reporters:
    """Several reporters as one."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._reporters = reporters

    def report(self, progress: Progress) -> None:
        """Report to each."""
        for reporter in self._reporters:
            reporter.report(progress)

    def close(self, outcome: Outcome | None = None) -> None:
        """Close each."""
        for reporter in self._reporters:
            reporter.close(outcome)


class LogReporter:
    """Reports progress as log lines."""

    def __init__(self, interval: float = LOG_INTERVAL) -> None:
        self._interval = interval
        self._last = float("-inf")

    def report(self, progress: Progress) -> None:
        """Log a step, unless the last line is less than the interval old."""
        now = time.monotonic()
        if now - self._last < self._interval and progress.step < progress.total_steps:
            return
        self._last = now
        logger.info(
            "step=%d/%d loss=%s eval_loss=%s tokens_per_second=%s eta_seconds=%s checkpoint=%s",
            progress.step,
            progress.total_steps,
            _rounded(progress.loss, 4),
            _rounded(progress.eval_loss, 4),
            _rounded(progress.tokens_per_second, 0),
            _rounded(progress.eta_seconds, 0),
            progress.checkpoint_step,
        )

    def close(self, outcome: Outcome | None = None) -> None:
        """Log the outcome."""
        if outcome:
            logger.info("outcome result=%s reason=%s message=%s", outcome.result, outcome.reason, outcome.message)


class ConsoleReporter:
    """Reports progress as a bar on a terminal."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def report(self, progress: Progress) -> None:
        """Move the bar."""
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=progress.total_steps, unit="step", desc="training", dynamic_ncols=True)
        self._bar.set_postfix(loss=_rounded(progress.loss, 4), refresh=False)
        self._bar.update(progress.step - self._bar.n)

    def close(self, outcome: Outcome | None = None) -> None:
        """Close the bar; further output starts below it."""
        if self._bar is not None:
            self._bar.close()


class LatestReporter(ABC):
    """Sends the latest progress at most once per interval, on a thread of its own; older progress not sent yet is dropped."""

    name: ClassVar[str]
    """Name of the progress in log lines."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._latest: Progress | Outcome | None = None
        self._closed = False
        self._reachable = True
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    @abstractmethod
    def send(self, update: Progress | Outcome) -> None:
        """Send progress or the outcome; may fail or be slow."""

    def report(self, progress: Progress) -> None:
        """Pass the progress to the thread."""
        with self._changed:
            self._latest = progress
            self._changed.notify()

    def close(self, outcome: Outcome | None = None) -> None:
        """Wait up to `CLOSE_TIMEOUT` for the thread to send the outcome."""
        with self._changed:
            self._latest = outcome or self._latest
            self._closed = True
            self._changed.notify()
        self._thread.join(CLOSE_TIMEOUT)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._latest is not None or self._closed)
                latest, self._latest = self._latest, None
            if latest is None:
                return
            pause = self._interval if self._try(latest) else BACK_OFF
            with self._changed:
                self._changed.wait_for(lambda: self._closed, timeout=pause)

    def _try(self, update: Progress | Outcome) -> bool:
        try:
            self.send(update)
        except Exception as error:
            # A failure only costs live progress: the outcome is in the termination message.
            if self._reachable:
                logger.warning("%s cannot be reported: %s: %s", self.name, type(error).__name__, error)
            self._reachable = False
            return False
        if not self._reachable:
            logger.info("%s can be reported again", self.name)
        self._reachable = True
        return True


class BackendReporter(LatestReporter):
    """Reports progress as the state of the Celery task."""

    name = "progress"

    def __init__(self, store: Callable[[dict[str, Any], str], None], interval: float) -> None:
        """`store(result, state)` writes to the result backend; it may fail or be slow."""
        self._store = store
        super().__init__(interval)

    def send(self, update: Progress | Outcome) -> None:
        """Store the task's state, which the operator reads."""
        self._store(update.to_dict(), PROGRESS_STATE if isinstance(update, Progress) else FINISHED_STATE)


class FileReporter(LatestReporter):
    """Reports progress as a JSON file, which is replaced as a whole."""

    name = "progress"

    def __init__(self, path: Path, interval: float) -> None:
        self._path = path
        super().__init__(interval)

    def send(self, update: Progress | Outcome) -> None:
        """Replace the file; the outcome is in the termination message."""
        if isinstance(update, Progress):
            staged = self._path.with_suffix(".partial")
            staged.write_text(update.model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
            staged.replace(self._path)


def _rounded(value: float | None, digits: int) -> float | int | None:
    return value if value is None else round(value, digits or None)
