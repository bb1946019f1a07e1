"""Tools and reasoning at /v1/chat/completions, as OpenAI's official client sees them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from finetune_api.serving import ServedModel, ServingConfig
from finetune_inference.config import Settings
from finetune_inference.inference import InferenceService
from lab.fixtures.tiny_model import make_tiny_model
from support.server.calling_templates import FAMILIES
from support.server.running_inference import running
from support.server.scripted_server import Scripted, scripted

pytestmark = pytest.mark.model

QUESTION: list[Any] = [{"role": "user", "content": "Where is order 42?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "maxLength": 4},
        "carrier": {"$ref": "#/$defs/Carrier"},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["id", "carrier"],
    "additionalProperties": False,
    "$defs": {"Carrier": {"enum": ["air", "sea"]}},
}
TRACK: Any = {"type": "function", "function": {"name": "track", "description": "Find an order", "parameters": SCHEMA}}
CANCEL: Any = {"type": "function", "function": {"name": "cancel", "parameters": {"type": "object", "properties": {}}}}
ARGUMENTS = {"id": "42", "carrier": "sea"}
CALL = f"<tool_call>\n{json.dumps({'name': 'track', 'arguments': ARGUMENTS})}\n</tool_call>"
THOUGHT = f"<think>\nLook it up.\n</think>\n\nOne moment.\n{CALL}"


@pytest.fixture
def client(qwen: Scripted) -> Iterator[openai.OpenAI]:
    with qwen.server.openai as client:
        yield client


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(
        **({"model": "base", "messages": QUESTION, "tools": [TRACK, CANCEL]} | fields)
    )


def calls_of(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]


def test_an_answer_has_reasoning_content_and_calls(qwen: Scripted, client: openai.OpenAI) -> None:
    qwen.answer(f"{THOUGHT}\n{CALL}")
    choice = chat(client).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "One moment."
    assert choice.message.reasoning_content == "Look it up."
    assert calls_of(choice.message) == [("track", ARGUMENTS)] * 2
    assert choice.message.tool_calls[0].id != choice.message.tool_calls[1].id


def test_a_call_alone_has_null_content_and_an_answer_without_calls_has_no_such_fields(
    qwen: Scripted, client: openai.OpenAI
) -> None:
    qwen.answer(CALL, "<think>\n\n</think>\n\nIt left.")
    assert chat(client).choices[0].message.content is None
    choice = chat(client).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("It left.", "stop")
    assert not {"tool_calls", "reasoning_content"} & choice.message.model_dump(exclude_unset=True).keys()


def test_a_stream_accumulates_to_the_same_message(qwen: Scripted, client: openai.OpenAI) -> None:
    qwen.answer(f"{THOUGHT}\n{CALL}")
    with client.chat.completions.stream(model="base", messages=QUESTION, tools=[TRACK, CANCEL]) as stream:
        events = list(stream)
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.content == "One moment."
    assert calls_of(final.message) == [("track", ARGUMENTS)] * 2
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [(event.index, event.name) for event in done] == [(0, "track"), (1, "track")]
    deltas = [event.chunk.choices[0].delta for event in events if event.type == "chunk"]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "Look it up."
    assert sum(bool(getattr(delta, "reasoning_content", None)) for delta in deltas) > 1


def test_several_answers_keep_their_calls_apart(qwen: Scripted, client: openai.OpenAI) -> None:
    qwen.answer(CALL, "It left.")
    chunks = list(chat(client, n=2, stream=True))
    reasons = {c.index: c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason}
    assert sorted(reasons.values()) == ["stop", "tool_calls"]
    called = {c.index for chunk in chunks for c in chunk.choices if c.delta.tool_calls}
    assert called == {index for index, reason in reasons.items() if reason == "tool_calls"}


def test_one_call_at_a_time_ends_the_answer(qwen: Scripted, client: openai.OpenAI) -> None:
    qwen.answer(f"{CALL}\n{CALL}")
    answer = chat(client, parallel_tool_calls=False)
    assert calls_of(answer.choices[0].message) == [("track", ARGUMENTS)]
    assert answer.choices[0].finish_reason == "tool_calls"


def test_without_a_choice_calls_stay_text_and_tools_stay_out_of_the_prompt(
    qwen: Scripted, client: openai.OpenAI
) -> None:
    qwen.answer(CALL, "x")
    choice = chat(client, tool_choice="none").choices[0]
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (CALL, None, "stop")
    chat(client, tools=openai.omit)
    assert qwen.engine.prompts[-2] == qwen.engine.prompts[-1]


def test_a_call_that_is_cut_off_stays_text(qwen: Scripted, client: openai.OpenAI) -> None:
    qwen.answer(CALL)
    choice = chat(client, max_tokens=20).choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.content and CALL.startswith(choice.message.content)


def test_a_history_with_calls_is_rendered_as_its_rows_were(qwen: Scripted, client: openai.OpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "track", "arguments": json.dumps(ARGUMENTS)}}
    history = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "left"},
    ]
    qwen.answer("It left.")
    assert chat(client, messages=history).choices[0].message.content == "It left."
    prompt = qwen.engine.tokenizer.decode(qwen.engine.prompts[-1])
    assert f"assistant\n{CALL}<|im_end|>" in prompt
    assert "<tool_response>\nleft\n</tool_response>" in prompt
    assert '"strict"' not in prompt


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "fly"}}}, "tool_choice", "is not in tools"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "track", "strict": True}}},
            "tool_choice",
            "tool_choice.function.strict: unknown field",
        ),
        (
            {"tool_choice": {"type": "function", "function": {"name": "track"}, "name": "track"}},
            "tool_choice",
            "tool_choice.name: unknown field",
        ),
        ({"tool_choice": "required", "tools": []}, "tool_choice", "tools has no function"),
        ({"tools": [TRACK, TRACK]}, "tools", "has the function track twice"),
        ({"tools": [{"type": "web_search"}]}, "tools", "tools[0].type: is 'web_search', expected function"),
        ({"tools": [TRACK] * 129}, "tools", "has 129 functions; use 128 or less"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "response_format", "has no effect"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "has no variable for it"),
        (
            {
                "messages": [
                    *QUESTION,
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "7"}}]},
                ]
            },
            "messages",
            "messages[1].tool_calls[0].function.arguments: is the text of a number, expected an object",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **fields)
    assert caught.value.param == param
    assert words in caught.value.message


def test_a_schema_and_tools_allow_a_call_or_an_answer(qwen: Scripted, client: openai.OpenAI) -> None:
    schema = {"name": "answer", "schema": {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}}
    for text, calls in ((CALL, 1), ('{"a": 1}', 0)):
        qwen.answer(text)
        choice = chat(client, response_format={"type": "json_schema", "json_schema": schema}).choices[0]
        assert len(choice.message.tool_calls or []) == calls
        assert calls or choice.message.content == text
    qwen.answer("Hello")
    with pytest.raises(openai.BadRequestError):
        chat(client, response_format={"type": "json_schema", "json_schema": schema})


def test_reasoning_that_the_prompt_opens_comes_before_a_schema(tmp_path: Path) -> None:
    with scripted(tmp_path, "qwen3-thinking") as server, server.server.openai as client:
        server.answer('Think of {"a": 2}.\n</think>{"a": 1}')
        schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"properties": {"a": {"const": 1}}}}}
        message: Any = chat(client, tools=openai.omit, response_format=schema).choices[0].message
        assert (message.reasoning_content, message.content) == ('Think of {"a": 2}.', '{"a": 1}')
        server.answer(f"Hm.\n</think>{CALL}")
        message = chat(client, tool_choice="required").choices[0].message
        assert message.reasoning_content == "Hm."
        assert calls_of(message) == [("track", ARGUMENTS)]


@pytest.fixture(scope="module", params=["hermes", "qwen3-coder", "mistral-args", "llama3-json"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """A real, tiny, untrained model, which writes calls only because it has to."""
    folder = make_tiny_model(tmp_path_factory.mktemp("model"))
    (folder / "chat_template.jinja").write_text(FAMILIES[request.param].template)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 2048}))
    config = ServingConfig(model=ServedModel(name="base", path=str(folder)))
    with running(InferenceService(config, Settings(threads=1, drain_delay_seconds=0))) as server:
        yield server.openai


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("choice", ["required", "named"])
def test_a_required_call_is_valid_json_of_its_schema(real: openai.OpenAI, choice: str, seed: int) -> None:
    named = {"type": "function", "function": {"name": "track"}}
    answer = chat(
        real,
        tool_choice=named if choice == "named" else "required",
        # Its schema allows any arguments, of which an untrained model finds no end.
        tools=[TRACK, CANCEL | {"function": CANCEL["function"] | {"parameters": {"additionalProperties": False}}}],
        parallel_tool_calls=False,
        seed=seed,
        temperature=0.7,
        max_tokens=600,
    ).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    ((name, arguments),) = calls_of(answer.message)
    jsonschema.validate(arguments, SCHEMA if name == "track" else {})
    assert choice != "named" or name == "track"


def test_a_settings_form_replaces_the_templates(tmp_path: Path) -> None:
    with scripted(tmp_path, "hermes", tool_call_format="none") as server:
        server.answer(CALL)
        body = {"model": "base", "messages": QUESTION, "tools": [TRACK]}
        message = httpx.post(f"{server.server.url}/v1/chat/completions", json=body).json()["choices"][0]["message"]
        assert message == {"role": "assistant", "content": CALL, "refusal": None}


@pytest.mark.parametrize("name", ["track", "user", "assistant", "t"])
def test_what_the_template_leaves_out_is_refused(http: httpx.Client, name: str) -> None:
    """The template of the tiny model has no place for functions and calls, whatever word of a chat is their name."""
    call = {"id": "c", "type": "function", "function": {"name": name, "arguments": "{}"}}
    history = [
        *QUESTION,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "left"},
    ]
    for body, param, words in (
        (
            {"messages": QUESTION, "tools": [{**TRACK, "function": {**TRACK["function"], "name": name}}]},
            "tools",
            "tools: the model's chat template leaves out the functions",
        ),
        ({"messages": history}, "messages", "leaves out a call of a function"),
    ):
        answer = http.post("/v1/chat/completions", json={"model": "base", "max_tokens": 2} | body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert words in answer.json()["error"]["message"]
