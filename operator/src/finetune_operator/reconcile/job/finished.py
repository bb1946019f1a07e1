"""A finished job: nothing is ever started again. Running children are stopped, and the endpoint's state is kept true. Pure."""

from datetime import datetime, timedelta

from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import FinetuneJob
from finetune_operator.reconcile.job.endpoint import Endpoint
from finetune_operator.reconcile.job.findings import Finished
from finetune_operator.reconcile.job.plan import Observed, Plan
from finetune_operator.reconcile.ownership import Ownership


def keep_finished(job: FinetuneJob, seen: Observed, endpoint: Endpoint | None, now: datetime) -> Plan:
    """Return the plan for a job that has ended."""
    is_cancelled = job.status.reason == Reason.CANCELLED_BY_USER
    is_own = endpoint is not None and endpoint.owner is Ownership.OWN
    expires_in = _seconds_to_expiry(job, now)
    finding = Finished()
    if job.spec.serve is not None and not is_cancelled and job.status.serving is not None and seen.unreadable is None:
        if endpoint is not None and (is_own or endpoint.has_version):
            finding = Finished(endpoint)
        else:
            finding = Finished(is_lost=True, replaced_by=seen.service)
    return Plan(
        finding,
        delete_jobs=seen.unfinished_jobs,
        delete_service=seen.service if is_cancelled and is_own else None,
        delete_self=expires_in is not None and expires_in <= 0,
        requeue_after=expires_in,
    )


def _seconds_to_expiry(job: FinetuneJob, now: datetime) -> float | None:
    ttl, completed = job.spec.ttl_seconds_after_finished, job.status.completion_time
    if ttl is None or completed is None:
        return None
    return max(0.0, (completed + timedelta(seconds=ttl) - now).total_seconds())
