"""`validate` in a pod: the first container of an attempt, which has no GPU and reports mistakes within seconds.

It writes an Outcome like the trainer. It also leaves tokens in the output volume's cache and downloads on the pod's scratch
volume, so that the trainer need not repeat the work.
"""

import logging
import os
import signal
from types import FrameType
from typing import Final

from finetune_api.contract import ExitCode
from finetune_api.outcome import Outcome, Result
from finetune_api.reasons import Reason
from finetune_trainer.config import SourceSettings, TrainerSettings, load_pod_config
from finetune_trainer.dataset import token_cache
from finetune_trainer.errors import TrainingError, exit_code_of
from finetune_trainer.preflight.checks import run_preflight
from finetune_trainer.preflight.summary import describe, summarize
from finetune_trainer.runtime.termination import report_failure, write_termination_message
from finetune_trainer.store.run_store import RunStore

logger = logging.getLogger(__name__)

STOPPED: Final = TrainingError(Reason.INTERRUPTED, "Stopped before training; nothing was lost.", retryable=True)
"""Signal that ends a preflight."""


def validate_attempt(settings: TrainerSettings) -> ExitCode:
    """Check the mounted configuration, write the Outcome to the termination message and return the exit code."""
    _end_on_sigterm(settings)
    try:
        outcome = _validate(settings)
        write_termination_message(settings, outcome)
    except Exception as caught:
        outcome = report_failure(settings, caught)
    logger.info("outcome result=%s reason=%s message=%s", outcome.result, outcome.reason, outcome.message)
    return exit_code_of(outcome)


def _validate(settings: TrainerSettings) -> Outcome:
    config, job = load_pod_config(settings.config_path)
    run = RunStore.of_job(config, job)
    run.fence.check()
    if run.committed_adapter():
        # The trainer will report it. What it was made from may be gone by now, and is not needed.
        return _accepted("The adapter of an earlier attempt is committed already.")
    found = run_preflight(
        config,
        gpu_memory=settings.gpu_memory,
        sources=SourceSettings(keep_downloads=True),
        cache=token_cache(config),
    )
    print(describe(config, found))
    if found.verdict:
        raise found.verdict
    return _accepted(summarize(found))


def _accepted(message: str) -> Outcome:
    return Outcome(result=Result.SUCCEEDED, reason=Reason.ACCEPTED, message=message)


def _end_on_sigterm(settings: TrainerSettings) -> None:
    """End at once, unlike the trainer, which has a step to finish and a checkpoint to commit."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        write_termination_message(settings, STOPPED.to_outcome())
        os._exit(STOPPED.exit_code)

    signal.signal(signal.SIGTERM, on_signal)
