"""The latest attempt of a job: which one it is, how far it got, how it is accounted for. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from pydantic import ValidationError

from finetune_api.outcome import Outcome
from finetune_api.reasons import ConditionType, Reason
from finetune_api.sources import parse_source
from finetune_api.v1alpha1 import (
    AdapterStatus,
    CheckpointStatus,
    FailureStatus,
    FinetuneJob,
    FinetuneJobStatus,
    MetricStatus,
    Usage,
)
from finetune_operator.reconcile.conditions import is_true
from finetune_operator.reconcile.job.attempt_outcome import AttemptEnd, find_end
from finetune_operator.reconcile.job.draft import MAX_MESSAGE
from finetune_operator.reconcile.plan import Observed
from finetune_operator.reconcile.views import ChildJobView, PodView

INTERRUPTIONS: Final = frozenset(
    {Reason.INTERRUPTED, Reason.PREEMPTED, Reason.POD_DELETED, Reason.NODE_LOST, Reason.FENCED}
)
"""Reasons that do not count towards policy.maxAttempts."""
MAX_RETRY_SECONDS: Final = 300.0
INTERRUPTION_SECONDS: Final = 1.0
"""Delay after the first interruption; doubles with each."""
MAX_INTERRUPTION_SECONDS: Final = 60.0
"""A node that evicts for ever must not make us start pods for ever at full speed."""


@dataclass(frozen=True)
class Attempt:
    """The latest attempt."""

    number: int
    """From 1; 0 if there was none."""
    child: ChildJobView | None = None
    pod: PodView | None = None
    end: AttemptEnd | None = None
    """How it ended, as long as status does not tell it yet."""
    is_open: bool = False
    """Whether it still has to be reported on; closed attempts make room for the next."""


def find_attempt(status: FinetuneJobStatus, seen: Observed) -> Attempt:
    """The latest attempt: of those in status and those whose children exist (a crash may lie between the two)."""
    number = max([status.attempt, *(c.attempt for c in seen.children), *(p.attempt for p in seen.pods)])
    if number == 0:
        return Attempt(0)
    child = next((c for c in seen.children if c.attempt == number), None)
    pods = [p for p in seen.pods if p.attempt == number]
    pod = max(pods, key=lambda p: (not p.is_finished, p.created.timestamp() if p.created else 0.0), default=None)
    if _is_closed(status, number):
        return Attempt(number, child, pod)
    return Attempt(number, child, pod, find_end(child, pod, was_created=number <= status.attempt), is_open=True)


def _is_closed(status: FinetuneJobStatus, number: int) -> bool:
    if status.last_failure is not None and status.last_failure.attempt >= number:
        return True
    return is_true(status.conditions, ConditionType.SUSPENDED) and number <= status.attempt


def retry_due(status: FinetuneJobStatus, base_seconds: float) -> datetime | None:
    """When the next attempt may start; None means at once."""
    failure = status.last_failure
    if failure is None or failure.finish_time is None or failure.attempt < status.attempt:
        return None
    return failure.finish_time + timedelta(seconds=retry_delay(status, base_seconds))


def retry_delay(status: FinetuneJobStatus, base_seconds: float) -> float:
    """Seconds between the end of the last attempt and the next."""
    failure = status.last_failure
    if failure is not None and failure.reason in INTERRUPTIONS:
        interruptions = max(1, status.attempt - status.failed_attempts)
        return min(INTERRUPTION_SECONDS * 2.0 ** min(interruptions - 1, 16), MAX_INTERRUPTION_SECONDS)
    return min(base_seconds * 2.0 ** min(max(0, status.failed_attempts - 1), 16), MAX_RETRY_SECONDS)


def failure_status(attempt: Attempt, end: AttemptEnd, now: datetime) -> FailureStatus:
    """The record of a failed or interrupted attempt that outlives its pod."""
    # A node's clock may be ahead of ours; the next attempt is counted from this moment.
    finished = min(end.finished_at or now, now)
    return FailureStatus(
        attempt=attempt.number,
        pod=end.pod,
        exit_code=end.exit_code,
        reason=end.reason,
        message=end.message[:MAX_MESSAGE],
        log_tail=end.log_tail,
        finish_time=finished.replace(microsecond=0),
    )


def add_usage(usage: Usage | None, end: AttemptEnd) -> Usage:
    """Usage including an attempt that has ended."""
    usage = usage or Usage()
    seconds = 0
    if end.started_at is not None and end.finished_at is not None:
        seconds = max(0, int((end.finished_at - end.started_at).total_seconds()))
    is_waste = not end.is_success and not end.is_interruption
    tokens = end.outcome.trained_tokens if end.outcome and end.is_success else None
    return Usage(
        attempt_seconds=usage.attempt_seconds + seconds,
        wasted_seconds=usage.wasted_seconds + (seconds if is_waste else 0),
        trained_tokens=tokens if tokens is not None else usage.trained_tokens,
    )


def adapter_status(job: FinetuneJob, outcome: Outcome) -> AdapterStatus | None:
    """The committed adapter, or None if what the trainer says of it cannot be addressed."""
    committed = outcome.adapter
    if committed is None:
        return None
    uri = f"pvc://{job.spec.output.claim}/{committed.path}"
    try:
        parse_source(uri, ("pvc",))
        return AdapterStatus(
            name=job.adapter_name,
            uri=uri,
            digest=committed.digest,
            size_bytes=committed.size_bytes,
            base_model=job.spec.model.source,
            base_revision=committed.base_revision,
            fingerprint=committed.fingerprint,
        )
    except (ValueError, ValidationError):
        return None


def metric_statuses(outcome: Outcome) -> list[MetricStatus]:
    """Metrics of the finished training, as text and bounded."""
    named = sorted(outcome.metrics.items())[:64]
    return [MetricStatus(name=name[:128], value=f"{value:.6g}") for name, value in named]


def checkpoint_statuses(job: FinetuneJob, step: int | None) -> list[CheckpointStatus]:
    """The known checkpoints and a newer one; the trainer keeps `spec.checkpoint.keep` of them on the volume."""
    known = [c for c in job.status.checkpoints if step is None or c.step != step]
    if step is not None:
        known.append(CheckpointStatus(step=step, path=f".jobs/{job.metadata.uid}/checkpoints/step-{step}"))
    return sorted(known, key=lambda c: c.step)[-job.spec.checkpoint.keep :]
