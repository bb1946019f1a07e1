"""/v1/responses as OpenAI's official client sees it, unpatched."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from support.server.running_inference import Running
from support.server.scripted_server import Scripted

pytestmark = pytest.mark.model

PARAMETERS = {
    "type": "object",
    "properties": {"id": {"type": "string"}},
    "required": ["id"],
    "additionalProperties": False,
}
TRACK: Any = {
    "type": "function",
    "name": "track",
    "description": "Find an order",
    "parameters": PARAMETERS,
    "strict": True,
}
CALL = '<tool_call>\n{"name": "track", "arguments": {"id": "42"}}\n</tool_call>'
THOUGHT = f"<think>\nLook it up.\n</think>\n\nOne moment.\n{CALL}"


@pytest.fixture
def client(qwen: Scripted) -> Iterator[openai.OpenAI]:
    with qwen.server.openai as client:
        yield client


def test_a_text_is_answered(qwen: Scripted, client: openai.OpenAI) -> None:
    qwen.answer("It left.")
    response = client.responses.create(
        model="base", instructions="Be brief.", input="Where is it?", metadata={"a": "b"}, store=False, temperature=0.5
    )
    assert response.output_text == "It left."
    assert (response.status, response.object, response.store) == ("completed", "response", False)
    assert response.id.startswith("resp")
    assert (response.metadata, response.temperature, response.instructions) == ({"a": "b"}, 0.5, "Be brief.")
    assert response.usage and response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    prompt = qwen.engine.tokenizer.decode(qwen.engine.prompts[-1])
    assert (
        prompt
        == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhere is it?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_reasoning_text_and_calls_are_items_in_the_order_of_the_answer(qwen: Scripted, client: openai.OpenAI) -> None:
    qwen.answer(f"{THOUGHT}\n{CALL}")
    response = client.responses.create(model="base", input="Where is it?", tools=[TRACK])
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call", "function_call"]
    reasoning, message, call, _ = [item.model_dump() for item in response.output]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Look it up."}]
    assert message["content"][0]["text"] == "One moment."
    assert (call["name"], json.loads(call["arguments"])) == ("track", {"id": "42"})
    assert response.usage and 0 < response.usage.output_tokens_details.reasoning_tokens < response.usage.output_tokens


def test_a_stream_has_openais_events_in_openais_order(qwen: Scripted, client: openai.OpenAI) -> None:
    qwen.answer(THOUGHT)
    with client.responses.stream(model="base", input="Where is it?", tools=[TRACK]) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    names: list[str] = []
    for event in events:
        name = event.type.removeprefix("response.")
        if not names or names[-1] != name:
            names.append(name)
    assert names == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done",
        "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done",
        "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    assert final.output_text == "One moment."
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    text = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(text) > 2
    assert "".join(text) == "One moment."


class Answer(BaseModel):
    order: int
    left: bool


def test_structured_output_is_parsed(qwen: Scripted, client: openai.OpenAI) -> None:
    qwen.answer('{"order":42,"left":true}')
    response = client.responses.parse(model="base", input="Where is it?", text_format=Answer)
    assert response.output_parsed == Answer(order=42, left=True)
    qwen.answer("no JSON")
    with pytest.raises(openai.BadRequestError):
        client.responses.parse(model="base", input="Where is it?", text_format=Answer)
    qwen.answer('{"order":42,"left":true}')
    with client.responses.stream(model="base", input="Where is it?", text_format=Answer) as stream:
        assert stream.get_final_response().output_parsed == Answer(order=42, left=True)


def test_a_conversation_goes_on_with_the_items_of_the_answer(qwen: Scripted, client: openai.OpenAI) -> None:
    qwen.answer(THOUGHT, "It left.")
    first = client.responses.create(model="base", input="Where is it?", tools=[TRACK])
    call: Any = first.output[-1]
    history: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "Where is it?"}]},
        *first.output,
        {"type": "function_call_output", "call_id": call.call_id, "output": "left"},
    ]
    second = client.responses.create(
        model="base", input=history, tools=[TRACK], include=["reasoning.encrypted_content"]
    )
    assert second.output_text == "It left."
    prompt = qwen.engine.tokenizer.decode(qwen.engine.prompts[-1])
    assert f"<|im_start|>assistant\n{THOUGHT}<|im_end|>\n" in prompt
    assert "<tool_response>\nleft\n</tool_response>" in prompt


def test_an_answer_that_is_cut_off_is_incomplete(qwen: Scripted, client: openai.OpenAI) -> None:
    qwen.answer("It left the warehouse.", "It left the warehouse.")
    response = client.responses.create(model="base", input="Where is it?", max_output_tokens=3)
    assert response.status == "incomplete"
    assert response.incomplete_details and response.incomplete_details.reason == "max_output_tokens"
    events = list(client.responses.create(model="base", input="Where is it?", max_output_tokens=3, stream=True))
    assert events[-1].type == "response.incomplete"


def test_log_probabilities_come_on_request(qwen: Scripted, client: openai.OpenAI) -> None:
    qwen.answer("It left.")
    response: Any = client.responses.create(model="base", input="Where?", include=["message.output_text.logprobs"])
    logprobs = response.output[0].content[0].logprobs
    assert "".join(token.token for token in logprobs) == "It left."
    assert all(token.logprob == -1 for token in logprobs)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "this server keeps no responses; send the whole"),
        ({"conversation": "conv_1"}, "conversation", "keeps no responses"),
        ({"store": True}, "store", "set it to false"),
        ({"background": True}, "background", "answers within the request"),
        ({"truncation": "auto"}, "truncation", "disabled"),
        ({"tools": [{"type": "web_search"}]}, "tools", "tools[0].type: is 'web_search', expected function"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "is 'web_search', expected function"),
        (
            {"tool_choice": {"type": "function", "name": "f", "function": {"name": "g"}}},
            "tool_choice",
            "tool_choice.function: not supported",
        ),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", "set stream to true as well"),
        (
            {"stream": True, "stream_options": {"include_usage": True}},
            "stream_options",
            "stream_options.include_usage: unknown field",
        ),
        ({"max_output_tokens": 100_000}, "max_output_tokens", "max_output_tokens is 100000; this server allows"),
        ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens: expected 1 or more"),
        ({"max_completion_tokens": 5}, "max_completion_tokens", "use max_output_tokens here"),
        ({"reasoning": {"effort": "high"}}, "reasoning", "has no variable for it"),
        ({"text": {"format": {"type": "grammar"}}}, "text", "text.format"),
        ({"text": {"format": {"type": "text", "foo": 1}}}, "text", "text.format.foo: unknown field"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": {}, "foo": 1}}},
            "text",
            "text.format.foo: unknown field",
        ),
        (
            {"text": {"format": {"type": "json_schema", "schema": {}}}},
            "text",
            "text.format.name: required, but missing",
        ),
        ({"include": ["file_search_call.results"]}, "include", "has 'file_search_call.results', expected"),
        ({"n": 2}, "n", "an answer of this route is one"),
        ({"input": []}, "input", "at least 1"),
        ({"input": [{"type": "web_search_call"}]}, "input", "input[0].type: is 'web_search_call', expected message"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input",
            "input[0].content[0].type: is 'input_image'",
        ),
        ({"input": [{"role": "user"}]}, "input", "input[0].content: is null, expected text"),
        (
            {"input": ["a", {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file"}]}][1:]},
            "input",
            "input[0].output[0].type: is 'input_file'",
        ),
        (
            {"instructions": "a", "input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "7"}]},
            "input",
            "input[0].tool_calls[0].function.arguments: is the text of a number",
        ),
    ],
)
def test_what_is_not_served_is_refused_by_name(qwen: Scripted, fields: dict[str, Any], param: str, words: str) -> None:
    body = {"model": "base", "input": "Where is it?"} | fields
    answer = httpx.post(f"{qwen.server.url}/v1/responses", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert words in error["message"]
    assert error["param"] == param


def test_errors_have_openais_classes(qwen: Scripted, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="gpt-9", input="Where?")
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="base", input="Where? " * 5000, stream=True)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.engine
def test_a_real_model_answers_the_same_by_both_routes(server: Running, client_of_real: openai.OpenAI) -> None:
    question = "How do I reset my password?"
    chat = client_of_real.chat.completions.create(
        model="formal", messages=[{"role": "user", "content": question}], temperature=0, max_tokens=30
    )
    response = client_of_real.responses.create(model="formal", input=question, temperature=0, max_output_tokens=30)
    assert response.output_text == chat.choices[0].message.content
    assert response.usage and chat.usage and response.usage.input_tokens == chat.usage.prompt_tokens


@pytest.fixture
def client_of_real(server: Running) -> Iterator[openai.OpenAI]:
    with server.openai as client:
        yield client
