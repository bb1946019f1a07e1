"""Names, digests and answers of the gateway, in the exact form that clients and stored objects rely on."""

import hashlib
import json
from typing import Any

import pytest

from finetune_api.conditions import Phase
from finetune_gateway import translate
from finetune_gateway.errors import InvalidRequestError
from finetune_gateway.schemas import FinetuneRequest, State, Task

MINIMAL: dict[str, Any] = {"model": {"source": "pvc://models/tiny"}, "dataset": {"inline": '{"text": "a"}'}}
FAILURE = {"attempt": 1, "reason": "OutOfMemory", "message": "killed"}


def a_request(**fields: Any) -> FinetuneRequest:
    return translate.parse_request(json.dumps(MINIMAL | fields).encode())


def an_object(**fields: Any) -> translate.Raw:
    return {"metadata": {"name": "a", "namespace": "ml", "creationTimestamp": "2026-01-01T00:00:00Z"}, **fields}


def served(**fields: Any) -> dict[str, Any]:
    serving = {"name": "a", "url": "http://a.ml.svc/v1", "ready": True, "verified": False}
    return {"phase": "Running", "serving": serving, **fields}


def test_the_annotation_of_a_digest_keeps_its_name() -> None:
    manifest = translate.build_manifest(a_request(), "ml", "a", digest="sha256:1")
    assert manifest["metadata"]["annotations"] == {"finetune.dev/request-digest": "sha256:1"}


def test_an_object_is_a_repeat_only_with_the_digest_of_the_same_request() -> None:
    made = translate.build_manifest(a_request(), "ml", "a", digest="sha256:1")
    assert translate.is_repeat(made, "sha256:1") is True
    assert translate.is_repeat(made, "sha256:2") is False
    assert translate.is_repeat({"metadata": {"annotations": None}}, "sha256:1") is False
    assert translate.is_repeat({"metadata": {}}, "sha256:1") is False


def test_generated_names_are_made_of_letters_that_spell_nothing() -> None:
    assert translate.SUFFIX_LENGTH == 8
    assert set(translate.SUFFIX_ALPHABET) == set("bcdfghjklmnpqrstvwxz2456789")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("pvc://models/a/b/Tiny_Model", "ft-tiny-model-x"),
        ("hf://org/tiny", "ft-tiny-x"),
        ("pvc://models/0123456789012345678901234567890", "ft-012345678901234567890123456789-x"),
        ("pvc://models/01234567890123456789012345678.0", "ft-01234567890123456789012345678-x"),
        ("pvc://models/a", "ft-a-x"),
        ("pvc://models/___", "ft-x"),
    ],
)
def test_a_generated_name_says_what_is_tuned(source: str, name: str) -> None:
    assert translate.generated_name(a_request(model={"source": source}), "x") == name


def test_the_name_of_an_adapter_wins_over_that_of_its_model() -> None:
    assert translate.generated_name(a_request(output={"adapterName": "tone"}), "x") == "ft-tone-x"


def test_a_key_belongs_to_one_name_forever() -> None:
    assert translate.idempotent_name("my key") == f"ft-{hashlib.sha256(b'my key').hexdigest()[:20]}"


def test_a_digest_is_that_of_the_canonical_request() -> None:
    request = a_request(method={"lora": {"rank": 4}}, hyperparameters={"learningRate": 0.1}, evaluation=None)
    written = MINIMAL | {"method": {"lora": {"rank": 4}}, "hyperparameters": {"learningRate": 0.1}}
    canonical = json.dumps(written, sort_keys=True, separators=(",", ":"))
    assert translate.request_digest(request) == f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def test_two_namespaces_are_one_problem_of_the_body() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        translate.chosen_namespace("a", "b", "d")
    (problem,) = refused.value.detail.problems
    assert (problem.field, problem.found) == ("namespace", "b")
    assert "must be a" in problem.message
    assert translate.chosen_namespace("a", "", "d") == "a"
    assert translate.chosen_namespace("", "b", "d") == "b"


@pytest.mark.parametrize("spec", [{"cancel": True}, {"cancel": False}, None], ids=str)
def test_a_task_is_cancelling_once_its_spec_says_so(spec: dict[str, Any] | None) -> None:
    state = translate.task_from(an_object(spec=spec, status={"phase": "Running"})).state
    assert state is (State.CANCELLING if spec and spec["cancel"] else State.RUNNING)


def test_a_task_has_everything_that_the_status_says() -> None:
    status = {
        "phase": "Retrying",
        "reason": "OutOfMemory",
        "message": "Attempt 2 follows.",
        "attempt": 2,
        "startTime": "2026-01-01T00:00:10Z",
        "lastFailure": FAILURE,
    }
    task = translate.task_from(an_object(spec=MINIMAL, status=status))
    assert (task.phase, task.reason, task.message, task.attempt) == (
        "Retrying",
        "OutOfMemory",
        "Attempt 2 follows.",
        2,
    )
    assert (task.creation_time, task.start_time) == ("2026-01-01T00:00:00Z", "2026-01-01T00:00:10Z")
    assert task.to_dict()["lastFailure"] == FAILURE
    assert (task.adapter, task.endpoint, task.progress, task.completion_time) == (None, None, None, None)


def test_a_task_without_a_phase_is_pending_whatever_else_is_there() -> None:
    for status in ({"phase": None}, {}, None):
        task = translate.task_from(an_object(status=status))
        assert (task.state, task.phase) == (State.PENDING, Phase.PENDING)


def test_an_unreadable_status_leaves_what_the_object_says_of_itself() -> None:
    task = translate.task_from(an_object(status={"attempt": "many", "message": "still here"}))
    assert task == Task(
        task_id="a",
        namespace="ml",
        creation_time="2026-01-01T00:00:00Z",
        state=State.PENDING,
        phase="Unknown",
        reason="StatusUnreadable",
        message=task.message,
    )
    assert (task.message or "").startswith("status.attempt")


@pytest.mark.parametrize(
    ("spec", "model"),
    [
        ({"output": {"adapterName": "tone"}}, "tone"),
        ({"output": {}}, "a"),
        ({"output": None}, "a"),
        ({}, "a"),
        (None, "a"),
    ],
    ids=str,
)
def test_before_there_is_an_adapter_an_endpoint_has_the_name_that_it_will_get(spec: Any, model: str) -> None:
    endpoint = translate.task_from(an_object(spec=spec, status=served())).endpoint
    assert endpoint is not None
    assert (endpoint.model, endpoint.url, endpoint.ready, endpoint.verified) == (
        model,
        "http://a.ml.svc/v1",
        True,
        False,
    )


def test_an_adapter_gives_the_endpoint_its_name() -> None:
    adapter = {"name": "tone", "uri": "pvc://c/tone", "digest": "sha256:0", "baseModel": "pvc://m/x"}
    endpoint = translate.task_from(
        an_object(spec={"output": {"adapterName": "x"}}, status=served(adapter=adapter))
    ).endpoint
    assert endpoint is not None
    assert endpoint.model == "tone"


@pytest.mark.parametrize("metadata", [{"continue": "cursor"}, {"continue": ""}, {}, None], ids=str)
def test_a_page_has_its_items_and_the_cursor_of_the_next(metadata: Any) -> None:
    page = translate.page_from({"items": [an_object(), an_object()], "metadata": metadata})
    assert [item.task_id for item in page.items] == ["a", "a"]
    assert page.next == ("cursor" if metadata and metadata.get("continue") else None)
    assert translate.page_from({"items": []}).items == []
