"""A solo Celery worker in this process that runs exactly one task, in the thread that calls it."""

import logging
import os
import threading
import time
from typing import Any, Final

from celery import Celery, signals
from celery.worker import WorkController, state

from finetune_api.contract import ExitCode
from finetune_api.outcome import Outcome
from finetune_trainer.config import TrainerSettings
from finetune_trainer.errors import exit_code_of
from finetune_trainer.runtime.interruption import STOP
from finetune_trainer.runtime.termination import report_failure

logger = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT: Final = 10.0
"""Seconds that Celery may take to shut down after the attempt has ended; a dead broker must not hold the pod."""


class OneTaskWorker:
    """Worker that shuts down after its first task, or once no message has arrived for `settings.message_timeout` seconds."""

    def __init__(self, app: Celery, settings: TrainerSettings) -> None:
        self._app = app
        self._settings = settings
        self._started = threading.Event()
        self._outcome: Outcome | None = None
        self._exit_timer = threading.Timer(SHUTDOWN_TIMEOUT, self._exit_now)
        self._exit_timer.daemon = True

    def run(self, queue: str, name: str) -> Outcome | None:
        """Run the task of the first message in `queue`, and return its Outcome; None if none arrived.

        Raises RuntimeError if the task started and returned no Outcome, a bug, so that it is not run a second time.
        """
        signals.task_prerun.connect(self._on_start)
        signals.task_postrun.connect(self._on_end)
        threading.Thread(target=self._shut_down_without_message, name="message-timeout", daemon=True).start()
        try:
            self._consume(queue, name)
        except (Exception, SystemExit) as error:
            logger.warning("celery worker ended: %s: %s", type(error).__name__, error)
        finally:
            self._exit_timer.cancel()
            state.should_stop = None
            signals.task_prerun.disconnect(self._on_start)
            signals.task_postrun.disconnect(self._on_end)
        if self._started.is_set() and not self._outcome:
            raise RuntimeError("the task ended without an Outcome")
        return self._outcome

    def _consume(self, queue: str, name: str) -> None:
        """Consume messages until `state.should_stop` is set; the task runs in this thread."""
        # Not celery's command line: WorkController installs neither signal handlers nor logging, so SIGTERM stays ours.
        WorkController(
            app=self._app,
            pool_cls="solo",
            concurrency=1,
            queues=[queue],
            hostname=name,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        ).start()

    def _on_start(self, **_: Any) -> None:
        self._started.set()

    def _on_end(self, retval: Any = None, **_: Any) -> None:
        if isinstance(retval, dict):
            self._outcome = Outcome.model_validate(retval)
        elif isinstance(retval, Exception):
            self._outcome = report_failure(self._settings, retval)
        state.should_stop = ExitCode.SUCCEEDED
        # The attempt is over, so Celery's messages about a broker that it cannot disconnect from do not matter.
        for library in ("celery", "kombu"):
            logging.getLogger(library).setLevel(logging.CRITICAL + 1)
        self._exit_timer.start()

    def _shut_down_without_message(self) -> None:
        deadline = time.monotonic() + self._settings.message_timeout
        while time.monotonic() < deadline and not STOP.requested:
            if self._started.wait(0.1):
                return
        if not self._started.is_set():
            logger.warning("message not received seconds=%.0f", self._settings.message_timeout)
            state.should_stop = ExitCode.SUCCEEDED

    def _exit_now(self) -> None:
        """End the process although Celery hangs on a dead connection; the termination message is written by now."""
        logger.warning("celery did not shut down seconds=%.0f; exiting", SHUTDOWN_TIMEOUT)
        logging.shutdown()
        os._exit(exit_code_of(self._outcome) if self._outcome else ExitCode.BUG)
