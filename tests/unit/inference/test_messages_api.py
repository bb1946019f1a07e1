"""/v1/messages as Anthropic's official client sees it, unpatched."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from support.server.running_inference import Running
from support.server.scripted_server import Scripted

pytestmark = pytest.mark.model

PARAMETERS: dict[str, Any] = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}
TRACK: Any = {"name": "track", "description": "Find an order", "input_schema": PARAMETERS}
CALL = '<tool_call>\n{"name": "track", "arguments": {"id": "42"}}\n</tool_call>'
THOUGHT = f"<think>\nLook it up.\n</think>\n\nOne moment.\n{CALL}"
QUESTION: list[Any] = [{"role": "user", "content": "Where is it?"}]


def client_of(server: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


@pytest.fixture
def client(qwen: Scripted) -> Iterator[anthropic.Anthropic]:
    with client_of(qwen.server) as client:
        yield client


def create(client: anthropic.Anthropic, **fields: Any) -> Any:
    return client.messages.create(**({"model": "base", "max_tokens": 300, "messages": QUESTION} | fields))


def test_a_text_is_answered(qwen: Scripted, client: anthropic.Anthropic) -> None:
    qwen.answer("It left.")
    message = create(client, system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}])
    assert [block.text for block in message.content] == ["It left."]
    assert (message.role, message.stop_reason, message.stop_sequence) == ("assistant", "end_turn", None)
    prompt = qwen.engine.tokenizer.decode(qwen.engine.prompts[-1])
    assert (
        prompt
        == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhere is it?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert message.usage.input_tokens == len(qwen.engine.prompts[-1])


def test_thinking_text_and_calls_are_blocks_in_the_order_of_the_answer(
    qwen: Scripted, client: anthropic.Anthropic
) -> None:
    qwen.answer(f"{THOUGHT}\n{CALL}")
    message = create(client, tools=[TRACK])
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert message.content[0].thinking == "Look it up."
    assert message.content[1].text == "One moment."
    assert (message.content[2].name, message.content[2].input) == ("track", {"id": "42"})
    assert message.content[2].id != message.content[3].id
    assert message.stop_reason == "tool_use"


def test_a_stream_has_anthropics_events_in_anthropics_order(qwen: Scripted, client: anthropic.Anthropic) -> None:
    qwen.answer(THOUGHT, THOUGHT)
    raw = [event.type for event in create(client, tools=[TRACK], stream=True)]
    order = [name for i, name in enumerate(raw) if not i or raw[i - 1] != name]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert order == ["message_start", *block * 3, "message_delta", "message_stop"]
    with client.messages.stream(model="base", max_tokens=300, messages=QUESTION, tools=[TRACK]) as stream:
        texts = list(stream.text_stream)
        final: Any = stream.get_final_message()
    assert len(texts) > 2
    assert "".join(texts) == "One moment."
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use"]
    assert (final.content[0].thinking, final.content[2].input) == ("Look it up.", {"id": "42"})
    assert final.stop_reason == "tool_use"
    assert final.usage.output_tokens > 10


def test_a_conversation_with_results_of_tools_goes_on(qwen: Scripted, client: anthropic.Anthropic) -> None:
    qwen.answer(THOUGHT, "It left.")
    first = create(client, tools=[TRACK])
    result = {"type": "tool_result", "tool_use_id": first.content[-1].id, "content": [{"type": "text", "text": "left"}]}
    history = [
        *QUESTION,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result, {"type": "text", "text": "And?"}]},
    ]
    assert create(client, messages=history, tools=[TRACK]).content[0].text == "It left."
    prompt = qwen.engine.tokenizer.decode(qwen.engine.prompts[-1])
    assert f"<|im_start|>assistant\n{THOUGHT}<|im_end|>\n" in prompt
    assert "<tool_response>\nleft\n</tool_response><|im_end|>\n<|im_start|>user\nAnd?<|im_end|>" in prompt
    qwen.answer("I see.")
    create(client, messages=[*history[:2], {"role": "user", "content": [result | {"is_error": True}]}])
    assert "<tool_response>\nError: left\n" in qwen.engine.tokenizer.decode(qwen.engine.prompts[-1])


def test_a_last_message_of_the_assistant_is_the_beginning_of_the_answer(
    qwen: Scripted, client: anthropic.Anthropic
) -> None:
    qwen.answer(" left.")
    message = create(client, messages=[*QUESTION, {"role": "assistant", "content": "It"}])
    assert message.content[0].text == " left."
    assert qwen.engine.tokenizer.decode(qwen.engine.prompts[-1]).endswith("<|im_start|>assistant\nIt")


def test_a_stop_sequence_is_named(qwen: Scripted, client: anthropic.Anthropic) -> None:
    qwen.answer("It left. Bye.")
    message = create(client, stop_sequences=["never", " Bye"])
    assert message.content[0].text == "It left."
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " Bye")
    qwen.answer("It left. Bye.")
    assert create(client, max_tokens=2).stop_reason == "max_tokens"


def test_a_choice_of_tools_is_kept(qwen: Scripted, client: anthropic.Anthropic) -> None:
    qwen.answer(CALL, f"{CALL}\n{CALL}", CALL)
    forced = create(client, tools=[TRACK], tool_choice={"type": "tool", "name": "track"})
    assert [block.type for block in forced.content] == ["tool_use"]
    single = create(client, tools=[TRACK], tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert len(single.content) == 1
    assert create(client, tools=[TRACK], tool_choice={"type": "none"}).content[0].text == CALL


def test_structured_output_has_its_schema(qwen: Scripted, client: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    qwen.answer('{"a":1}', "no JSON")
    output = {"format": {"type": "json_schema", "schema": schema}}
    assert create(client, output_config=output).content[0].text == '{"a":1}'
    with pytest.raises(anthropic.BadRequestError):
        create(client, output_config=output)


def test_tokens_are_counted_as_they_would_be_read(qwen: Scripted, client: anthropic.Anthropic) -> None:
    fields: Any = {"system": "Be brief.", "tools": [TRACK], "messages": QUESTION, "model": "base"}
    message = create(client, **fields)
    assert client.messages.count_tokens(**fields).input_tokens == message.usage.input_tokens


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 100_000}, "max_tokens is 100000; this server allows"),
        ({"messages": []}, "messages: "),
        (
            {"messages": [{"role": "system", "content": "a"}]},
            "messages[0].role: is 'system', expected user or assistant",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].type: is 'image'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 7}]}]},
            "messages[0].content[0].text: expected text",
        ),
        (
            {"messages": [{"role": "user", "content": "\ud800"}]},
            "messages[0].content: has an unpaired UTF-16 surrogate",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type: is 'web_search_20250305'"),
        ({"tool_choice": {"type": "any"}}, "tool_choice: requires a call, but tools has no function"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type: is 'some', expected auto, any, tool or none"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.budget_tokens: cannot be enforced"),
        ({"thinking": {"type": "adaptive"}}, "thinking is high, but the model's chat template has no variable"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema: expected an object"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {}, "strict": False}}},
            "output_config.format.strict: not supported",
        ),
        ({"thinking": {"type": "disabled", "budget_tokens": 5}}, "thinking.budget_tokens: not supported"),
        ({"thinking": {"type": "disabled", "foo": 1}}, "thinking.foo: not supported"),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, "thinking.display: not supported"),
        ({"tool_choice": {"type": "auto", "name": "track"}}, "tool_choice.name: not supported"),
        (
            {"messages": [*QUESTION, {"role": "assistant", "content": "It"}], "continue_final_message": False},
            "continue_final_message: not supported: a last message of the assistant is always continued",
        ),
        ({"mcp_servers": [{"url": "a"}]}, "mcp_servers: not supported: this server calls no tools"),
        ({"stop": ["a"]}, "stop: is a field of /v1/chat/completions; use stop_sequences here"),
        ({"n": 2}, "n: an answer of this route is one"),
        ({"temperature": 1.5}, "temperature: expected 1 or less"),
    ],
)
def test_what_is_not_served_is_refused_by_name_in_anthropics_form(
    qwen: Scripted, fields: dict[str, Any], words: str
) -> None:
    body = {"model": "base", "max_tokens": 5, "messages": QUESTION} | fields
    headers = {"content-type": "application/json", "x-api-key": "none", "anthropic-version": "2023-06-01"}
    content = json.dumps({key: value for key, value in body.items() if value is not None})
    answer = httpx.post(f"{qwen.server.url}/v1/messages", content=content, headers=headers)
    assert answer.status_code == 400, answer.text
    error = answer.json()
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    assert words in error["error"]["message"]


def test_errors_have_anthropics_classes(qwen: Scripted, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        create(client, model="claude-9")
    assert caught.value.type == "not_found_error"
    with pytest.raises(anthropic.BadRequestError):
        create(client, messages=[{"role": "user", "content": "Where? " * 5000}], stream=True)
    large = httpx.post(f"{qwen.server.url}/v1/messages", content=b"x" * (5 << 20))
    assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")


@pytest.mark.engine
def test_three_routes_give_a_real_model_one_prompt_and_one_answer(server: Running) -> None:
    question = "How do I reset my password?"
    with server.openai as openai_client, client_of(server) as client:
        for model in ("base", "formal"):
            chat = openai_client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=30
            )
            response = openai_client.responses.create(model=model, input=question, temperature=0, max_output_tokens=30)
            message: Any = client.messages.create(
                model=model,
                messages=[{"role": "user", "content": question}],
                max_tokens=30,
                extra_body={"temperature": 0},
            )
            assert chat.choices[0].message.content == response.output_text == message.content[0].text
            assert chat.usage and response.usage
            assert chat.usage.prompt_tokens == response.usage.input_tokens == message.usage.input_tokens
            assert chat.usage.completion_tokens == response.usage.output_tokens == message.usage.output_tokens
