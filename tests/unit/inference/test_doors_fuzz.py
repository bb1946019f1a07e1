"""No request with tools makes the three routes for chats answer 5xx, and every refusal has its API's shape."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.objects.request_bodies import ANY_JSON, near_misses
from support.server.scripted_server import scripted

pytestmark = pytest.mark.model

FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
HEADERS = {"content-type": "application/json"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"enum": ["x", 1]}, "b": {"$ref": "#/$defs/B"}},
    "required": ["a"],
    "additionalProperties": False,
    "$defs": {"B": {"type": "array", "items": {"type": "integer"}, "maxItems": 2}},
}
COMMON: dict[str, Any] = {"model": "base", "temperature": 0.5, "top_p": 0.9, "stream": True}
CHAT = COMMON | {
    "messages": [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "How?"}]},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "Hm.",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "x"}'}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "left"},
    ],
    "tools": [
        {"type": "function", "function": {"name": "f", "description": "a", "parameters": SCHEMA, "strict": True}}
    ],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": False,
    "reasoning_effort": "none",
    "max_completion_tokens": 2,
}
SEEDS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/responses": COMMON
    | {
        "instructions": "Be kind.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "How?"}]},
            {"type": "reasoning", "id": "a", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "So."}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "left"},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}],
        "tool_choice": "auto",
        "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}, "verbosity": "medium"},
        "reasoning": {"effort": "none", "summary": "auto"},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "max_output_tokens": 2,
        "store": False,
    },
    "/v1/messages": COMMON
    | {
        "max_tokens": 2,
        "system": [{"type": "text", "text": "Be kind."}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "How?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": ""},
                    {"type": "tool_use", "id": "c", "name": "f", "input": {"a": "x"}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "left"}]},
        ],
        "tools": [{"name": "f", "input_schema": SCHEMA}],
        "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        "thinking": {"type": "disabled"},
        "stop_sequences": ["x"],
    },
    "/v1/messages/count_tokens": {
        "model": "base",
        "system": "Be kind.",
        "messages": [{"role": "user", "content": "How?"}],
        "tools": [{"name": "f", "input_schema": SCHEMA}],
    },
    "/tokenize": {"model": "base", "messages": CHAT["messages"], "tools": CHAT["tools"]},
}


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        scripted(tmp_path_factory.mktemp("qwen"), "qwen3") as server,
        httpx.Client(base_url=server.server.url, timeout=30) as client,
    ):
        yield client


def check(answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code < 400:
        return
    document = answer.json()
    assert document["error"]["message"]
    if answer.request.url.path.startswith("/v1/messages"):
        assert (document["type"], set(document["error"])) == ("error", {"type", "message"})
    else:
        assert set(document["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", [*SEEDS, "/v1/completions", "/promote"])
@pytest.mark.parametrize(
    ("twin", "key"),
    [('"temperature": 0, "temperature": 1', "temperature"), ('"tools": [{"a": {"b": 1, "c": 2, "b": 3}}]', "b")],
)
def test_a_key_that_occurs_twice_is_refused_by_name(http: httpx.Client, path: str, twin: str, key: str) -> None:
    """Python keeps the last value, and the client may have meant the first."""
    rest = json.dumps({"model": "base", "messages": []}).removeprefix("{")
    answer = http.post(path, content=f"{{{twin}, {rest}", headers=HEADERS)
    assert answer.status_code == 400
    check(answer)
    assert f'The body has the key "{key}" more than once in one object' in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", SEEDS)
def test_the_seeds_are_valid(http: httpx.Client, path: str) -> None:
    answer = http.post(path, json=SEEDS[path])
    assert answer.status_code == 200, answer.text


@FUZZ
@given(st.one_of(*(st.tuples(st.just(path), near_misses(seed=seed)) for path, seed in SEEDS.items())))
def test_near_misses(http: httpx.Client, request_: tuple[str, dict[str, Any]]) -> None:
    path, body = request_
    check(http.post(path, content=json.dumps(body), headers=HEADERS))


@FUZZ
@given(st.sampled_from(list(SEEDS)), ANY_JSON)
def test_any_json(http: httpx.Client, path: str, body: Any) -> None:
    check(http.post(path, content=json.dumps(body), headers=HEADERS))


@FUZZ
@given(near_misses(seed=SCHEMA))
def test_schemas_of_functions(http: httpx.Client, schema: dict[str, Any]) -> None:
    function = {"name": "f", "parameters": schema}
    body = CHAT | {"tools": [{"type": "function", "function": function}]}
    check(http.post("/v1/chat/completions", content=json.dumps(body), headers=HEADERS))
