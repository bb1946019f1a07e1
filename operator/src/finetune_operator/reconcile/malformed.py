"""Objects that the schema accepts and our models do not: they get a condition, and no other object is disturbed.

They exist after an upgrade or rollback of the CRDs, or where somebody removed the validation.
"""

import logging
from datetime import UTC, datetime

from pydantic import ValidationError

from finetune_api.conditions import ConditionType, Phase
from finetune_api.reasons import Reason
from finetune_api.v1alpha1.common import metav1_time
from finetune_api.validation import UNKNOWN, problems_of, summary
from finetune_operator.errors import ClusterError
from finetune_operator.io.cluster import FINETUNE_JOBS, Resource
from finetune_operator.kubernetes_types import Raw
from finetune_operator.reconcile.context import Context

logger = logging.getLogger(__name__)

MAX_REMEMBERED = 10_000
"""Versions of malformed objects that are remembered; then the memory starts anew."""


async def report_malformed(context: Context, resource: Resource, raw: Raw, problem: ValidationError) -> None:
    """Log the object once per version, and write a condition if its status can take one."""
    metadata = raw["metadata"]
    version = f"{metadata['uid']}/{metadata.get('generation', 0)}"
    if version in context.reported:
        return
    if len(context.reported) >= MAX_REMEMBERED:
        context.reported.clear()
    context.reported.add(version)
    message = describe(problem, raw)
    name = f"{resource.plural} {metadata['namespace']}/{metadata['name']}"
    logger.error("malformed object is ignored", extra={"object": name, "problem": message})
    status = build_malformed_status(resource, raw, message, datetime.now(UTC))
    if status is None:
        return
    try:
        await context.cluster.patch_status(resource, metadata, status)
    except ClusterError as error:
        # Its status cannot take a condition either; the log has said what there is to say.
        logger.warning("malformed object got no condition", extra={"object": name, "error": str(error)})


def describe(problem: ValidationError, document: object = UNKNOWN) -> str:
    """Return the first problems as field, expected and found."""
    return summary(problems_of(problem, document=document))


def build_malformed_status(resource: Resource, raw: Raw, message: str, now: datetime) -> Raw | None:
    """Build a status patch with SpecInvalid; None if the status has conditions, which may be worth more than ours."""
    old = raw.get("status")
    if isinstance(old, dict) and old.get("conditions"):
        return None
    kind = ConditionType.VALIDATED if resource == FINETUNE_JOBS else ConditionType.READY
    condition = {
        "type": kind,
        "status": "False",
        "reason": Reason.SPEC_INVALID,
        "message": message,
        "lastTransitionTime": metav1_time(now),
        "observedGeneration": raw["metadata"].get("generation", 0),
    }
    status: Raw = {"conditions": [condition], "phase": Phase.PENDING}
    if resource == FINETUNE_JOBS:
        status |= {"reason": Reason.SPEC_INVALID, "message": message[:4000]}
    return status
