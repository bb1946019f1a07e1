"""A FinetuneJob's status while `decide` builds it. Local to one decision; what leaves is an immutable Plan."""

from datetime import datetime
from typing import Any

from finetune_api.reasons import ConditionType, Reason
from finetune_api.v1alpha1 import FinetuneJob, FinetuneJobStatus
from finetune_operator.reconcile.conditions import Truth, find_condition, set_condition
from finetune_operator.reconcile.job.phase import derive_phase
from finetune_operator.reconcile.plan import EventDraft, Plan

MAX_MESSAGE = 4000
"""Characters of a message in status; the schema allows 4096."""


class Draft:
    """Collects conditions, fields and events; `plan` derives phase, reason and message from the conditions."""

    def __init__(self, job: FinetuneJob, now: datetime) -> None:
        self.job = job
        self.now = now
        self.status = job.status
        self._events: list[EventDraft] = []

    def update(self, **fields: Any) -> None:
        """Set fields of the status by their Python names."""
        self.status = self.status.model_copy(update=fields)

    def condition(self, kind: ConditionType, status: Truth, reason: Reason, message: str = "") -> None:
        """Set one condition."""
        conditions = set_condition(
            self.status.conditions,
            kind,
            status,
            reason,
            message[:MAX_MESSAGE],
            self.job.metadata.generation,
            self.now,
        )
        self.update(conditions=conditions)

    def event(self, reason: str, message: str, *, is_warning: bool = False) -> None:
        """Tell people, once the status is written."""
        self._events.append(EventDraft(reason, message, is_warning))

    def stop_running(self, reason: Reason, message: str = "") -> None:
        """Running becomes False, if the job ever ran."""
        if find_condition(self.status.conditions, ConditionType.RUNNING) is not None:
            self.condition(ConditionType.RUNNING, "False", reason, message)

    def resume(self) -> None:
        """Suspended becomes False, if the job ever was; an attempt exists that was made after it."""
        suspended = find_condition(self.status.conditions, ConditionType.SUSPENDED)
        if suspended is not None and suspended.reason != Reason.RESUMED:
            self.condition(ConditionType.SUSPENDED, "False", Reason.RESUMED)

    def fail(self, reason: Reason, message: str) -> None:
        """End the job for good."""
        self.stop_running(reason)
        self.condition(ConditionType.FAILED, "True", reason, message)
        self._complete()
        self.event(reason, message, is_warning=reason != Reason.CANCELLED_BY_USER)

    def succeed(self, message: str) -> None:
        """End the job for good, well."""
        self.condition(ConditionType.SUCCEEDED, "True", Reason.COMPLETED, message)
        self._complete()
        self.event("Succeeded", message)

    def plan(self, **actions: Any) -> Plan:
        """The plan that reports this status."""
        phase, why = derive_phase(self.status.conditions)
        status: FinetuneJobStatus = self.status.model_copy(
            update={
                "observed_generation": self.job.metadata.generation,
                "phase": phase,
                "reason": why.reason if why else None,
                "message": (why.message or None) if why else None,
            }
        )
        return Plan(status=status, events=tuple(self._events), **actions)

    def _complete(self) -> None:
        self.update(completion_time=self.status.completion_time or self.now.replace(microsecond=0))
