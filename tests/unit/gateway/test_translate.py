"""Requests become objects and objects become answers, by pure functions."""

import json

import pytest

from finetune_api.conditions import Phase
from finetune_gateway import translate
from finetune_gateway.errors import InvalidRequestError
from finetune_gateway.schemas import FinetuneRequest, State

MINIMAL = {"model": {"source": "pvc://models/SmolLM2-135M_Instruct"}, "dataset": {"inline": '{"text": "a"}'}}


def a_request(**fields: object) -> FinetuneRequest:
    return translate.parse_request(json.dumps(MINIMAL | fields).encode())


def an_object(status: dict[str, object] | None = None, **spec: object) -> translate.Raw:
    return {
        "metadata": {"name": "a", "namespace": "ml", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": MINIMAL | spec,
        "status": status or {},
    }


def problems(body: bytes) -> dict[str, str]:
    with pytest.raises(InvalidRequestError) as refused:
        translate.parse_request(body)
    return {p.field: p.message for p in refused.value.detail.problems}


def test_the_object_has_what_was_written_and_leaves_defaults_to_the_api_server() -> None:
    request = a_request(name="a", namespace="ml", method={"lora": {"rank": 4}}, evaluation=None)
    manifest = translate.build_manifest(request, "ml", "a", digest=None)
    assert manifest == {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FinetuneJob",
        "metadata": {"name": "a", "namespace": "ml"},
        "spec": MINIMAL | {"method": {"lora": {"rank": 4}}},
    }


def test_all_problems_are_reported_at_once() -> None:
    body = MINIMAL | {"method": {"lora": {"rank": 0}}, "hyperparameters": {"learningRate": "fast"}, "lora": {}}
    found = problems(json.dumps(body).encode())
    assert set(found) == {"method.lora.rank", "hyperparameters.learningRate", "lora"}
    assert found["lora"] == "unknown field; did you mean method.lora?"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"method": {"lora": {"rank": "8"}}}, "method.lora.rank"),
        ({"suspend": 1}, "suspend"),
        ({"hyperparameters": {"batchSize": 8.5}}, "hyperparameters.batchSize"),
        ({"hyperparameters": {"learning_rate": 0.1}}, "hyperparameters.learning_rate"),
        ({"model": {"source": "/etc/passwd"}}, "model.source"),
        ({"name": "Not-DNS"}, "name"),
        ({"namespace": "../kube-system"}, "namespace"),
    ],
)
def test_what_the_api_server_would_refuse_is_refused_here(change: dict[str, object], field: str) -> None:
    assert list(problems(json.dumps(MINIMAL | change).encode())) == [field]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"model": NaN}', b'"\\ud800"', b"\xff\xfe", b"[" * 100_000, b"1" * 5000]
)
def test_bodies_that_are_not_an_object_are_problems_not_crashes(body: bytes) -> None:
    assert problems(body)


def test_a_cross_field_rule_is_reported_with_the_object_that_breaks_it() -> None:
    body = MINIMAL | {"dataset": {}}
    assert problems(json.dumps(body).encode()) == {"dataset": "set exactly one of inline, source and sources"}


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        (None, "ft-smollm2-135m-instruct-bcdfghjk"),
        ("tone", "ft-tone-bcdfghjk"),
        ("x" * 63, f"ft-{'x' * 30}-bcdfghjk"),
    ],
)
def test_generated_names_are_readable_and_short_enough(adapter: str | None, expected: str) -> None:
    request = a_request(output={"adapterName": adapter} if adapter else {})
    name = translate.generated_name(request, "bcdfghjk")
    assert name == expected
    assert len(name) <= 50


def test_the_name_of_an_idempotency_key_depends_on_nothing_else() -> None:
    name = translate.idempotent_name("order 66")
    assert name == translate.idempotent_name("order 66") != translate.idempotent_name("order 67")
    assert a_request(name=name).name == name


def test_the_same_request_in_another_spelling_has_the_same_digest() -> None:
    one = translate.parse_request(json.dumps(MINIMAL).encode())
    two = translate.parse_request(json.dumps(dict(reversed(MINIMAL.items())), indent=2).encode())
    assert translate.request_digest(one) == translate.request_digest(two)
    assert translate.request_digest(one) != translate.request_digest(a_request(suspend=True))


def test_two_different_namespaces_in_one_request_are_refused() -> None:
    assert translate.chosen_namespace("a", "a", "d") == translate.chosen_namespace("a", None, "d") == "a"
    assert translate.chosen_namespace(None, None, "d") == "d"
    with pytest.raises(InvalidRequestError):
        translate.chosen_namespace("a", "b", "d")


def test_every_phase_has_a_state() -> None:
    assert set(translate.STATE_BY_PHASE) == set(Phase)


@pytest.mark.parametrize(
    ("phase", "cancel", "state"),
    [
        (None, False, State.PENDING),
        ("Running", False, State.RUNNING),
        ("Running", True, State.CANCELLING),
        ("Cancelled", True, State.CANCELLED),
        ("Succeeded", True, State.SUCCEEDED),
        ("SomethingNew", False, State.RUNNING),
    ],
)
def test_state_of_a_phase(phase: str | None, cancel: bool, state: State) -> None:
    assert translate.state_from(phase, cancel=cancel) == state


def test_an_object_without_status_is_pending() -> None:
    task = translate.task_from(an_object())
    assert (task.task_id, task.namespace, task.state, task.phase) == ("a", "ml", State.PENDING, "Pending")


def test_the_answer_has_progress_adapter_and_endpoint_under_the_objects_own_names() -> None:
    status = {
        "phase": "Succeeded",
        "reason": "Completed",
        "progress": {"step": 4, "totalSteps": 4, "percent": 100},
        "metrics": [{"name": "train_loss", "value": "0.5"}],
        "adapter": {"name": "tone", "uri": "pvc://c/tone", "digest": "sha256:0", "baseModel": "pvc://m/x"},
        "serving": {"name": "a", "url": "http://a.ml.svc.cluster.local/v1", "ready": True, "verified": True},
        "completionTime": "2026-01-01T00:01:00Z",
    }
    answer = translate.task_from(an_object(status)).to_dict()
    assert answer["progress"]["totalSteps"] == 4
    assert answer["metrics"] == status["metrics"]
    assert answer["adapter"]["baseModel"] == "pvc://m/x"
    assert answer["endpoint"] == {
        "url": "http://a.ml.svc.cluster.local/v1",
        "model": "tone",
        "ready": True,
        "verified": True,
    }
    assert answer["completionTime"] == "2026-01-01T00:01:00Z"


def test_a_status_that_cannot_be_read_is_said_not_raised() -> None:
    task = translate.task_from(an_object({"startTime": "yesterday"}))
    assert (task.phase, task.reason) == ("Unknown", "StatusUnreadable")
    assert task.message is not None
    assert "status.startTime" in task.message
