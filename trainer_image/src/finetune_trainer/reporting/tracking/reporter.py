"""Reporter that sends every step to one tracker."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from finetune_api.outcome import Outcome, Progress, Result
from finetune_api.training import TrainingConfig
from finetune_api.v1alpha1 import Tracking
from finetune_trainer.errors import one_line
from finetune_trainer.reporting.progress import Reporter
from finetune_trainer.reporting.tracking.mlflow import MlflowTracker
from finetune_trainer.reporting.tracking.tensorboard import TensorBoardTracker, events_folder
from finetune_trainer.reporting.tracking.tracker import Tracker, figures_of
from finetune_trainer.reporting.tracking.wandb import WandbTracker

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 100_000
"""Maximum number of steps that wait for a slow tracker; later ones are dropped."""
MAX_FAILURES: Final = 10
"""Consecutive failures after which a tracker gets no more figures."""
CLOSE_TIMEOUT: Final = 15.0
"""Seconds that the end of a run waits for a tracker to take the remaining figures."""

Value = TypeVar("Value")


def tracking_reporters(config: TrainingConfig, run_id: str) -> list[Reporter]:
    """Create a reporter for each configured tracker; `run_id` is the same for all attempts of a job."""
    tracking = config.tracking or Tracking()
    openers: dict[str, Callable[[], Tracker]] = {}
    if tracking.tensorboard:
        openers["tensorboard"] = partial(TensorBoardTracker, events_folder(config, run_id))
    if tracking.mlflow:
        openers["mlflow"] = partial(MlflowTracker, tracking.mlflow, config, run_id)
    if tracking.wandb:
        openers["wandb"] = partial(WandbTracker, tracking.wandb, config, run_id)
    return [TrackingReporter(name, opener) for name, opener in openers.items()]


class TrackingReporter:
    """Sends every step to one tracker, on a thread that opens the tracker at the first step."""

    def __init__(self, name: str, open_tracker: Callable[[], Tracker]) -> None:
        self._name = name
        self._open = open_tracker
        self._queue: queue.Queue[Progress | Outcome | None] = queue.Queue(MAX_WAITING)
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def report(self, progress: Progress) -> None:
        """Queue the figures of a step; drop them if the queue is full, because then the tracker takes none."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(progress)

    def close(self, outcome: Outcome | None = None) -> None:
        """Wait up to `CLOSE_TIMEOUT` for the thread to send the remaining figures."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(outcome)
        self._thread.join(CLOSE_TIMEOUT)
        if self._thread.is_alive():
            logger.warning("%s did not take all figures in time", self._name)

    def _run(self) -> None:
        tracker: Tracker | None = None
        while self._failures < MAX_FAILURES:
            update = self._queue.get()
            if tracker is None and isinstance(update, Progress):
                tracker = self._try(self._open)
            if tracker is not None:
                self._try(partial(_send, tracker, update))
            if not isinstance(update, Progress):
                return
        logger.warning("%s gets no more figures after %d failures", self._name, self._failures)

    def _try(self, action: Callable[[], Value]) -> Value | None:
        try:
            result = action()
        except Exception as error:
            # A tracker's problem must not stop training; the figures are in the log as well.
            if self._failures == 0:
                logger.warning("%s takes no figures: %s: %s", self._name, type(error).__name__, one_line(error))
            self._failures += 1
            return None
        self._failures = 0
        return result


def _send(tracker: Tracker, update: Progress | Outcome | None) -> None:
    if isinstance(update, Progress):
        tracker.log(figures_of(update), update.step)
        return
    succeeded = update is not None and update.result is Result.SUCCEEDED
    if update is not None and succeeded:
        tracker.log({f"final/{name}": value for name, value in update.metrics.items()}, update.step)
    tracker.finish(succeeded=succeeded)
