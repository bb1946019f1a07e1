"""Typed objects for the operator's unit tests; each factory defaults everything but the point of the test."""

from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api.conditions import ConditionType
from finetune_api.fingerprint import Fingerprint, Probe
from finetune_api.outcome import CommittedAdapter, Outcome, Progress, Result
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import FinetuneJob, FinetuneJobStatus, InferenceService
from finetune_operator.reconcile.job.training_pod import ChildJob, TrainingPod
from finetune_operator.reconcile.pod import ContainerEnd
from finetune_operator.settings import Settings
from support.objects.factories import a_finetune_job, an_inference_service

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CREATED = NOW - timedelta(minutes=5)
UID = "0a1b2c3d-0000-4000-8000-000000000000"
SETTINGS = Settings(_env_file=None)  # type: ignore[call-arg]
INITIALIZING = ("PodInitializing", "")
"""What a container waits for whose pod has init containers to run."""
FINGERPRINT = Fingerprint(probes=[Probe(token_ids=[1, 2, 3], prompt_tokens=1, tuned=[-0.1, -0.2], base=[-1, -2])])


def a_job(status: FinetuneJobStatus | dict[str, Any] | None = None, **spec: Any) -> FinetuneJob:
    raw = a_finetune_job(**spec)
    raw["metadata"] |= {"uid": UID, "generation": 1, "resourceVersion": "7", "creationTimestamp": CREATED}
    if isinstance(status, FinetuneJobStatus):
        status = status.to_dict()
    return FinetuneJob.model_validate({**raw, "status": status or {}})


def with_status(job: FinetuneJob, status: FinetuneJobStatus) -> FinetuneJob:
    """The job as it is read back after the status was written."""
    return job.model_copy(update={"status": FinetuneJobStatus.model_validate(status.to_dict())})


def a_service(**spec: Any) -> InferenceService:
    raw = an_inference_service(**spec)
    raw["metadata"] |= {"uid": UID, "generation": 1, "resourceVersion": "7", "creationTimestamp": CREATED}
    return InferenceService.model_validate(raw)


def a_child(attempt: int = 1, **fields: Any) -> ChildJob:
    values = {"name": f"tone-0a1b2c3d-a{attempt}", "uid": f"job-{attempt}", "created": CREATED, **fields}
    return ChildJob(attempt=attempt, **values)


def a_pod(attempt: int = 1, **fields: Any) -> TrainingPod:
    values = {"name": f"tone-0a1b2c3d-a{attempt}-x", "created": CREATED, **fields}
    return TrainingPod(attempt=attempt, **values)


def a_running_pod(attempt: int = 1, **fields: Any) -> TrainingPod:
    return a_pod(attempt, **{"phase": "Running", "is_scheduled": True, "started_at": CREATED, **fields})


def a_finished_pod(outcome: Outcome | str = "", attempt: int = 1, exit_code: int = 0, **fields: Any) -> TrainingPod:
    message = outcome if isinstance(outcome, str) else outcome.to_termination_message()
    ended = {"started_at": NOW - timedelta(minutes=2), "finished_at": NOW - timedelta(minutes=1)}
    reason = fields.pop("ended_reason", "")
    end = ContainerEnd(exit_code=exit_code, reason=reason, message=message, **ended)
    phase = "Failed" if exit_code else "Succeeded"
    return a_pod(attempt, **{"phase": phase, "is_scheduled": True, "started_at": end.started_at, "end": end, **fields})


def a_validating_pod(attempt: int = 1, **fields: Any) -> TrainingPod:
    return a_pod(attempt, **{"is_scheduled": True, "waiting": INITIALIZING, "validation_started_at": CREATED, **fields})


def a_validated_pod(message: str = "Training: 8 rows.", attempt: int = 1, **fields: Any) -> TrainingPod:
    """Its trainer has not started yet."""
    outcome = Outcome(result=Result.SUCCEEDED, reason=Reason.ACCEPTED, message=message)
    end = ContainerEnd(0, "Completed", outcome.to_termination_message(), CREATED, CREATED + timedelta(seconds=5))
    return a_validating_pod(attempt, **{"validation_end": end, **fields})


def a_refused_pod(outcome: Outcome | str = "", attempt: int = 1, exit_code: int = 3, **fields: Any) -> TrainingPod:
    """It ended in `validate`."""
    message = outcome if isinstance(outcome, str) else outcome.to_termination_message()
    end = ContainerEnd(exit_code, fields.pop("ended_reason", "Error"), message, CREATED, NOW - timedelta(minutes=1))
    return a_validating_pod(attempt, **{"phase": "Failed", "validation_end": end, **fields})


def a_success(**fields: Any) -> Outcome:
    adapter = CommittedAdapter(path=f"tone/{UID}", digest="sha256:" + "a" * 64, size_bytes=9, **fields)
    return Outcome(result=Result.SUCCEEDED, reason=Reason.TRAINED, step=10, metrics={"loss": 0.5}, adapter=adapter)


def a_failure(reason: Reason = Reason.LOSS_DIVERGED, *, retryable: bool = True, message: str = "NaN") -> Outcome:
    return Outcome(result=Result.FAILED, reason=reason, message=message, retryable=retryable)


def an_interruption(**fields: Any) -> Outcome:
    return Outcome(result=Result.INTERRUPTED, reason=Reason.INTERRUPTED, message="saved", **fields)


def a_progress(step: int = 5, **fields: Any) -> Progress:
    return Progress(step=step, total_steps=10, **{"timestamp": NOW.timestamp(), **fields})


def condition(status: Any, kind: ConditionType) -> tuple[str, str] | None:
    """Status and reason of a condition."""
    return next(((c.status, c.reason) for c in status.conditions if c.type == kind), None)
