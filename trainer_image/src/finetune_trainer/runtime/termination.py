"""Termination message of a container: its Outcome, in the file that the kubelet reads. Both containers of an attempt write one."""

import logging

from finetune_api.outcome import Outcome
from finetune_api.reasons import Reason
from finetune_trainer.config import TrainerSettings
from finetune_trainer.errors import as_training_error

logger = logging.getLogger(__name__)


def write_termination_message(settings: TrainerSettings, outcome: Outcome) -> None:
    """Write the Outcome into the termination message."""
    try:
        settings.termination_log.write_text(outcome.to_termination_message(), encoding="utf-8")
    except OSError as error:
        # The exit code still tells success from failure, and the adapter's manifest describes the adapter.
        logger.error("termination message not written path=%s problem=%s", settings.termination_log, error)  # noqa: TRY400


def report_failure(settings: TrainerSettings, caught: Exception) -> Outcome:
    """Write the Outcome of a container that failed with an exception, and return it."""
    error = as_training_error(caught)
    if error.reason is Reason.TRAINER_CRASHED:
        logger.error("the trainer crashed", exc_info=caught)
    outcome = error.to_outcome()
    write_termination_message(settings, outcome)
    return outcome
