"""The status of a job whose attempt has ended: its adapter or failure, its checkpoints and its usage. Pure."""

from datetime import datetime

from finetune_api.conditions import ConditionType
from finetune_api.outcome import Outcome
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import FailureStatus, FinetuneJob, MetricStatus
from finetune_api.v1alpha1.job.status import Usage
from finetune_operator.reconcile.events import EventDraft
from finetune_operator.reconcile.job.attempt_outcome import AttemptEnd
from finetune_operator.reconcile.job.attempts import Attempt, published_message
from finetune_operator.reconcile.job.changes import (
    MAX_MESSAGE,
    ConditionChange,
    StatusChanges,
    StatusFields,
    When,
    not_running,
    resumed,
)
from finetune_operator.reconcile.job.findings import AttemptFailed, Published, Suspending
from finetune_operator.reconcile.job.progress_report import (
    checkpoint_available,
    checkpoint_statuses,
    finished_progress,
    reduction_events,
)
from finetune_operator.reconcile.job.validation import accepted, validation_refused


def describe_publication(job: FinetuneJob, finding: Published) -> StatusChanges:
    """Publish the adapter with the figures of its training."""
    attempt, end, outcome, status = finding.attempt, finding.end, finding.outcome, job.status
    message = published_message(finding.adapter)
    conditions = (
        *([accepted(attempt.pod)] if attempt.pod is not None else []),
        ConditionChange(ConditionType.SCHEDULED, "True", Reason.SCHEDULED),
        ConditionChange(ConditionType.RUNNING, "False", Reason.TRAINED, end.message),
        resumed(),
        ConditionChange(ConditionType.ADAPTER_PUBLISHED, "True", Reason.TRAINED, message),
        ConditionChange(ConditionType.CHECKPOINT_AVAILABLE, "False", Reason.TRAINED, when=When.PRESENT),
    )
    fields = StatusFields(
        attempt=attempt.number,
        start_time=status.start_time or end.started_at,
        adapter=finding.adapter,
        metrics=_metric_statuses(outcome),
        progress=finished_progress(status.progress, outcome),
        # The trainer removes them once the adapter is committed.
        checkpoints=[],
        usage=_add_usage(status.usage, end),
    )
    events = reduction_events(status.progress, outcome.passes)
    if job.spec.serve is not None:
        events = (*events, EventDraft("AdapterPublished", message))
    return StatusChanges(conditions, fields, events)


def describe_failure(job: FinetuneJob, finding: AttemptFailed, now: datetime) -> StatusChanges:
    """Record the end of the attempt, and announce the next one if there is one."""
    attempt, end, status = finding.attempt, finding.end, job.status
    checkpoints = checkpoint_statuses(job, end.outcome.checkpoint_step if end.outcome else None)
    conditions: list[ConditionChange] = []
    events: tuple[EventDraft, ...] = ()
    if attempt.pod is not None and attempt.was_training:
        conditions.append(accepted(attempt.pod))
    elif end.is_validation and not end.is_retryable:
        conditions.append(validation_refused(end))
    if not job.spec.suspend:
        conditions.append(resumed())
    if checkpoints:
        conditions.append(checkpoint_available())
    if (delay := finding.retry_seconds) is not None:
        message = f"Attempt {attempt.number} ended with {end.reason}; the next starts {delay:g} s later. {end.message}"
        conditions.append(ConditionChange(ConditionType.RUNNING, "False", Reason.RETRYING, message))
        events = (EventDraft("Retrying", message, is_warning=True),)
    fields = StatusFields(
        attempt=attempt.number,
        failed_attempts=finding.failed_attempts,
        last_failure=_failure_status(attempt, end, now),
        start_time=status.start_time or end.started_at,
        checkpoints=checkpoints,
        usage=_add_usage(status.usage, end),
    )
    return StatusChanges(tuple(conditions), fields, events)


def describe_suspension(job: FinetuneJob, finding: Suspending) -> StatusChanges:
    """Say that the attempt is being stopped, or account for it once: Suspended=True closes it."""
    attempt, status = finding.attempt, job.status
    fields = StatusFields(attempt=max(status.attempt, attempt.number))
    if not finding.is_stopped:
        message = "spec.suspend is true; the training pod is saving a checkpoint."
        return StatusChanges((ConditionChange(ConditionType.SUSPENDED, "False", Reason.SUSPENDING, message),), fields)
    conditions: list[ConditionChange] = []
    if (end := attempt.end) is not None:
        checkpoints = checkpoint_statuses(job, end.outcome.checkpoint_step if end.outcome else None)
        fields["checkpoints"] = checkpoints
        fields["usage"] = _add_usage(status.usage, end)
        if checkpoints:
            conditions.append(checkpoint_available())
    message = "Set spec.suspend to false to resume."
    suspended = ConditionChange(ConditionType.SUSPENDED, "True", Reason.SUSPENDED, message)
    return StatusChanges((*conditions, not_running(Reason.SUSPENDED), suspended), fields)


def _failure_status(attempt: Attempt, end: AttemptEnd, now: datetime) -> FailureStatus:
    """Return the record of a failed or interrupted attempt that outlives its pod."""
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


def _add_usage(usage: Usage | None, end: AttemptEnd) -> Usage:
    """Return the usage including an attempt that has ended."""
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


def _metric_statuses(outcome: Outcome) -> list[MetricStatus]:
    """Return the metrics of the finished training, as text and bounded."""
    named = sorted(outcome.metrics.items())[:64]
    return [MetricStatus(name=name[:128], value=f"{value:.6g}") for name, value in named]
