"""The status of a FinetuneJob after a plan was carried out: a pure function of the plan and of what came of it.

The only place that merges: each description returns changes, and nobody reads a status that is half built.
"""

from datetime import datetime
from typing import Final

from finetune_api.conditions import ConditionType
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import Condition, FinetuneJob, FinetuneJobStatus
from finetune_operator.reconcile.conditions import find_condition, set_condition
from finetune_operator.reconcile.job.attempt_account import (
    describe_failure,
    describe_publication,
    describe_suspension,
)
from finetune_operator.reconcile.job.attempt_status import describe_attempt
from finetune_operator.reconcile.job.changes import (
    MAX_MESSAGE,
    ConditionChange,
    StatusChanges,
    When,
    combine,
    ended,
)
from finetune_operator.reconcile.job.endpoint_status import describe_finished, describe_serving
from finetune_operator.reconcile.job.findings import (
    AttemptFailed,
    Continuing,
    Finding,
    Finished,
    Following,
    JobEnd,
    Published,
    Serving,
    Suspending,
)
from finetune_operator.reconcile.job.phase import derive_phase
from finetune_operator.reconcile.job.plan import ActionOutcome, Plan, Refusal, Report
from finetune_operator.reconcile.job.validation import describe_continuation

REFUSED_CHILD_SECONDS: Final = 15.0
"""Pause before a child is offered again that a quota or policy forbade."""


def report(job: FinetuneJob, plan: Plan, outcome: ActionOutcome, now: datetime) -> Report:
    """Return the status to write: the plan's finding, or the obstacle that its actions met."""
    if outcome.conflict is not None:
        message = (
            f"{outcome.conflict} exists in namespace {job.metadata.namespace} and belongs to somebody else. "
            "Delete or rename it, then create the job again."
        )
        return _merged(job, ended(JobEnd(Reason.CHILD_CONFLICT, message)), None, now)
    if outcome.stalled is not None:
        return _merged(job, ended(outcome.stalled), None, now)
    if outcome.refusal is not None:
        return _report_refusal(job, plan, outcome.refusal, now)
    if plan.finding is None and plan.end is None:
        return Report(job.status, requeue_after=plan.requeue_after)
    steps = [
        *([describe(job, plan.finding, now)] if plan.finding is not None else []),
        *([ended(plan.end)] if plan.end is not None else []),
    ]
    return _merged(job, combine(*steps), plan.requeue_after, now)


def describe(job: FinetuneJob, finding: Finding, now: datetime) -> StatusChanges:
    """Describe a situation in terms of the status."""
    match finding:
        case Following():
            return describe_attempt(job, finding)
        case AttemptFailed():
            return describe_failure(job, finding, now)
        case Published():
            return describe_publication(job, finding)
        case Suspending():
            return describe_suspension(job, finding)
        case Continuing():
            return describe_continuation(finding)
        case Serving():
            return describe_serving(finding)
        case Finished():
            return describe_finished(job, finding)


def _report_refusal(job: FinetuneJob, plan: Plan, refusal: Refusal, now: datetime) -> Report:
    """Fail for good, or wait until a quota or policy changes; either way in the API server's words."""
    if refusal.is_final:
        return _merged(job, ended(JobEnd(Reason.SPEC_INVALID, refusal.message)), None, now)
    kind = ConditionType.SCHEDULED if plan.start is not None else ConditionType.SERVING_READY
    waiting = ConditionChange(kind, "False", Reason.QUOTA_PENDING, refusal.message)
    return _merged(job, StatusChanges((waiting,)), REFUSED_CHILD_SECONDS, now)


def _merged(job: FinetuneJob, changes: StatusChanges, requeue_after: float | None, now: datetime) -> Report:
    conditions = job.status.conditions
    for change in changes.conditions:
        conditions = _with_change(conditions, change, job.metadata.generation, now)
    phase, why = derive_phase(conditions)
    completed = job.status.completion_time
    if changes.is_end:
        completed = completed or now.replace(microsecond=0)
    status: FinetuneJobStatus = job.status.model_copy(
        update={
            **changes.fields,
            "conditions": conditions,
            "completion_time": completed,
            "observed_generation": job.metadata.generation,
            "phase": phase,
            "reason": why.reason if why else None,
            "message": (why.message or None) if why else None,
        }
    )
    return Report(status, changes.events, requeue_after)


def _with_change(
    conditions: list[Condition], change: ConditionChange, generation: int, now: datetime
) -> list[Condition]:
    if not _is_due(change, find_condition(conditions, change.kind)):
        return conditions
    message = change.message[:MAX_MESSAGE]
    return set_condition(conditions, change.kind, change.status, change.reason, message, generation, now)


def _is_due(change: ConditionChange, known: Condition | None) -> bool:
    match change.when:
        case When.ALWAYS:
            return True
        case When.PRESENT:
            return known is not None
        case When.ABSENT:
            return known is None
        case When.NOT_TRUE:
            return known is None or known.status != "True"
        case When.OTHER_REASON:
            return known is not None and known.reason != change.reason
