"""The end of an attempt, classified from its pod and Job. Pure; the only place that knows exit codes and kubelet reasons.

The order matters: an act of the kernel or the control plane comes first, then the trainer's Outcome, then its exit code.
An attempt may end before its trainer starts, in `validate`, which reports in the same way.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pydantic import ValidationError

from finetune_api.contract import ExitCode
from finetune_api.outcome import Outcome, Result
from finetune_api.reasons import Reason
from finetune_operator.reconcile.job.training_pod import ChildJob, TrainingPod
from finetune_operator.reconcile.pod import ContainerEnd
from finetune_operator.reconcile.pod_reasons import redact

LOG_TAIL_CHARACTERS: Final = 2000
"""Characters of a crashed trainer's log in status: a Python traceback fits."""
INTERRUPTIONS: Final = frozenset(
    {Reason.INTERRUPTED, Reason.PREEMPTED, Reason.POD_DELETED, Reason.NODE_LOST, Reason.FENCED}
)
"""Reasons that are not the trainer's fault: they do not count towards policy.maxAttempts."""
BY_EXIT_CODE: Final = {
    ExitCode.CONFIG_INVALID: (Reason.SPEC_INVALID, False),
    ExitCode.DATASET_INVALID: (Reason.DATASET_INVALID, False),
    ExitCode.MODEL_INVALID: (Reason.MODEL_INVALID, False),
    ExitCode.STORAGE_FULL: (Reason.STORAGE_FULL, True),
}
"""Reason and retryability by exit code, for containers whose termination message was lost."""


@dataclass(frozen=True)
class AttemptEnd:
    """The end of an attempt."""

    reason: Reason
    message: str
    is_success: bool = False
    is_retryable: bool = False
    """Another attempt can help."""
    is_validation: bool = False
    """It ended in `validate`: the trainer never started."""
    exit_code: int | None = None
    pod: str | None = None
    outcome: Outcome | None = None
    log_tail: str | None = None
    started_at: datetime | None = None
    """Start of the trainer, if it started."""
    finished_at: datetime | None = None

    @property
    def is_interruption(self) -> bool:
        """Not the trainer's fault: does not count towards policy.maxAttempts."""
        return self.reason in INTERRUPTIONS


def find_end(child: ChildJob | None, pod: TrainingPod | None, was_created: bool) -> AttemptEnd | None:
    """Classify the end of an attempt; None while it may still continue."""
    if pod is not None:
        end = classify_pod(pod) if pod.is_finished else None
        # Kueue takes a Job back by suspending it, and admits the same one again.
        is_taken_back = child is not None and child.is_suspended and not child.is_finished
        return None if is_taken_back and end is not None and end.is_interruption else end
    if child is None:
        if not was_created:
            return None
        return _interrupted(Reason.POD_DELETED, "The training Job and its pod were deleted.")
    if not child.is_finished or child.is_deleting:
        return None
    if child.outcome == "Complete":
        return _interrupted(Reason.POD_DELETED, "The pod was deleted before its result could be read.")
    return _interrupted(Reason.POD_DELETED, f"The training pod was deleted. {child.message}".strip())


def classify_pod(pod: TrainingPod) -> AttemptEnd:
    """Classify the end of a finished pod."""
    failed_validation = _failed_validation(pod)
    last = failed_validation or pod.end
    words = last.message if last else ""
    outcome = parse_outcome(words)
    who = "The validation before training" if failed_validation else "The trainer"
    verdict = (
        _from_kernel(last, who)
        or (_from_success(outcome) if outcome and outcome.result == Result.SUCCEEDED else None)
        or _from_disruption(pod, last)
        or (_from_outcome(outcome) if outcome else None)
        or _from_exit(pod, last, who)
    )
    is_crash = outcome is None and not verdict.is_interruption
    return AttemptEnd(
        reason=verdict.reason,
        message=redact(verdict.message),
        is_success=verdict.is_success,
        is_retryable=verdict.is_retryable,
        is_validation=failed_validation is not None,
        exit_code=last.exit_code if last else None,
        pod=pod.name,
        outcome=outcome,
        log_tail=redact(words)[-LOG_TAIL_CHARACTERS:] or None if is_crash else None,
        started_at=pod.started_at,
        finished_at=last.finished_at if last else None,
    )


def parse_outcome(message: str) -> Outcome | None:
    """Parse a container's Outcome; None if the termination message is something else (a log, nothing, a torn write)."""
    if not message.lstrip().startswith("{"):
        return None
    try:
        return Outcome.model_validate_json(message)
    except ValidationError:
        return None


def _failed_validation(pod: TrainingPod) -> ContainerEnd | None:
    end = pod.validation_end
    return end if pod.started_at is None and end is not None and end.exit_code != ExitCode.SUCCEEDED else None


def _from_kernel(end: ContainerEnd | None, who: str) -> AttemptEnd | None:
    if end is None or end.reason != "OOMKilled":
        return None
    return AttemptEnd(
        Reason.HOST_OUT_OF_MEMORY,
        f"{who} needed more memory than resources.memory allows and was killed; raise resources.memory, "
        "or lower hyperparameters.maxLength or microBatchSize.",
    )


def _from_success(outcome: Outcome) -> AttemptEnd:
    if outcome.adapter is None:
        return AttemptEnd(Reason.TRAINER_CRASHED, "The trainer reported success without an adapter.", is_retryable=True)
    return AttemptEnd(Reason.TRAINED, outcome.message, is_success=True)


def _from_disruption(pod: TrainingPod, last: ContainerEnd | None) -> AttemptEnd | None:
    if pod.disruption is not None:
        reason, message = pod.disruption
        lost = reason == "DeletionByTaintManager"
        return _interrupted(Reason.NODE_LOST if lost else Reason.PREEMPTED, f"{reason}: {message}")
    if pod.reason == "Evicted":
        # Evictions for the node's sake carry DisruptionTarget; this one is for the pod's own use of disk.
        return AttemptEnd(Reason.STORAGE_FULL, f"The pod was evicted: {pod.message}", is_retryable=True)
    if pod.reason in ("NodeLost", "Shutdown", "Terminated"):
        return _interrupted(Reason.NODE_LOST, f"{pod.reason}: {pod.message}")
    if last is None and pod.reason:
        # OutOfcpu, UnexpectedAdmissionError, NodeAffinity, ...: the kubelet refused what the scheduler chose.
        return _interrupted(Reason.PREEMPTED, f"The node refused the pod: {pod.reason}: {pod.message}")
    return None


def _from_outcome(outcome: Outcome) -> AttemptEnd:
    if outcome.result == Result.INTERRUPTED:
        reason = outcome.reason if outcome.reason in INTERRUPTIONS else Reason.INTERRUPTED
        return _interrupted(reason, outcome.message)
    is_retryable = outcome.retryable or outcome.reason in INTERRUPTIONS
    return AttemptEnd(outcome.reason, outcome.message, is_retryable=is_retryable)


def _from_exit(pod: TrainingPod, end: ContainerEnd | None, who: str) -> AttemptEnd:
    if end is None:
        return _interrupted(Reason.POD_DELETED, f"The pod ended before the trainer started. {pod.message}".strip())
    if pod.is_deleting:
        return _interrupted(Reason.POD_DELETED, "The training pod was deleted.")
    if end.exit_code == ExitCode.INTERRUPTED:
        return _interrupted(Reason.INTERRUPTED, f"{who} received SIGTERM.")
    if end.exit_code == ExitCode.FENCED:
        return _interrupted(Reason.FENCED, f"{who} noticed a newer attempt.")
    code = next((known for known in BY_EXIT_CODE if known == end.exit_code), None)
    if code is not None:
        reason, retryable = BY_EXIT_CODE[code]
        return AttemptEnd(reason, f"{who} exited with code {int(code)}; see logTail.", is_retryable=retryable)
    if end.exit_code == ExitCode.SUCCEEDED:
        return AttemptEnd(
            Reason.TRAINER_CRASHED, "The trainer exited without handing back a result.", is_retryable=True
        )
    message = f"{who} exited with code {end.exit_code} without saying why; see logTail."
    return AttemptEnd(Reason.TRAINER_CRASHED, message, is_retryable=True)


def _interrupted(reason: Reason, message: str) -> AttemptEnd:
    return AttemptEnd(reason, message, is_retryable=True)
