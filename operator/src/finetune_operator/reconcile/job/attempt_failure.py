"""An attempt that failed or was interrupted: counted and explained before another one is made. Pure."""

from dataclasses import replace

from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import FinetuneJob
from finetune_operator.reconcile.job.attempt_outcome import AttemptEnd
from finetune_operator.reconcile.job.attempts import Attempt, retry_delay
from finetune_operator.reconcile.job.findings import AttemptFailed, JobEnd
from finetune_operator.reconcile.job.plan import Plan
from finetune_operator.settings import Settings


def record_failure(job: FinetuneJob, attempt: Attempt, end: AttemptEnd, settings: Settings) -> Plan:
    """Close the attempt: end the job, or wait for the time of the next attempt."""
    failed = job.status.failed_attempts + (0 if end.is_interruption else 1)
    if not end.is_retryable:
        return Plan(AttemptFailed(attempt, end, failed, None), end=JobEnd(end.reason, end.message))
    if not end.is_interruption and failed >= job.spec.policy.max_attempts:
        message = f"{failed} of {failed} attempts failed; the last with {end.reason}: {end.message}"
        return Plan(AttemptFailed(attempt, end, failed, None), end=JobEnd(Reason.ATTEMPTS_EXHAUSTED, message))
    delay = retry_delay(end.reason, attempt.number, failed, settings.retry_seconds)
    return Plan(AttemptFailed(attempt, end, failed, delay), requeue_after=delay)


def unusable_adapter(end: AttemptEnd) -> AttemptEnd:
    """Return the end of an attempt whose success cannot be used, because its adapter cannot be addressed."""
    return replace(
        end,
        reason=Reason.TRAINER_CRASHED,
        message="The trainer reported an adapter whose path or digest cannot be used.",
        is_success=False,
        is_retryable=True,
        outcome=None,
    )
