"""What should happen to a FinetuneJob now: a pure function of the object, its children and the clock.

Read `decide` as the table of contents; each branch is one situation a job can be in, in order of precedence.
"""

from datetime import datetime, timedelta
from typing import Final

from finetune_api.contract import DEFAULT_ADAPTERS_CLAIM
from finetune_api.reasons import ConditionType, Reason
from finetune_api.sources import parse_source
from finetune_api.v1alpha1 import FinetuneJob
from finetune_operator.errors import StalledError
from finetune_operator.reconcile.conditions import find_condition
from finetune_operator.reconcile.job.attempt_outcome import AttemptEnd
from finetune_operator.reconcile.job.attempt_status import mark_validated, report_attempt, report_reductions
from finetune_operator.reconcile.job.attempts import (
    Attempt,
    adapter_status,
    add_usage,
    checkpoint_statuses,
    failure_status,
    find_attempt,
    metric_statuses,
    retry_delay,
    retry_due,
)
from finetune_operator.reconcile.job.continuation import awaited_job, decide_continuation
from finetune_operator.reconcile.job.draft import Draft
from finetune_operator.reconcile.job.phase import is_terminal
from finetune_operator.reconcile.job.progress_report import finished_progress
from finetune_operator.reconcile.job.serving import (
    decide_endpoint,
    decide_refused,
    has_version,
    is_owned,
    mirror_endpoint,
    report_loss,
)
from finetune_operator.reconcile.plan import Observed, Plan
from finetune_operator.reconcile.views import ChildJobView
from finetune_operator.resources.claim import build_adapters_claim
from finetune_operator.resources.training_job import build_training_job
from finetune_operator.settings import Settings

LIVE_TRAINER_SECONDS: Final = 10.0
"""How often to look at a pod that is being stopped, should its events be lost."""


def decide(job: FinetuneJob, seen: Observed, now: datetime, settings: Settings) -> Plan:
    """The next plan for this job. Never raises; the same input gives the same plan."""
    draft = Draft(job, now)
    if job.metadata.deletion_timestamp is not None:
        # Owner references take care of everything below.
        return Plan(status=job.status)
    if is_terminal(job.status):
        return _decide_finished(draft, seen)
    if job.status.adapter is not None:
        return decide_endpoint(draft, seen)
    attempt = find_attempt(job.status, seen)
    end = attempt.end
    if end is not None and end.is_success:
        return _publish(draft, attempt, end, settings)
    if job.spec.cancel:
        return _fail(draft, Reason.CANCELLED_BY_USER, "The job was cancelled with spec.cancel.")
    if _is_past_deadline(job, now):
        limit = job.spec.policy.active_deadline_seconds
        return _fail(draft, Reason.DEADLINE_EXCEEDED, f"There is no adapter {limit} s after the job's creation.")
    if end is not None and not (job.spec.suspend and end.is_interruption):
        return _record_failure(draft, attempt, end, settings)
    if job.spec.suspend:
        return _suspend(draft, attempt, seen)
    if attempt.is_open:
        return report_attempt(draft, attempt, seen, settings)
    return _start_attempt(draft, attempt, seen, settings)


def _decide_finished(draft: Draft, seen: Observed) -> Plan:
    """Nothing is ever started again. What still runs is stopped, and the endpoint's state is kept true."""
    job = draft.job
    is_cancelled = job.status.reason == Reason.CANCELLED_BY_USER
    service = seen.service
    is_own = service is not None and is_owned(service, job)
    is_served = is_own or (
        service is not None and job.status.adapter is not None and has_version(service, job.status.adapter)
    )
    serving = job.status.serving
    if job.spec.serve is not None and not is_cancelled and serving is not None and seen.unreadable is None:
        if service is not None and is_served:
            mirror_endpoint(draft, service)
        else:
            report_loss(draft, serving, service)
    expires_in = _seconds_to_expiry(job, draft.now)
    return draft.plan(
        delete_jobs=_unfinished(seen),
        delete_service=service if is_cancelled and is_own else None,
        delete_self=expires_in is not None and expires_in <= 0,
        requeue_after=expires_in,
    )


def _seconds_to_expiry(job: FinetuneJob, now: datetime) -> float | None:
    ttl, completed = job.spec.ttl_seconds_after_finished, job.status.completion_time
    if ttl is None or completed is None:
        return None
    return max(0.0, (completed + timedelta(seconds=ttl) - now).total_seconds())


def _publish(draft: Draft, attempt: Attempt, end: AttemptEnd, settings: Settings) -> Plan:
    """Training succeeded: the adapter goes into status; without an endpoint the job is done."""
    job, outcome = draft.job, end.outcome
    adapter = adapter_status(job, outcome) if outcome is not None else None
    if outcome is None or adapter is None:
        crash = AttemptEnd(
            Reason.TRAINER_CRASHED,
            "The trainer reported an adapter whose path or digest cannot be used.",
            is_retryable=True,
            pod=end.pod,
            exit_code=end.exit_code,
            started_at=end.started_at,
            finished_at=end.finished_at,
        )
        return _record_failure(draft, attempt, crash, settings)
    if attempt.pod is not None:
        mark_validated(draft, attempt.pod)
    draft.condition(ConditionType.SCHEDULED, "True", Reason.SCHEDULED)
    draft.condition(ConditionType.RUNNING, "False", Reason.TRAINED, end.message)
    draft.resume()
    message = f"Adapter {adapter.name} is at {adapter.uri} ({adapter.digest[:19]}…)."
    draft.condition(ConditionType.ADAPTER_PUBLISHED, "True", Reason.TRAINED, message)
    report_reductions(draft, outcome.passes)
    draft.update(
        attempt=attempt.number,
        start_time=draft.status.start_time or end.started_at,
        adapter=adapter,
        metrics=metric_statuses(outcome),
        progress=finished_progress(draft.status.progress, outcome),
        # The trainer removes them once the adapter is committed.
        checkpoints=[],
        usage=add_usage(draft.status.usage, end),
    )
    if find_condition(draft.status.conditions, ConditionType.CHECKPOINT_AVAILABLE) is not None:
        draft.condition(ConditionType.CHECKPOINT_AVAILABLE, "False", Reason.TRAINED)
    if job.spec.serve is None:
        draft.succeed(message)
    else:
        draft.event("AdapterPublished", message)
    return draft.plan()


def _record_failure(draft: Draft, attempt: Attempt, end: AttemptEnd, settings: Settings) -> Plan:
    """Close an attempt that failed or was interrupted: counted and explained before another one is made."""
    job, status = draft.job, draft.status
    failed = status.failed_attempts + (0 if end.is_interruption else 1)
    if attempt.pod is not None and attempt.pod.started_at is not None:
        mark_validated(draft, attempt.pod)
    elif end.is_validation and not end.is_retryable:
        draft.condition(ConditionType.VALIDATED, "False", end.reason, end.message)
    if not job.spec.suspend:
        draft.resume()
    draft.update(
        attempt=attempt.number,
        failed_attempts=failed,
        last_failure=failure_status(attempt, end, draft.now),
        start_time=status.start_time or end.started_at,
        checkpoints=checkpoint_statuses(job, end.outcome.checkpoint_step if end.outcome else None),
        usage=add_usage(status.usage, end),
    )
    _note_checkpoint(draft)
    if not end.is_retryable:
        return _fail(draft, end.reason, end.message)
    if not end.is_interruption and failed >= job.spec.policy.max_attempts:
        message = f"{failed} of {failed} attempts failed; the last with {end.reason}: {end.message}"
        return _fail(draft, Reason.ATTEMPTS_EXHAUSTED, message)
    delay = retry_delay(draft.status, settings.retry_seconds)
    message = f"Attempt {attempt.number} ended with {end.reason}; the next starts {delay:g} s later. {end.message}"
    draft.condition(ConditionType.RUNNING, "False", Reason.RETRYING, message)
    draft.event("Retrying", message, is_warning=True)
    return draft.plan(requeue_after=delay)


def _suspend(draft: Draft, attempt: Attempt, seen: Observed) -> Plan:
    """Stop what runs; when nothing is left, say so. The pod has its grace period to commit a checkpoint."""
    draft.update(attempt=max(draft.status.attempt, attempt.number))
    if seen.has_live_trainer:
        message = "spec.suspend is true; the training pod is saving a checkpoint."
        draft.condition(ConditionType.SUSPENDED, "False", Reason.SUSPENDING, message)
        return draft.plan(delete_jobs=_unfinished(seen), requeue_after=LIVE_TRAINER_SECONDS)
    if attempt.end is not None:
        # Accounted for once: Suspended=True, below, closes the attempt.
        outcome = attempt.end.outcome
        draft.update(
            checkpoints=checkpoint_statuses(draft.job, outcome.checkpoint_step if outcome else None),
            usage=add_usage(draft.status.usage, attempt.end),
        )
        _note_checkpoint(draft)
    draft.stop_running(Reason.SUSPENDED)
    draft.condition(ConditionType.SUSPENDED, "True", Reason.SUSPENDED, "Set spec.suspend to false to go on.")
    return draft.plan()


def _start_attempt(draft: Draft, attempt: Attempt, seen: Observed, settings: Settings) -> Plan:
    """Make the next attempt's Job, once nothing of the one before is alive. Reports nothing: the next pass does."""
    job = draft.job
    if seen.has_live_trainer:
        return Plan(status=job.status, requeue_after=LIVE_TRAINER_SECONDS)
    due = retry_due(job.status, settings.retry_seconds)
    if due is not None and due > draft.now:
        return Plan(status=job.status, requeue_after=(due - draft.now).total_seconds())
    if (earlier := awaited_job(job)) is not None:
        return decide_continuation(draft, earlier, seen)
    if seen.conflict is not None:
        message = f"{seen.conflict} exists in namespace {job.metadata.namespace} and belongs to somebody else."
        return _fail(draft, Reason.CHILD_CONFLICT, message)
    if seen.refusal is not None:
        return decide_refused(draft, seen.refusal, ConditionType.SCHEDULED)
    try:
        _require_claims(job, seen)
        manifest = build_training_job(job, attempt.number + 1, settings)
    except StalledError as problem:
        draft.condition(ConditionType.VALIDATED, "False", problem.reason, problem.message)
        return _fail(draft, problem.reason, problem.message)
    if seen.claims.get(job.spec.output.claim) is False:
        return Plan(status=job.status, create=(build_adapters_claim(job.metadata.namespace, settings), manifest))
    return Plan(status=job.status, create=(manifest,))


def _require_claims(job: FinetuneJob, seen: Observed) -> None:
    """Raise StalledError for a claim that the spec names and the namespace does not have: its pod would wait mute."""
    spec, namespace = job.spec, job.metadata.namespace
    wanted = [
        ("spec.model.source", spec.model.source, Reason.MODEL_NOT_FOUND),
        ("spec.dataset.source", spec.dataset.source, Reason.DATASET_NOT_FOUND),
        ("spec.evaluation.source", spec.evaluation.source if spec.evaluation else None, Reason.DATASET_NOT_FOUND),
        ("spec.continueFrom", job.initial_adapter_uri, Reason.ADAPTER_NOT_FOUND),
    ]
    for field, uri, reason in wanted:
        source = parse_source(uri) if uri else None
        if source is not None and source.scheme == "pvc" and seen.claims.get(source.name) is False:
            raise StalledError(
                reason, f"{field}: there is no PersistentVolumeClaim {source.name} in namespace {namespace}."
            )
    claim = spec.output.claim
    if claim != DEFAULT_ADAPTERS_CLAIM and seen.claims.get(claim) is False:
        raise StalledError(
            Reason.SPEC_INVALID,
            f"spec.output.claim: there is no PersistentVolumeClaim {claim} in namespace {namespace}; create it, "
            f"or leave the field out to use {DEFAULT_ADAPTERS_CLAIM}.",
        )


def _fail(draft: Draft, reason: Reason, message: str) -> Plan:
    """End the job. A trainer that still runs is stopped by the next pass, which finds the job finished."""
    draft.fail(reason, message)
    return draft.plan()


def _is_past_deadline(job: FinetuneJob, now: datetime) -> bool:
    limit, created = job.spec.policy.active_deadline_seconds, job.metadata.creation_timestamp
    return limit is not None and created is not None and now >= created + timedelta(seconds=limit)


def _note_checkpoint(draft: Draft) -> None:
    if not draft.status.checkpoints:
        return
    if find_condition(draft.status.conditions, ConditionType.CHECKPOINT_AVAILABLE) is None:
        draft.condition(ConditionType.CHECKPOINT_AVAILABLE, "True", Reason.TRAINING, "An attempt can be resumed.")


def _unfinished(seen: Observed) -> tuple[ChildJobView, ...]:
    """Jobs to stop. One whose pod has ended is about to finish by itself, unless Kueue holds it; it stays, as evidence."""
    ended = {pod.attempt for pod in seen.pods if pod.is_finished} - {p.attempt for p in seen.pods if not p.is_finished}
    alive = (c for c in seen.children if not c.is_finished and not c.is_deleting)
    return tuple(c for c in alive if c.is_suspended or c.attempt not in ended)
