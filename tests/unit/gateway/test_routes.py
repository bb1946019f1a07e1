"""The routes against a stand-in for the API server: what is sent, how often, and what each refusal becomes."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from finetune_gateway import examples
from finetune_gateway.schemas import ErrorBody, FinetuneRequest, Task, TaskPage
from support.gateway.running_gateway import ApiServerStandIn, api_server_stand_in, running_gateway

TOKEN = {"Authorization": "Bearer abc.def-123"}
BODY = {"name": "a", "model": {"source": "pvc://models/m"}, "dataset": {"inline": '{"text": "a"}'}}
PATH = "/llm/finetune"


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[ApiServerStandIn, httpx.Client]]:
    with api_server_stand_in() as stand_in, running_gateway(stand_in.url, request_seconds=1.0) as client:
        yield stand_in, client


@pytest.fixture
def api(both: tuple[ApiServerStandIn, httpx.Client]) -> ApiServerStandIn:
    stand_in = both[0]
    stand_in.objects.clear()
    stand_in.seen.clear()
    stand_in.refusal, stand_in.delay = None, 0.0
    return stand_in


@pytest.fixture
def client(both: tuple[ApiServerStandIn, httpx.Client], api: ApiServerStandIn) -> httpx.Client:
    return both[1]


def error(response: httpx.Response) -> dict[str, Any]:
    ErrorBody.model_validate(response.json())
    return dict(response.json()["error"])


def test_a_post_is_one_write_and_no_read_with_the_callers_token_and_nothing_else(
    client: httpx.Client, api: ApiServerStandIn
) -> None:
    response = client.post(PATH, json=BODY, headers=TOKEN | {"Impersonate-User": "root", "Cookie": "a=b"})
    assert response.status_code == 202
    assert response.json()["task_id"] == "a"
    assert response.headers["location"] == "/llm/finetune/a?namespace=default"
    assert [(r.method, r.path) for r in api.seen] == [
        ("POST", "/apis/finetune.dev/v1alpha1/namespaces/default/finetunejobs")
    ]
    sent = {name.lower(): value for name, value in api.seen[0].headers.items()}
    assert sent["authorization"] == TOKEN["Authorization"]
    assert not {"impersonate-user", "cookie"} & set(sent)


def test_the_location_leads_to_the_task(client: httpx.Client) -> None:
    started = client.post(PATH, params={"namespace": "ml"}, json=BODY, headers=TOKEN)
    found = client.get(started.headers["location"], headers=TOKEN)
    assert found.status_code == 200
    assert found.json() == started.json()
    assert found.json()["namespace"] == "ml"


def test_a_repeat_with_an_idempotency_key_is_the_same_task(client: httpx.Client, api: ApiServerStandIn) -> None:
    body = {k: v for k, v in BODY.items() if k != "name"}
    headers = TOKEN | {"Idempotency-Key": "order-66"}
    first, second = (client.post(PATH, json=body, headers=headers) for _ in range(2))
    assert first.status_code == second.status_code == 202
    assert first.json() == second.json()
    assert [r.method for r in api.seen] == ["POST", "POST", "GET"]
    assert len(api.objects) == 1


def test_an_idempotency_key_with_another_body_is_a_conflict(client: httpx.Client) -> None:
    headers = TOKEN | {"Idempotency-Key": "order-66"}
    body = {k: v for k, v in BODY.items() if k != "name"}
    client.post(PATH, json=body, headers=headers)
    response = client.post(PATH, json=body | {"suspend": True}, headers=headers)
    assert response.status_code == 409
    assert error(response)["code"] == "IdempotencyKeyReused"


def test_a_name_that_is_taken_is_a_conflict(client: httpx.Client) -> None:
    client.post(PATH, json=BODY, headers=TOKEN)
    response = client.post(PATH, json=BODY, headers=TOKEN)
    assert response.status_code == 409
    assert error(response)["object"] == "FinetuneJob default/a"


def test_pages_follow_the_cursor(client: httpx.Client) -> None:
    for name in ("a", "b", "c"):
        client.post(PATH, json=BODY | {"name": name}, headers=TOKEN)
    first = client.get(PATH, params={"limit": 2}, headers=TOKEN).json()
    second = client.get(PATH, params={"limit": 2, "continue": first["continue"]}, headers=TOKEN).json()
    assert [t["task_id"] for t in first["items"] + second["items"]] == ["a", "b", "c"]
    assert "continue" not in second


def test_a_delete_cancels_and_a_second_one_changes_nothing(client: httpx.Client, api: ApiServerStandIn) -> None:
    client.post(PATH, json=BODY, headers=TOKEN)
    api.objects["default", "a"]["status"] = {"phase": "Running"}
    for _ in range(2):
        response = client.delete(f"{PATH}/a", headers=TOKEN)
        assert response.status_code == 202
        assert response.json()["state"] == "cancelling"
    assert api.objects["default", "a"]["spec"]["cancel"] is True
    assert [r.method for r in api.seen].count("PATCH") == 1


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_task_that_is_over_is_not_touched_by_a_delete(
    phase: str, client: httpx.Client, api: ApiServerStandIn
) -> None:
    client.post(PATH, json=BODY, headers=TOKEN)
    api.objects["default", "a"]["status"] = {"phase": phase}
    response = client.delete(f"{PATH}/a", headers=TOKEN)
    assert response.status_code == 409
    assert error(response)["code"] == "AlreadyOver"
    assert "cancel" not in api.objects["default", "a"]["spec"]


@pytest.mark.parametrize("header", [{}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer a b"}])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_a_token_nothing_reaches_the_api_server(
    method: str, header: dict[str, str], client: httpx.Client, api: ApiServerStandIn
) -> None:
    response = client.request(method, PATH, content=b"not json", headers=header)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert error(response)["code"] == "Unauthenticated"
    assert not api.seen


def test_an_invalid_body_never_reaches_the_api_server(client: httpx.Client, api: ApiServerStandIn) -> None:
    response = client.post(PATH, json=BODY | {"method": {"lora": {"rank": 0}}}, headers=TOKEN)
    assert response.status_code == 422
    assert error(response)["field"] == "method.lora.rank"
    assert error(response)["problems"] == [{"field": "method.lora.rank", "message": "expected 1 or more", "found": "0"}]
    assert not api.seen


@pytest.mark.parametrize(
    "path", [f"{PATH}/..%2f..%2fsecrets", f"{PATH}/A", f"{PATH}/a?namespace=b/c", f"{PATH}?limit=0"]
)
def test_names_that_cannot_be_names_never_reach_the_api_server(
    path: str, client: httpx.Client, api: ApiServerStandIn
) -> None:
    response = client.get(path, headers=TOKEN)
    assert response.status_code in (404, 422)
    error(response)
    assert not api.seen


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_before_it_is_read(chunked: bool, client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(300):
            yield b"x" * 1024

    response = client.post(PATH, content=chunks() if chunked else b"x" * 300_000, headers=TOKEN)
    assert response.status_code == 413
    assert error(response)["code"] == "TooLarge"


@pytest.mark.parametrize(
    ("status", "answer", "expected", "code"),
    [
        (401, {"message": "Unauthorized"}, 401, "Unauthenticated"),
        (403, {"message": 'User "ann" cannot get'}, 403, "Forbidden"),
        (404, {"details": {"kind": "finetunejobs", "name": "a"}}, 404, "NotFound"),
        (404, {"details": {"kind": "namespaces", "name": "x"}}, 404, "NamespaceNotFound"),
        (404, {"message": "the server could not find the requested resource"}, 503, "Unavailable"),
        (422, {"message": "denied by policy"}, 422, "Invalid"),
        (429, {"details": {"retryAfterSeconds": 7}}, 429, "TooManyRequests"),
        (500, {"message": "etcdserver: /secret/path"}, 503, "Unavailable"),
        (504, {}, 503, "Unavailable"),
    ],
)
def test_refusals_of_the_api_server_are_translated(
    status: int, answer: dict[str, Any], expected: int, code: str, client: httpx.Client, api: ApiServerStandIn
) -> None:
    api.refuse(status, **answer)
    response = client.get(f"{PATH}/a", headers=TOKEN)
    assert response.status_code == expected
    assert error(response)["code"] == code
    assert "etcd" not in response.text
    if expected in (429, 503):
        assert int(response.headers["retry-after"]) > 0
    if expected == 401:
        assert "invalid_token" in response.headers["www-authenticate"]


def test_field_causes_of_the_api_server_become_problems(client: httpx.Client, api: ApiServerStandIn) -> None:
    causes = [{"field": "spec.policy.maxAttempts", "message": "Invalid value: 99"}, {"field": "<nil>", "message": "no"}]
    api.refuse(422, message="invalid", details={"name": "a", "causes": causes})
    response = client.post(PATH, json=BODY, headers=TOKEN)
    assert [p["field"] for p in error(response)["problems"]] == ["policy.maxAttempts", "body"]


def test_an_answer_that_is_not_from_an_api_server_is_unavailable(client: httpx.Client, api: ApiServerStandIn) -> None:
    api.refusal = (502, b"<html>bad gateway</html>")
    assert client.get(f"{PATH}/a", headers=TOKEN).status_code == 503
    api.refusal = (200, b"<html>login</html>")
    assert client.get(f"{PATH}/a", headers=TOKEN).status_code == 503


def test_a_slow_api_server_is_unavailable(client: httpx.Client, api: ApiServerStandIn) -> None:
    api.delay = 1.5
    response = client.get(f"{PATH}/a", headers=TOKEN)
    assert response.status_code == 503
    assert "did not answer in time" in error(response)["message"]


def test_without_an_api_server_the_gateway_is_alive_but_not_ready() -> None:
    with running_gateway("http://127.0.0.1:9") as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
        response = client.post(PATH, json=BODY, headers=TOKEN)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"


def test_readiness_is_asked_once_for_several_probes(api: ApiServerStandIn) -> None:
    with running_gateway(api.url) as client:
        assert [client.get("/readyz").status_code for _ in range(3)] == [200] * 3
    assert [r.path for r in api.seen] == ["/readyz"]


def test_unknown_paths_and_methods_have_the_same_error_shape(client: httpx.Client) -> None:
    assert error(client.get("/nothing"))["code"] == "NotFound"
    assert error(client.put(PATH, headers=TOKEN))["code"] == "MethodNotAllowed"


def test_the_api_description_is_complete(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    text = json.dumps(document)
    references = {part.split('"')[0] for part in text.split('"$ref": "#/components/schemas/')[1:]}
    assert references <= set(document["components"]["schemas"])
    post = document["paths"][PATH]["post"]
    assert post["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/FinetuneRequest"
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], f"{method} {path} has no summary"
            if path.startswith(PATH):
                assert operation["security"], f"{method} {path} needs no token"
                good = next(r for status, r in operation["responses"].items() if status.startswith("2"))
                assert good["content"]["application/json"]["example"], f"{method} {path} has no example"


@pytest.mark.parametrize("name", examples.REQUESTS)
def test_the_examples_of_requests_work(name: str, client: httpx.Client) -> None:
    value = examples.REQUESTS[name]["value"]
    FinetuneRequest.model_validate(value)
    assert client.post(PATH, json=value, headers=TOKEN).status_code == 202


def test_the_examples_of_answers_fit_their_schemas() -> None:
    for example in (examples.STARTED, examples.RUNNING, examples.CANCELLING):
        assert Task.model_validate(example).to_dict() == example
    assert TaskPage.model_validate(examples.PAGE).to_dict() == examples.PAGE
    for example in examples.ERROR_MESSAGES.values():
        ErrorBody.model_validate({"error": example})
