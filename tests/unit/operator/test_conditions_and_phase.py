"""Conditions move only when their truth does; the phase follows from them."""

from datetime import timedelta

import pytest

from finetune_api.conditions import ConditionType, Phase
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import Condition
from finetune_operator.reconcile.conditions import find_condition, set_condition
from finetune_operator.reconcile.job.phase import derive_phase
from support.objects.operator_objects import NOW

LATER = NOW + timedelta(hours=1)
RUNNING = ConditionType.RUNNING


def conditions(*given: tuple[ConditionType, str, Reason]) -> list[Condition]:
    result: list[Condition] = []
    for kind, status, reason in given:
        result = set_condition(result, kind, status, reason, "", 1, NOW)  # type: ignore[arg-type]
    return result


def test_the_transition_time_moves_only_with_the_status() -> None:
    first = conditions((RUNNING, "False", Reason.WAITING_FOR_POD))
    reworded = set_condition(first, RUNNING, "False", Reason.RETRYING, "again", 2, LATER)
    assert reworded[0].last_transition_time == NOW
    assert (reworded[0].reason, reworded[0].observed_generation) == ("Retrying", 2)
    flipped = set_condition(reworded, RUNNING, "True", Reason.TRAINING, "", 2, LATER)
    assert flipped[0].last_transition_time == LATER


def test_nothing_new_is_the_very_same_list() -> None:
    first = conditions((RUNNING, "True", Reason.TRAINING))
    assert set_condition(first, RUNNING, "True", Reason.TRAINING, "", 1, LATER) is first


@pytest.mark.parametrize("kind", [ConditionType.SUCCEEDED, ConditionType.FAILED])
def test_the_end_cannot_be_taken_back(kind: ConditionType) -> None:
    ended = conditions((kind, "True", Reason.COMPLETED))
    assert set_condition(ended, kind, "False", Reason.RETRYING, "", 2, LATER) is ended
    assert set_condition(ended, kind, "True", Reason.RETRYING, "other", 2, LATER) is ended


def test_the_order_of_conditions_is_kept() -> None:
    both = conditions((ConditionType.VALIDATED, "True", Reason.ACCEPTED), (RUNNING, "True", Reason.TRAINING))
    changed = set_condition(both, ConditionType.VALIDATED, "False", Reason.SPEC_INVALID, "", 1, NOW)
    assert [c.type for c in changed] == ["Validated", "Running"]
    assert find_condition(changed, ConditionType.SUCCEEDED) is None


C = ConditionType
PUBLISHED = (C.ADAPTER_PUBLISHED, "True", Reason.TRAINED)


@pytest.mark.parametrize(
    ("given", "phase"),
    [
        ([], Phase.PENDING),
        ([(C.VALIDATED, "True", Reason.ACCEPTED)], Phase.PENDING),
        ([(C.VALIDATED, "Unknown", Reason.VALIDATING)], Phase.PENDING),
        ([(C.SCHEDULED, "True", Reason.SCHEDULED), (C.RUNNING, "False", Reason.VALIDATING)], Phase.VALIDATING),
        ([(C.SCHEDULED, "False", Reason.QUOTA_PENDING)], Phase.QUEUED),
        ([(C.SCHEDULED, "False", Reason.UNSCHEDULABLE)], Phase.SCHEDULING),
        ([(C.SCHEDULED, "True", Reason.SCHEDULED)], Phase.SCHEDULING),
        ([(C.SCHEDULED, "True", Reason.SCHEDULED), (C.RUNNING, "True", Reason.TRAINING)], Phase.RUNNING),
        ([(C.RUNNING, "Unknown", Reason.NODE_LOST)], Phase.RUNNING),
        ([(C.SCHEDULED, "True", Reason.SCHEDULED), (C.RUNNING, "False", Reason.RETRYING)], Phase.RETRYING),
        ([(C.RUNNING, "True", Reason.TRAINING), (C.SUSPENDED, "False", Reason.SUSPENDING)], Phase.SUSPENDING),
        ([(C.RUNNING, "False", Reason.SUSPENDED), (C.SUSPENDED, "True", Reason.SUSPENDED)], Phase.SUSPENDED),
        ([(C.RUNNING, "True", Reason.TRAINING), (C.SUSPENDED, "False", Reason.RESUMED)], Phase.RUNNING),
        ([PUBLISHED], Phase.PUBLISHING),
        ([PUBLISHED, (C.SERVING_READY, "False", Reason.ROLLING_OUT)], Phase.DEPLOYING),
        ([PUBLISHED, (C.SERVING_READY, "True", Reason.ENDPOINT_READY)], Phase.VERIFYING),
        ([PUBLISHED, (C.SUCCEEDED, "True", Reason.COMPLETED)], Phase.SUCCEEDED),
        ([(C.FAILED, "True", Reason.DATASET_INVALID)], Phase.FAILED),
        ([(C.FAILED, "True", Reason.CANCELLED_BY_USER)], Phase.CANCELLED),
    ],
)
def test_the_phase_follows_from_the_conditions(given: list[tuple[C, str, Reason]], phase: Phase) -> None:
    assert derive_phase(conditions(*given))[0] == phase
