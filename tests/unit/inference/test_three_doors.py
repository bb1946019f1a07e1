"""One conversation by three routes: equal token ids, whatever the model's family."""

from pathlib import Path
from typing import Any

import anthropic
import pytest

from support.server.calling_templates import FAMILIES
from support.server.scripted_server import scripted

pytestmark = pytest.mark.model

PARAMETERS: dict[str, Any] = {"type": "object", "properties": {"id": {"type": "string"}}}
SYSTEM, QUESTION, RESULT, THOUGHT = "Be brief.", "Where is order 42?", "left", "Look it up."
ARGUMENTS = {"id": "42"}
CALL_ID = "abcdefgh1"


def chat_body() -> dict[str, Any]:
    call = {"id": CALL_ID, "type": "function", "function": {"name": "track", "arguments": '{"id": "42"}'}}
    return {
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": "One moment.", "reasoning_content": THOUGHT, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": CALL_ID, "content": RESULT},
        ],
        "tools": [{"type": "function", "function": {"name": "track", "description": "Find", "parameters": PARAMETERS}}],
    }


def response_body() -> dict[str, Any]:
    return {
        "instructions": SYSTEM,
        "input": [
            {"role": "user", "content": QUESTION},
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": THOUGHT}],
            },
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "One moment."}]},
            {"type": "function_call", "call_id": CALL_ID, "name": "track", "arguments": '{"id": "42"}'},
            {"type": "function_call_output", "call_id": CALL_ID, "output": RESULT},
        ],
        "tools": [{"type": "function", "name": "track", "description": "Find", "parameters": PARAMETERS}],
    }


def message_body() -> dict[str, Any]:
    return {
        "system": SYSTEM,
        "max_tokens": 1000,
        "messages": [
            {"role": "user", "content": QUESTION},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": THOUGHT, "signature": ""},
                    {"type": "text", "text": "One moment."},
                    {"type": "tool_use", "id": CALL_ID, "name": "track", "input": ARGUMENTS},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": CALL_ID, "content": RESULT}]},
        ],
        "tools": [{"name": "track", "description": "Find", "input_schema": PARAMETERS}],
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_has_the_same_tokens_and_answer_by_all_routes(family: str, tmp_path: Path) -> None:
    with scripted(tmp_path, family) as server, server.server.openai as client:
        server.answer("It left.", "It left.", "It left.")
        chat: Any = client.chat.completions.create(model="base", **chat_body())
        response = client.responses.create(model="base", **response_body())
        with anthropic.Anthropic(base_url=server.server.url, api_key="none") as other:
            message: Any = other.messages.create(model="base", **message_body())
            counted = other.messages.count_tokens(
                model="base", **{key: value for key, value in message_body().items() if key != "max_tokens"}
            )
        first, second, third = server.engine.prompts[-3:]
        assert first == second == third
        assert counted.input_tokens == len(first)
        answers = {
            (chat.choices[0].message.content, getattr(chat.choices[0].message, "reasoning_content", None) or ""),
            (
                response.output_text,
                "".join(c.text for item in response.output if item.type == "reasoning" for c in item.content or ()),
            ),
            (
                "".join(block.text for block in message.content if block.type == "text"),
                "".join(block.thinking for block in message.content if block.type == "thinking"),
            ),
        }
        normalized = {(content or "", reasoning) for content, reasoning in answers}
        assert len(normalized) == 1
        assert "".join(next(iter(normalized))) == "It left."
