"""The next plan for a FinetuneJob: a pure function of the object, its children and the clock.

Read `decide` as the table of contents: each branch is one situation of a job, in order of precedence, and has a module of
its own. `report` makes the status from the plan once its actions were taken.
"""

from datetime import datetime, timedelta

from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import FinetuneJob
from finetune_operator.reconcile.job.attempt_failure import record_failure, unusable_adapter
from finetune_operator.reconcile.job.attempt_follow import follow_attempt
from finetune_operator.reconcile.job.attempt_start import LIVE_TRAINER_SECONDS, start_attempt
from finetune_operator.reconcile.job.attempts import Attempt, adapter_status, find_attempt, published_message
from finetune_operator.reconcile.job.endpoint import read_endpoint
from finetune_operator.reconcile.job.findings import JobEnd, Published, Suspending
from finetune_operator.reconcile.job.finished import keep_finished
from finetune_operator.reconcile.job.phase import is_terminal
from finetune_operator.reconcile.job.plan import Observed, Plan
from finetune_operator.reconcile.job.serving import serve_adapter
from finetune_operator.settings import Settings


def decide(job: FinetuneJob, seen: Observed, now: datetime, settings: Settings) -> Plan:
    """Return the next plan for this job. Never raises; the same input gives the same plan."""
    if job.metadata.deletion_timestamp is not None:
        # Owner references take care of everything below.
        return Plan()
    endpoint = read_endpoint(job, seen.service, now) if seen.service is not None else None
    if is_terminal(job.status):
        return keep_finished(job, seen, endpoint, now)
    if job.status.adapter is not None:
        return serve_adapter(job, seen, endpoint, now)
    attempt = find_attempt(job.status, seen.children, seen.pods)
    end = attempt.end
    if end is not None and end.is_success:
        adapter = adapter_status(job, end.outcome)
        if end.outcome is None or adapter is None:
            return record_failure(job, attempt, unusable_adapter(end), settings)
        return _publish(job, Published(attempt, end, end.outcome, adapter))
    if job.spec.cancel:
        return Plan(end=JobEnd(Reason.CANCELLED_BY_USER, "The job was cancelled with spec.cancel."))
    if _is_past_deadline(job, now):
        limit = job.spec.policy.active_deadline_seconds
        message = f"No adapter {limit} s after the job's creation, the limit of spec.policy.activeDeadlineSeconds."
        return Plan(end=JobEnd(Reason.DEADLINE_EXCEEDED, message))
    if end is not None and not (job.spec.suspend and end.is_interruption):
        return record_failure(job, attempt, end, settings)
    if job.spec.suspend:
        return _suspend(attempt, seen)
    if attempt.is_open:
        return follow_attempt(job, attempt, seen, now, settings)
    return start_attempt(job, attempt, seen, now, settings)


def _publish(job: FinetuneJob, finding: Published) -> Plan:
    """Publish the adapter; a job without an endpoint has then succeeded."""
    is_last = job.spec.serve is None
    return Plan(
        finding, end=JobEnd(Reason.COMPLETED, published_message(finding.adapter), is_success=True) if is_last else None
    )


def _suspend(attempt: Attempt, seen: Observed) -> Plan:
    """Stop the attempt; its pod has the grace period to commit a checkpoint."""
    if seen.has_live_trainer:
        finding = Suspending(attempt, is_stopped=False)
        return Plan(finding, delete_jobs=seen.unfinished_jobs, requeue_after=LIVE_TRAINER_SECONDS)
    return Plan(Suspending(attempt, is_stopped=True))


def _is_past_deadline(job: FinetuneJob, now: datetime) -> bool:
    limit, created = job.spec.policy.active_deadline_seconds, job.metadata.creation_timestamp
    return limit is not None and created is not None and now >= created + timedelta(seconds=limit)
