"""No request makes the gateway answer 5xx, and every refusal has the one shape."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_gateway import translate
from finetune_gateway.errors import InvalidRequestError
from finetune_gateway.schemas import ErrorBody
from support.gateway.running_gateway import api_server_stand_in, running_gateway
from support.objects.request_bodies import ANY_JSON, SEED, near_misses

TOKEN = {"Authorization": "Bearer abc"}
FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with api_server_stand_in() as stand_in, running_gateway(stand_in.url) as client:
        yield client


def check(response: httpx.Response) -> None:
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        ErrorBody.model_validate(response.json())


def test_the_seed_is_valid() -> None:
    translate.parse_request(json.dumps(SEED).encode())


@settings(max_examples=800, deadline=None)
@given(st.one_of(near_misses(), ANY_JSON))
def test_any_json_is_a_request_or_a_list_of_problems(value: Any) -> None:
    try:
        request = translate.parse_request(json.dumps(value).encode())
    except InvalidRequestError as refused:
        assert refused.detail.problems
        json.dumps(refused.detail.to_dict(), allow_nan=False, ensure_ascii=False).encode()
    else:
        manifest = translate.build_manifest(request, "ml", "a", translate.request_digest(request))
        json.dumps(manifest, allow_nan=False, ensure_ascii=False).encode()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_list_of_problems(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        translate.parse_request(body)


@FUZZ
@given(near_misses())
def test_posts(client: httpx.Client, body: dict[str, Any]) -> None:
    check(client.post("/llm/finetune", content=json.dumps(body).encode(), headers=TOKEN))


@FUZZ
@given(
    st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]),
    st.one_of(st.text(max_size=60), st.sampled_from(["", "/", "..", "../../secrets", "%2e%2e", "a%00", "a" * 300])),
    st.dictionaries(st.sampled_from(["namespace", "limit", "continue", "x"]), st.text(max_size=30), max_size=3),
)
def test_paths_and_queries(client: httpx.Client, method: str, path: str, query: dict[str, str]) -> None:
    encoded = {k: v.encode("utf-8", "surrogatepass").decode("latin-1") for k, v in query.items()}
    url = httpx.URL(client.base_url).copy_with(
        raw_path=b"/llm/finetune/"
        + b"".join(
            b"%%%02x" % byte if byte < 0x21 or byte > 0x7E or byte in b"?#" else bytes([byte]) for byte in path.encode()
        )
    )
    response = client.request(method, url, params=encoded, headers=TOKEN)
    if method == "HEAD":
        assert response.status_code < 500
    else:
        check(response)


@FUZZ
@given(st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=80))
def test_headers(client: httpx.Client, value: str) -> None:
    raw = value.encode("latin-1").strip()
    for headers in ({b"authorization": (b"Bearer " + raw).strip()}, {b"authorization": raw}):
        check(client.get("/llm/finetune", headers=headers))
    headers = {b"authorization": b"Bearer abc", b"idempotency-key": raw}
    check(client.post("/llm/finetune", content=b'{"model": {"source": "pvc://m/m"}}', headers=headers))


@settings(max_examples=300, deadline=None)
@given(ANY_JSON)
def test_any_status_of_an_object_can_be_shown(status: Any) -> None:
    metadata = {"name": "a", "namespace": "ml"}
    task = translate.task_from({"metadata": metadata, "spec": {}, "status": status})
    assert task.task_id == "a"
