"""Objects that the schema accepts and our models do not: they get a condition and an Event, and no other object is disturbed.

They exist after an upgrade or rollback of the CRDs, or where somebody removed the validation. Their children are treated alike:
a job with a pod that cannot be read gets an Event, and waits.
"""

import logging
from datetime import UTC, datetime

from pydantic import ValidationError

from finetune_api.conditions import TERMINAL_PHASES, ConditionType, Phase
from finetune_api.reasons import Reason
from finetune_api.v1alpha1.common import metav1_time
from finetune_api.validation import UNKNOWN, problems_of, summary
from finetune_operator.errors import ClusterError, UnreadableObjectError
from finetune_operator.io.cluster import FINETUNE_JOBS, Resource
from finetune_operator.kubernetes_types import Raw
from finetune_operator.reconcile.context import Context, ReconcileResult
from finetune_operator.reconcile.events import EventDraft
from finetune_operator.reconcile.reporting import post_event

logger = logging.getLogger(__name__)

MAX_REMEMBERED = 10_000
"""Versions of malformed objects that are remembered; then the memory starts anew."""
UNREADABLE_SECONDS = 15.0
"""Pause before an object is reconciled again that has a child which cannot be read."""
CHILD_UNREADABLE = "ChildUnreadable"
"""Reason of the Event about such a child."""


async def report_malformed(context: Context, resource: Resource, raw: Raw, problem: ValidationError) -> None:
    """Log the object and post an Event once per version, and write a condition if its status can take one."""
    metadata = raw["metadata"]
    message = describe(problem, raw)
    told = f"{metadata['uid']}/{metadata.get('generation', 0)}/{message}"
    if not _is_new(context, told):
        return
    name = f"{resource.plural} {metadata['namespace']}/{metadata['name']}"
    logger.error("malformed object is ignored", extra={"object": name, "problem": message})
    status = build_malformed_status(resource, raw, message, datetime.now(UTC))
    if status is not None:
        try:
            await context.cluster.patch_status(resource, metadata, status)
        except ClusterError as error:
            if error.is_conflict:
                context.reported.discard(told)
                raise
            # Its status cannot take a condition either; log and Event have said what there is to say.
            logger.warning("malformed object got no condition", extra={"object": name, "error": str(error)})
    await post_event(context, raw, resource.kind, EventDraft(Reason.SPEC_INVALID, message, is_warning=True))


async def report_unreadable_child(
    context: Context, resource: Resource, raw: Raw, problem: UnreadableObjectError
) -> ReconcileResult:
    """Log a child that cannot be read, and post an Event about its owner, once; the owner waits until it is mended."""
    metadata = raw["metadata"]
    if _is_new(context, f"{metadata['uid']}/{problem.message}"):
        name = f"{resource.plural} {metadata['namespace']}/{metadata['name']}"
        logger.error("object waits: a child cannot be read", extra={"object": name, "problem": problem.message})
        message = f"{problem.message}. Nothing is done for this {resource.kind} until it is mended or deleted."
        await post_event(context, raw, resource.kind, EventDraft(CHILD_UNREADABLE, message, is_warning=True))
    return ReconcileResult(requeue_after=UNREADABLE_SECONDS)


def _is_new(context: Context, report: str) -> bool:
    """Remember a report; False if it was made already."""
    if report in context.reported:
        return False
    if len(context.reported) >= MAX_REMEMBERED:
        context.reported.clear()
    context.reported.add(report)
    return True


def describe(problem: ValidationError, document: object = UNKNOWN) -> str:
    """Return the first problems as field, expected and found."""
    return summary(problems_of(problem, document=document))


def build_malformed_status(resource: Resource, raw: Raw, message: str, now: datetime) -> Raw | None:
    """Build a status patch with SpecInvalid; None if the status has conditions or an end, which are worth more than ours."""
    old = raw.get("status")
    if isinstance(old, dict) and (old.get("conditions") or old.get("phase") in [*TERMINAL_PHASES]):
        return None
    kind = ConditionType.VALIDATED if resource == FINETUNE_JOBS else ConditionType.READY
    condition = {
        "type": kind,
        "status": "False",
        "reason": Reason.SPEC_INVALID,
        "message": message,
        "lastTransitionTime": metav1_time(now),
        "observedGeneration": _generation(raw),
    }
    status: Raw = {"conditions": [condition], "phase": Phase.PENDING}
    if resource == FINETUNE_JOBS:
        status |= {"reason": Reason.SPEC_INVALID, "message": message[:4000]}
    return status


def _generation(raw: Raw) -> int:
    generation = raw["metadata"].get("generation", 0)
    return generation if isinstance(generation, int) else 0
