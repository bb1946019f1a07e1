"""How a running training is heard of: one small interface, and who listens to it.

A reporter must never fail, block or slow training. The one that talks to Redis does so from a thread of its own, keeps only
the latest figures, and gives up quickly: a broker that dies costs fresh progress and nothing else.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

from finetune_api.outcome import PROGRESS_STATE, Outcome, Progress

logger = logging.getLogger(__name__)

LOG_INTERVAL: Final = 10.0
"""Seconds between two progress lines in the log, at least; the first and the last step are always logged."""
BACK_OFF: Final = 10.0
"""Seconds without a try after the receiver failed."""
FINISHED_STATE: Final = "SUCCESS"
"""Celery's state of a task that returned; how training ended is in its result."""
CLOSE_TIMEOUT: Final = 3.0
"""Seconds that the end of a run waits for the last report."""


class Reporter(Protocol):
    """Receives the figures of each finished step."""

    def report(self, progress: Progress) -> None:
        """Take note of a finished step; returns at once and never raises."""

    def close(self, outcome: Outcome | None = None) -> None:
        """No more reports will come; the outcome, if the run got as far as having one, is the last word."""


class Reporters:
    """Several reporters as one."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._reporters = reporters

    def report(self, progress: Progress) -> None:
        """Pass a step on to each."""
        for reporter in self._reporters:
            reporter.report(progress)

    def close(self, outcome: Outcome | None = None) -> None:
        """Close each."""
        for reporter in self._reporters:
            reporter.close(outcome)


class LogReporter:
    """Progress as log lines."""

    def __init__(self, interval: float = LOG_INTERVAL) -> None:
        self._interval = interval
        self._last = float("-inf")

    def report(self, progress: Progress) -> None:
        """Log a step unless the last line is fresh."""
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
        """Log the last word."""
        if outcome:
            logger.info("outcome result=%s reason=%s message=%s", outcome.result, outcome.reason, outcome.message)


class ConsoleReporter:
    """A progress bar for people."""

    def __init__(self) -> None:
        self._bar: Any = None

    def report(self, progress: Progress) -> None:
        """Move the bar."""
        from tqdm import tqdm  # type: ignore[import-untyped]

        if self._bar is None:
            self._bar = tqdm(total=progress.total_steps, unit="step", desc="training", dynamic_ncols=True)
        self._bar.set_postfix(loss=_rounded(progress.loss, 4), refresh=False)
        self._bar.update(progress.step - self._bar.n)

    def close(self, outcome: Outcome | None = None) -> None:
        """Leave the bar where it is and go on below it."""
        if self._bar is not None:
            self._bar.close()


class LatestReporter(ABC):
    """The latest figures, sent at most once per interval from a thread of its own; older ones not sent yet are forgotten."""

    name: ClassVar[str]
    """Of what is sent, in the log."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._latest: Progress | Outcome | None = None
        self._closed = False
        self._reachable = True
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    @abstractmethod
    def send(self, news: Progress | Outcome) -> None:
        """Send figures or the last word; may fail or take its time."""

    def report(self, progress: Progress) -> None:
        """Hand the figures to the thread."""
        with self._changed:
            self._latest = progress
            self._changed.notify()

    def close(self, outcome: Outcome | None = None) -> None:
        """Let the thread send the last word, if that is quick."""
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

    def _try(self, news: Progress | Outcome) -> bool:
        try:
            self.send(news)
        except Exception as error:
            # Any failure only costs fresh progress: the outcome travels in the termination message.
            if self._reachable:
                logger.warning("%s cannot be reported: %s: %s", self.name, type(error).__name__, error)
            self._reachable = False
            return False
        if not self._reachable:
            logger.info("%s can be reported again", self.name)
        self._reachable = True
        return True


class BackendReporter(LatestReporter):
    """Progress as the state of the Celery task."""

    name = "progress"

    def __init__(self, store: Callable[[dict[str, Any], str], None], interval: float) -> None:
        """`store(result, state)` writes to the result backend; it may fail or take its time."""
        self._store = store
        super().__init__(interval)

    def send(self, news: Progress | Outcome) -> None:
        """Store what the operator reads."""
        self._store(news.to_dict(), PROGRESS_STATE if isinstance(news, Progress) else FINISHED_STATE)


class FileReporter(LatestReporter):
    """Progress as a JSON file, which is replaced as a whole."""

    name = "progress"

    def __init__(self, path: Path, interval: float) -> None:
        self._path = path
        super().__init__(interval)

    def send(self, news: Progress | Outcome) -> None:
        """Replace the file; the outcome travels in the termination message."""
        if isinstance(news, Progress):
            staged = self._path.with_suffix(".partial")
            staged.write_text(news.model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
            staged.replace(self._path)


def _rounded(value: float | None, digits: int) -> float | int | None:
    return value if value is None else round(value, digits or None)
