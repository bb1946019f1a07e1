"""Limits of what is written: the schema refuses a status that is longer, and delays that grow for ever help nobody."""

from typing import Any

import pytest

from finetune_api.outcome import Outcome
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import AdapterStatus, FinetuneJobStatus
from finetune_operator.reconcile.job.attempt_outcome import classify_pod
from finetune_operator.reconcile.job.attempts import adapter_status, retry_delay
from finetune_operator.reconcile.job.plan import Observed
from support.objects.decisions import decide_job
from support.objects.operator_objects import UID, a_child, a_failure, a_finished_pod, a_job, a_success


@pytest.mark.parametrize(
    ("reason", "attempt", "failed", "seconds"),
    [
        (Reason.LOSS_DIVERGED, 1, 1, 5),
        (Reason.LOSS_DIVERGED, 2, 2, 10),
        (Reason.LOSS_DIVERGED, 9, 3, 20),
        (Reason.LOSS_DIVERGED, 7, 7, 300),
        (Reason.LOSS_DIVERGED, 5000, 5000, 300),
        # What status does not count yet.
        (Reason.LOSS_DIVERGED, 1, 0, 5),
        (Reason.PREEMPTED, 1, 0, 1),
        (Reason.PREEMPTED, 2, 0, 2),
        (Reason.PREEMPTED, 4, 2, 2),
        (Reason.PREEMPTED, 6, 0, 32),
        (Reason.PREEMPTED, 7, 0, 60),
        (Reason.PREEMPTED, 5000, 0, 60),
        (Reason.PREEMPTED, 1, 1, 1),
    ],
)
def test_delays_double_up_to_a_limit_and_interruptions_have_one_of_their_own(
    reason: str, attempt: int, failed: int, seconds: float
) -> None:
    assert retry_delay(reason, attempt, failed, 5.0) == seconds


def test_a_slow_operator_waits_no_longer_than_the_limit_either() -> None:
    assert retry_delay(Reason.LOSS_DIVERGED, 1, 1, 301.0) == 300
    assert retry_delay(Reason.LOSS_DIVERGED, 40, 40, 0.001) == pytest.approx(65.536)


def test_metrics_are_as_many_and_as_long_as_the_schema_allows() -> None:
    metrics = {f"{number:03}{'x' * 200}": number / 3 for number in range(80)}
    outcome = a_success().model_copy(update={"metrics": metrics})
    pods, children = (a_finished_pod(outcome),), (a_child(outcome="Complete"),)
    if len(outcome.to_termination_message()) > 4096:
        pods = (a_finished_pod(outcome.model_dump_json(by_alias=True)),)
    status = decide_job(a_job(), Observed(children, pods)).status
    assert FinetuneJobStatus.model_validate(status.to_dict()) == status
    assert [metric.name for metric in status.metrics] == [f"{number:03}{'x' * 125}" for number in range(64)]
    assert [metric.value for metric in status.metrics[:3]] == ["0", "0.333333", "0.666667"]


ADAPTER = AdapterStatus(
    name="tone",
    uri=f"pvc://finetune-adapters/tone/{UID}",
    digest=f"sha256:{'a' * 64}",
    size_bytes=9,
    base_model="pvc://models/tiny",
)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ADAPTER),
        ({"base_revision": "4f2a"}, ADAPTER.model_copy(update={"base_revision": "4f2a"})),
        ({"path": "../elsewhere"}, None),
        ({"path": ""}, None),
        ({"digest": f"sha256:{'a' * 65}"}, None),
        ({"digest": "sha256:short"}, None),
    ],
)
def test_an_adapter_that_cannot_be_addressed_is_none(fields: dict[str, Any], expected: AdapterStatus | None) -> None:
    committed = a_success().adapter
    assert committed is not None
    outcome = a_success().model_copy(update={"adapter": committed.model_copy(update=fields)})
    assert adapter_status(a_job(), outcome) == expected


def test_without_a_result_there_is_no_adapter() -> None:
    assert adapter_status(a_job(), None) is None
    assert adapter_status(a_job(), a_failure()) is None


LONG = "x" * 9000


@pytest.mark.parametrize("is_retryable", [True, False])
def test_a_message_without_end_is_cut_to_what_the_schema_allows(is_retryable: bool) -> None:
    outcome = a_failure(retryable=is_retryable, message=LONG)
    pod = a_finished_pod(Outcome.model_dump_json(outcome, by_alias=True), exit_code=1)
    status = decide_job(a_job(), Observed((a_child(outcome="Failed"),), (pod,))).status
    assert FinetuneJobStatus.model_validate(status.to_dict()) == status
    assert status.last_failure is not None
    assert status.last_failure.message == "x" * 4000
    assert {len(c.message) for c in status.conditions if c.type in ("Failed", "Running")} == {4000}


def test_the_end_of_a_log_is_what_is_kept_of_it() -> None:
    end = classify_pod(a_finished_pod(f"{LONG}\nKeyError: 'x'", exit_code=1))
    assert end.log_tail is not None
    assert (len(end.log_tail), end.log_tail[-13:]) == (2000, "KeyError: 'x'")
    assert classify_pod(a_finished_pod("", exit_code=1)).log_tail is None
