"""Changes of a FinetuneJob's status: each step of a decision returns some, and `report` merges them."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from typing import Final, TypedDict

from finetune_api.conditions import ConditionType
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import (
    AdapterStatus,
    CheckpointStatus,
    FailureStatus,
    MetricStatus,
    ProgressStatus,
    ServingStatus,
)
from finetune_api.v1alpha1.job.status import InitialAdapterStatus, Usage
from finetune_operator.kubernetes_types import Truth
from finetune_operator.reconcile.events import EventDraft
from finetune_operator.reconcile.job.findings import JobEnd

MAX_MESSAGE: Final = 4000
"""Characters of a message in status; the schema allows 4096."""


class When(Enum):
    """Precondition of a condition's change, checked against the conditions that were merged before it."""

    ALWAYS = auto()
    PRESENT = auto()
    """The status has a condition of this type."""
    ABSENT = auto()
    """The status has no condition of this type."""
    NOT_TRUE = auto()
    """The condition is absent, False or Unknown."""
    OTHER_REASON = auto()
    """The status has a condition of this type with another reason."""


@dataclass(frozen=True)
class ConditionChange:
    """A condition to set."""

    kind: ConditionType
    status: Truth
    reason: Reason
    message: str = ""
    when: When = When.ALWAYS


class StatusFields(TypedDict, total=False):
    """Fields of the status that a step may set, besides its conditions."""

    attempt: int
    failed_attempts: int
    start_time: datetime | None
    initial_adapter: InitialAdapterStatus
    progress: ProgressStatus
    metrics: list[MetricStatus]
    checkpoints: list[CheckpointStatus]
    usage: Usage
    last_failure: FailureStatus
    adapter: AdapterStatus
    serving: ServingStatus


@dataclass(frozen=True)
class StatusChanges:
    """Conditions in the order in which they are merged, fields, and Events to post once the status is written."""

    conditions: tuple[ConditionChange, ...] = ()
    fields: StatusFields = field(default_factory=lambda: StatusFields())
    events: tuple[EventDraft, ...] = ()
    is_end: bool = False
    """The job ends for good: completionTime is set."""


def combine(*steps: StatusChanges) -> StatusChanges:
    """Join the changes of several steps; a later step wins."""
    fields = StatusFields()
    for step in steps:
        fields.update(step.fields)
    return StatusChanges(
        conditions=tuple(change for step in steps for change in step.conditions),
        fields=fields,
        events=tuple(event for step in steps for event in step.events),
        is_end=any(step.is_end for step in steps),
    )


def ended(end: JobEnd) -> StatusChanges:
    """End the job for good, with success or failure."""
    if end.is_success:
        success = ConditionChange(ConditionType.SUCCEEDED, "True", end.reason, end.message)
        return StatusChanges((success,), events=(EventDraft("Succeeded", end.message),), is_end=True)
    refusal = ConditionChange(ConditionType.VALIDATED, "False", end.reason, end.message)
    failure = ConditionChange(ConditionType.FAILED, "True", end.reason, end.message)
    conditions = (*([refusal] if end.is_invalid else []), not_running(end.reason), failure)
    event = EventDraft(end.reason, end.message, is_warning=end.reason != Reason.CANCELLED_BY_USER)
    return StatusChanges(conditions, events=(event,), is_end=True)


def not_running(reason: Reason) -> ConditionChange:
    """Set Running to False, if the job ever ran."""
    return ConditionChange(ConditionType.RUNNING, "False", reason, when=When.PRESENT)


def resumed() -> ConditionChange:
    """Set Suspended to False, if the job ever was suspended: an attempt exists that was made after it."""
    return ConditionChange(ConditionType.SUSPENDED, "False", Reason.RESUMED, when=When.OTHER_REASON)
