"""No request makes the server answer 5xx, and every refusal has OpenAI's shape.

The bodies begin as valid ones with every field that the routes know; what a test takes from them, or puts into them, is what
clients get wrong: other types, numbers beyond any type, half a surrogate pair, depth, and names that do not exist.
"""

import json
import re
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support.objects.request_bodies import ANY_JSON, LEAKS, near_misses

pytestmark = pytest.mark.model

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
COMMON: dict[str, Any] = {
    "model": "formal",
    "temperature": 0.5,
    "top_p": 0.9,
    "n": 2,
    "seed": 7,
    "stop": ["x", "\n\n"],
    "frequency_penalty": 0.5,
    "presence_penalty": -0.5,
    "logit_bias": {"7": 1.5},
    "max_tokens": 2,
    "top_k": 9,
    "min_p": 0.01,
    "repetition_penalty": 1.1,
    "stop_token_ids": [7],
    "min_tokens": 1,
    "ignore_eos": False,
    "include_stop_str_in_output": True,
    "skip_special_tokens": True,
    "truncate_prompt_tokens": 100,
    "user": "a",
    "stream": True,
    "stream_options": {"include_usage": True},
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"enum": ["x", 1]}, "b": {"type": "array", "items": {"type": "integer"}, "maxItems": 2}},
    "required": ["a"],
    "additionalProperties": False,
}
SEEDS: dict[str, dict[str, Any]] = {
    "/v1/completions": COMMON
    | {
        "prompt": [[5, 6], [7]],
        "echo": True,
        "logprobs": 2,
        "best_of": 2,
        "structured_outputs": {"regex": "[a-z]{1,9}"},
    },
    "/v1/chat/completions": COMMON
    | {
        "messages": [
            {"role": "system", "content": "Be kind.", "name": "a"},
            {"role": "user", "content": [{"type": "text", "text": "How?"}]},
        ],
        "max_completion_tokens": 2,
        "chat_template_kwargs": {},
        "continue_final_message": False,
        "add_generation_prompt": True,
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}},
    },
    "/tokenize": {"model": "formal", "messages": [{"role": "user", "content": "How?"}]},
}
ROUTES = [*SEEDS, "/promote"]
"""That take a body; nothing here knows a token that /promote takes."""
HEADERS = {"content-type": "application/json"}
BODIES = st.one_of(
    *(
        st.tuples(st.just(path), near_misses(seed=seed))
        for path, seed in {**SEEDS, "/promote": {"candidate": "formal", "token": "a guess"}}.items()
    )
)


def check(answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert error["message"]
        assert not re.search(LEAKS, error["message"])
        assert set(error) == {"message", "type", "param", "code"}
    else:
        # A stream has begun with 200 by the time that something fails.
        assert '"type": "server_error"' not in answer.text


@pytest.mark.parametrize("path", SEEDS)
def test_the_seeds_are_valid(http: httpx.Client, path: str) -> None:
    assert http.post(path, json=SEEDS[path]).status_code == 200


@FUZZ
@given(BODIES)
def test_near_misses(http: httpx.Client, request_: tuple[str, dict[str, Any]]) -> None:
    path, body = request_
    check(http.post(path, content=json.dumps(body), headers=HEADERS))


@FUZZ
@given(st.sampled_from(ROUTES), ANY_JSON)
def test_any_json(http: httpx.Client, path: str, body: Any) -> None:
    check(http.post(path, content=json.dumps(body), headers=HEADERS))


@FUZZ
@given(
    st.sampled_from(ROUTES),
    st.binary(max_size=200),
    st.sampled_from(["application/json", "application/json; charset=utf-16", "text/plain", "", "multipart/form-data"]),
)
@example("/v1/completions", b'{"model": "formal", "prompt": "\xff"}', "application/json")
@example(
    "/v1/completions", b'{"model": "formal", "prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}", "application/json"
)
@example("/v1/completions", b'{"model": "formal", "prompt": "a", "temperature": 1e999}', "application/json")
@example("/v1/completions", b'{"model": "formal", "prompt": ' + b"[" * 9000 + b"]" * 9000 + b"}", "application/json")
@example(
    "/v1/chat/completions",
    b'{"model": "formal", "messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_schema", '
    b'"json_schema": {"name": "a", "schema": {"enum": ' + b"[" * 900 + b"]" * 900 + b"}}}}",
    "application/json",
)
def test_any_bytes(http: httpx.Client, path: str, body: bytes, kind: str) -> None:
    answer = http.post(path, content=body, headers={"content-type": kind})
    check(answer)
    assert answer.status_code in (400, 413)


@FUZZ
@given(near_misses(seed=SCHEMA))
def test_schemas(http: httpx.Client, schema: dict[str, Any]) -> None:
    body = {
        "model": "base",
        "messages": [{"role": "user", "content": "How?"}],
        "max_tokens": 4,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    }
    check(http.post("/v1/chat/completions", content=json.dumps(body), headers=HEADERS))


@FUZZ
@given(
    st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]),
    st.sampled_from(
        [
            "/",
            "/v1",
            "/v1/models/",
            "/v1/completions",
            "/tokenize",
            "/promote",
            "/healthz",
            "/readyz",
            "/metrics",
            "/openapi.json",
        ]
    ),
    st.one_of(st.binary(max_size=40), st.sampled_from([b"", b"/", b"../x", b"base", b"formal/", b"%00", b"a" * 5000])),
)
def test_paths(http: httpx.Client, method: str, path: str, rest: bytes) -> None:
    raw = path.encode() + b"".join(bytes([b]) if 0x21 <= b <= 0x7E and b not in b"?#%" else b"%%%02x" % b for b in rest)
    answer = http.request(method, httpx.URL(http.base_url).copy_with(raw_path=raw))
    if method == "HEAD":
        assert answer.status_code < 500
    else:
        check(answer) if answer.status_code >= 400 else None


def test_a_giant_prompt_is_refused_and_others_are_answered(http: httpx.Client) -> None:
    text = "How do I reset my password? " * 20_000
    for path, body in (
        ("/v1/completions", {"prompt": text}),
        ("/v1/completions", {"prompt": [5] * 200_000}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}),
    ):
        answer = http.post(path, json={"model": "base"} | body, timeout=120)
        check(answer)
        assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert http.post("/v1/completions", json={"model": "base", "prompt": "a", "max_tokens": 1}).status_code == 200
