"""The pod (`python -m finetune_trainer work`): a Celery worker for exactly one message, and the same work without Celery.

The pod sends the message for its own attempt to its own queue and takes it back through a solo worker in this process. When
the broker cannot be reached, or the message does not arrive, the same function is called directly. Everything happens one
after the other in the main thread, so the attempt runs exactly once.
"""

import logging
import os
import threading
import time
from typing import Any, Final

from finetune_api.contract import TASK_NAME, ExitCode, queue_name, task_id
from finetune_api.outcome import Outcome
from finetune_api.training import JobIdentity
from finetune_trainer.config import TrainerSettings, load_pod_config
from finetune_trainer.errors import exit_code_of
from finetune_trainer.runtime.interruption import STOP
from finetune_trainer.runtime.termination import report_failure
from finetune_trainer.tasks.finetuning_task import run_attempt

logger = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT: Final = 10.0
"""Seconds that Celery may take to let go after the attempt has ended; a dead broker must not hold the pod."""


def work(settings: TrainerSettings) -> ExitCode:
    """Run the attempt of the mounted configuration and return the process's exit code."""
    STOP.install()
    try:
        outcome = _work(settings)
    except Exception as caught:
        outcome = report_failure(settings, caught)
    return exit_code_of(outcome)


def _work(settings: TrainerSettings) -> Outcome:
    _, job = load_pod_config(settings.config_path)
    if settings.broker_url and (outcome := _run_as_task(settings.broker_url, settings, job)):
        return outcome
    logger.info("running without a message job=%s attempt=%d", job.uid, job.attempt)
    return run_attempt(settings, job.uid, job.attempt)


def _run_as_task(broker_url: str, settings: TrainerSettings, job: JobIdentity) -> Outcome | None:
    """Send our message, consume it, and return what the task returned; None if it never ran."""
    from finetune_trainer.tasks.celery_app import create_app

    app = create_app(broker_url)
    # Celery's tracer looks tasks up in the current app; its command line sets that, WorkController does not.
    app.set_current()
    app.set_default()
    if not _send(app, settings, job):
        return None
    return _consume_one(app, settings, job)


def _send(app: Any, settings: TrainerSettings, job: JobIdentity) -> bool:
    """Put this attempt's message into its queue, within the time that the settings allow."""
    sent = threading.Event()

    def send() -> None:
        queue = queue_name(job.uid, job.attempt)
        try:
            with app.connection_for_write() as connection:
                # What a killed predecessor of the same attempt may have left would be a second message.
                connection.default_channel.queue_purge(queue)
                app.send_task(
                    TASK_NAME,
                    args=[job.uid, job.attempt],
                    task_id=task_id(job.uid, job.attempt),
                    queue=queue,
                    connection=connection,
                    retry=False,
                )
        except Exception as error:
            # Whatever is wrong with the broker, the pod can do its work without it.
            logger.warning("broker not reached: %s: %s", type(error).__name__, error)
        else:
            sent.set()

    # In a thread of its own, because a name server that does not answer obeys no socket timeout.
    thread = threading.Thread(target=send, name="send", daemon=True)
    thread.start()
    thread.join(settings.broker_timeout)
    return sent.is_set()


def _consume_one(app: Any, settings: TrainerSettings, job: JobIdentity) -> Outcome | None:
    """Run a solo worker until one task has ended or none has come. Tasks run in this thread, inside `start`.

    Raises RuntimeError if the task started and left no Outcome, which is a bug: it must not be run a second time.
    """
    from celery import signals
    from celery.worker import WorkController, state

    started = threading.Event()
    outcomes: list[Outcome] = []
    last_resort = threading.Timer(SHUTDOWN_TIMEOUT, _exit_now, [outcomes])
    last_resort.daemon = True

    def on_start(**_: Any) -> None:
        started.set()

    def on_end(retval: Any = None, **_: Any) -> None:
        if isinstance(retval, dict):
            outcomes.append(Outcome.model_validate(retval))
        elif isinstance(retval, Exception):
            outcomes.append(report_failure(settings, retval))
        state.should_stop = ExitCode.SUCCEEDED
        # The attempt is over: what Celery has to say about a broker that it cannot say goodbye to is no news.
        for name in ("celery", "kombu"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        last_resort.start()

    def give_up_waiting() -> None:
        deadline = time.monotonic() + settings.message_timeout
        while time.monotonic() < deadline and not STOP.requested:
            if started.wait(0.1):
                return
        if not started.is_set():
            logger.warning("message not received seconds=%.0f", settings.message_timeout)
            state.should_stop = ExitCode.SUCCEEDED

    signals.task_prerun.connect(on_start)
    signals.task_postrun.connect(on_end)
    threading.Thread(target=give_up_waiting, name="message-timeout", daemon=True).start()
    try:
        # Not celery's command line: WorkController leaves signal handlers and logging alone, so SIGTERM stays ours.
        WorkController(
            app=app,
            pool_cls="solo",
            concurrency=1,
            queues=[queue_name(job.uid, job.attempt)],
            hostname=f"finetune@{task_id(job.uid, job.attempt)}",
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        ).start()
    except (Exception, SystemExit) as error:
        logger.warning("celery worker ended: %s: %s", type(error).__name__, error)
    finally:
        last_resort.cancel()
        state.should_stop = None
        signals.task_prerun.disconnect(on_start)
        signals.task_postrun.disconnect(on_end)
    if started.is_set() and not outcomes:
        raise RuntimeError("the task ended without an Outcome")
    return outcomes[0] if outcomes else None


def _exit_now(outcomes: list[Outcome]) -> None:
    """End the process although Celery hangs on a dead connection: the termination message is written by now."""
    logger.warning("celery did not let go; exiting")
    logging.shutdown()
    os._exit(exit_code_of(outcomes[0]) if outcomes else ExitCode.BUG)
