"""Pure helpers for metav1 conditions. lastTransitionTime moves only when `status` does; Succeeded and Failed never go back."""

from datetime import datetime

from finetune_api.conditions import ConditionType
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import Condition
from finetune_operator.kubernetes_types import Truth

ABSORBING = frozenset({ConditionType.SUCCEEDED, ConditionType.FAILED})
"""Conditions that stay True once they are True."""


def find_condition(conditions: list[Condition], kind: ConditionType) -> Condition | None:
    """Return the condition of this type, if it was ever set."""
    return next((c for c in conditions if c.type == kind), None)


def is_true(conditions: list[Condition], kind: ConditionType) -> bool:
    """Tell whether the condition is present and True."""
    found = find_condition(conditions, kind)
    return found is not None and found.status == "True"


def set_condition(
    conditions: list[Condition],
    kind: ConditionType,
    status: Truth,
    reason: Reason,
    message: str,
    generation: int,
    now: datetime,
) -> list[Condition]:
    """Return a new list with this condition; the very same list if nothing changes."""
    old = find_condition(conditions, kind)
    if kind in ABSORBING and old is not None and old.status == "True":
        return conditions
    since = old.last_transition_time if old is not None and old.status == status else now.replace(microsecond=0)
    new = Condition(
        type=kind,
        status=status,
        observed_generation=generation,
        last_transition_time=since,
        reason=reason,
        message=message,
    )
    if new == old:
        return conditions
    if old is None:
        return [*conditions, new]
    return [new if c.type == kind else c for c in conditions]


def known_reason(text: str) -> Reason:
    """Return a reason from another object's status; one of a newer release becomes the most general one."""
    try:
        return Reason(text)
    except ValueError:
        return Reason.ROLLING_OUT
