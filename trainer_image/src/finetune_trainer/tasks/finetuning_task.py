"""Celery task of an attempt, and the plain functions beneath it that also run without Celery.

`run_finetuning` runs a configuration and returns an Outcome for every end; `run_attempt` does the same for a pod: it reads
the mounted configuration and writes the termination message.
"""

import functools
import logging
from typing import Any

from celery import shared_task

from finetune_api.contract import TASK_NAME, ExitCode, task_id
from finetune_api.outcome import Outcome
from finetune_api.reasons import Reason
from finetune_api.training import JobIdentity, TrainingConfig
from finetune_trainer.config import TrainerSettings, load_pod_config
from finetune_trainer.errors import TrainingError, as_training_error
from finetune_trainer.reporting.kubeflow import kubeflow_reporters
from finetune_trainer.reporting.progress import BackendReporter, FileReporter, LogReporter, Reporter, Reporters
from finetune_trainer.reporting.tracking.checks import check_trackers
from finetune_trainer.reporting.tracking.reporter import tracking_reporters
from finetune_trainer.runtime import distributed
from finetune_trainer.runtime.interruption import STOP, StopSignal
from finetune_trainer.runtime.termination import write_termination_message
from finetune_trainer.tasks.celery_app import create_app
from finetune_trainer.training import FinetuningPipeline

logger = logging.getLogger(__name__)


# The reporter stores the result, from its own thread: Celery itself would keep retrying a lost backend.
@shared_task(name=TASK_NAME, ignore_result=True)  # type: ignore[untyped-decorator] # celery is untyped
def finetuning_task(job_uid: str, attempt: int) -> dict[str, Any]:
    """Run this pod's attempt; the message only names it, the configuration is mounted."""
    return run_attempt(TrainerSettings(), job_uid, attempt).to_dict()


def run_attempt(settings: TrainerSettings, job_uid: str, attempt: int) -> Outcome:
    """Run the mounted configuration, and write its Outcome into the termination message."""
    config, job = load_pod_config(settings.config_path)
    reporter = _pod_reporter(settings, config, job)
    if (job.uid, job.attempt) == (job_uid, attempt):
        outcome = run_finetuning(config, reporter, STOP)
    else:
        message = (
            f"The message names attempt {attempt} of job {job_uid}; this pod is attempt {job.attempt} of job {job.uid}"
        )
        outcome = TrainingError(Reason.SPEC_INVALID, message).to_outcome()
    write_termination_message(settings, outcome)
    reporter.close(outcome)
    return outcome


def run_finetuning(config: TrainingConfig, reporter: Reporter, stop: StopSignal, run_id: str | None = None) -> Outcome:
    """Run the pipeline; every end, including an unexpected exception, becomes an Outcome."""
    pipeline = FinetuningPipeline(config, reporter=reporter, stop=stop, run_id=run_id)
    try:
        check_trackers(config)
        with distributed.process_group(config, pipeline.run_id):
            return pipeline.run()
    except Exception as caught:
        error = as_training_error(caught)
        if error.reason is Reason.TRAINER_CRASHED:
            logger.exception("the trainer crashed")
        pipeline.store.discard_staging()
        return error.to_outcome(
            step=pipeline.position.step if pipeline.position else 0,
            checkpoint_step=max(pipeline.store.checkpoint_steps(), default=None),
        )


def run_worker_rank(config: TrainingConfig, stop: StopSignal, run_id: str) -> ExitCode:
    """Run a rank other than 0. Only the main process reports; this exit code is logged there at most."""
    distributed.die_with_parent()
    try:
        with distributed.process_group(config, run_id):
            FinetuningPipeline(config, reporter=Reporters([]), stop=stop, run_id=run_id).run_worker_rank()
    except Exception as caught:
        error = as_training_error(caught)
        logger.warning("worker rank ended reason=%s message=%s", error.reason, error.message)
        return error.exit_code
    return ExitCode.SUCCEEDED


def _pod_reporter(settings: TrainerSettings, config: TrainingConfig, job: JobIdentity) -> Reporter:
    """Collect the reporters of a pod; that of the Celery task reports even if its message was never received."""
    reporters: list[Reporter] = [LogReporter(), *kubeflow_reporters(), *tracking_reporters(config, job.uid)]
    if settings.progress_file:
        reporters.append(FileReporter(settings.progress_file, settings.progress_interval))
    if settings.broker_url:
        backend = create_app(settings.broker_url).backend
        store = functools.partial(backend.store_result, task_id(job.uid, job.attempt))
        reporters.append(BackendReporter(store, settings.progress_interval))
    return Reporters(reporters)
