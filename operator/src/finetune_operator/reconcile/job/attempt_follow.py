"""An attempt that has not ended is followed, and given up if its pod does not start in time. Pure."""

from datetime import datetime, timedelta

from finetune_api.v1alpha1 import FinetuneJob
from finetune_operator.reconcile.job.attempts import Attempt
from finetune_operator.reconcile.job.findings import Following
from finetune_operator.reconcile.job.plan import Observed, Plan
from finetune_operator.settings import Settings


def follow_attempt(job: FinetuneJob, attempt: Attempt, seen: Observed, now: datetime, settings: Settings) -> Plan:
    """Follow the attempt's pod until it ends; end the job if the pod does not start in time."""
    following = Following(attempt, seen.progress, settings.progress_seconds)
    pod = attempt.live_pod
    if pod is not None and pod.started_at is not None:
        return Plan(following, requeue_after=settings.progress_seconds if settings.broker_url is not None else None)
    begin = _waiting_since(attempt)
    if begin is None:
        return Plan(following)
    deadline = begin + timedelta(seconds=job.spec.policy.start_deadline_seconds)
    if deadline > now:
        return Plan(following, requeue_after=(deadline - now).total_seconds())
    return Plan(Following(attempt, seen.progress, settings.progress_seconds, is_late=True))


def _waiting_since(attempt: Attempt) -> datetime | None:
    """Return when the wait for a container began; None while nothing is late: Kueue holds the Job, or `validate` runs."""
    pod, child = attempt.pod, attempt.child
    if attempt.live_pod is not None and attempt.live_pod.validation_started_at is not None:
        if attempt.live_pod.validation_end is None:
            return None
    elif child is not None and child.is_suspended:
        return None
    if pod is not None and pod.validation_end is not None and pod.validation_end.finished_at is not None:
        return pod.validation_end.finished_at
    if pod is not None and pod.created is not None:
        return pod.created
    return child.started or child.created if child is not None else None
