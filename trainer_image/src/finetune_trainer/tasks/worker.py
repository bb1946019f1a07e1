"""Command of the pod (`python -m finetune_trainer work`): its attempt as one Celery task, or without Celery.

The pod sends the message for its own attempt to its own queue, and receives it by a solo worker in this process. If the
broker cannot be reached, or the message does not arrive, the same function is called directly. Everything happens in the main
thread, one step after the other, so the attempt runs exactly once.
"""

import logging
import threading
from typing import TYPE_CHECKING

from finetune_api.contract import BROKER_URL_ENV, TASK_NAME, ExitCode, queue_name, task_id
from finetune_api.outcome import Outcome
from finetune_api.training import JobIdentity
from finetune_trainer.config import TrainerSettings, load_pod_config
from finetune_trainer.errors import exit_code_of
from finetune_trainer.runtime.interruption import STOP
from finetune_trainer.runtime.termination import report_failure
from finetune_trainer.tasks.finetuning_task import run_attempt

if TYPE_CHECKING:
    from celery import Celery

logger = logging.getLogger(__name__)


def work(settings: TrainerSettings) -> ExitCode:
    """Run the attempt of the mounted configuration, and return the exit code of the process."""
    STOP.install()
    try:
        outcome = _work(settings)
    except Exception as caught:
        outcome = report_failure(settings, caught)
    return exit_code_of(outcome)


def _work(settings: TrainerSettings) -> Outcome:
    _, job = load_pod_config(settings.config_path)
    if not settings.broker_url:
        logger.info("no live progress: %s is not set; training is not affected", BROKER_URL_ENV)
    elif outcome := _run_as_task(settings.broker_url, settings, job):
        return outcome
    else:
        logger.info("training starts without its Celery message job=%s attempt=%d", job.uid, job.attempt)
    return run_attempt(settings, job.uid, job.attempt)


def _run_as_task(broker_url: str, settings: TrainerSettings, job: JobIdentity) -> Outcome | None:
    """Send this attempt's message, consume it, and return the Outcome of the task; None if it never ran."""
    from finetune_trainer.tasks.celery_app import create_app
    from finetune_trainer.tasks.one_task_worker import OneTaskWorker

    app = create_app(broker_url)
    # Celery's tracer looks tasks up in the current app; its command line sets that, WorkController does not.
    app.set_current()
    app.set_default()
    if not _send(app, settings, job):
        return None
    worker = OneTaskWorker(app, settings)
    return worker.run(queue_name(job.uid, job.attempt), f"finetune@{task_id(job.uid, job.attempt)}")


def _send(app: "Celery", settings: TrainerSettings, job: JobIdentity) -> bool:
    """Put this attempt's message into its queue, and return True if that took at most `settings.broker_timeout`."""
    sent = threading.Event()

    def send() -> None:
        queue = queue_name(job.uid, job.attempt)
        try:
            with app.connection_for_write() as connection:
                # A killed predecessor of the same attempt may have left a message.
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
            # Any problem with the broker costs live progress only.
            logger.warning("broker not reached: %s: %s", type(error).__name__, error)
        else:
            sent.set()

    # In a thread of its own, because a name server that does not answer ignores socket timeouts.
    thread = threading.Thread(target=send, name="send", daemon=True)
    thread.start()
    thread.join(settings.broker_timeout)
    return sent.is_set()
