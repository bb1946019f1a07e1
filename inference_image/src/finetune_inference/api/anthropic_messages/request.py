"""Requests of Anthropic's Messages API, and their translation into a chat.

Other fields than those here are fields of a chat's request, and served or refused as there.
"""

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictStr, model_validator

from finetune_api.validation import FieldError
from finetune_inference.api.requests import ChatCompletionRequest, Stop
from finetune_inference.api.translation import (
    Conversation,
    refuse_keys,
    refuse_other_names,
    text_of,
    translated,
    unexpected_type,
)

WITHOUT_EFFECT = frozenset(
    {"metadata", "service_tier", "cache_control", "inference_geo", "user_profile_id", "workspace_id"}
)
"""Fields of billing, caches and accounts, which cannot change an answer of this server."""
NOT_SERVED: dict[str, str] = {
    "container": "this server runs no code",
    "mcp_servers": "this server calls no tools; send their functions in tools and call them yourself",
    "context_management": "this server edits no conversations",
    "speed": "this server has one speed",
    "diagnostics": "this server keeps no diagnostics",
    "continue_final_message": "a last message of the assistant is always continued, and no other is",
}
"""Fields that are refused unless they are null, with the reason."""
NAMES = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "response_format.json_schema": "output_config.format",
    "reasoning_effort": "thinking",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
}
"""Fields of a chat's request by their names here, where they differ."""
BLOCK_KEYS = {
    "text": frozenset({"type", "text", "cache_control", "citations"}),
    "thinking": frozenset({"type", "thinking", "signature"}),
    "tool_use": frozenset({"type", "id", "name", "input", "cache_control", "caller"}),
    "tool_result": frozenset({"type", "tool_use_id", "content", "is_error", "cache_control"}),
}
"""Keys of the blocks that are read, or that cannot change an answer."""
CACHE = frozenset({"cache_control", "citations"})
TOOL_KEYS = frozenset(
    {"type", "name", "description", "input_schema", "cache_control", "eager_input_streaming", "strict"}
)


class MessagesChat(ChatCompletionRequest):
    """A message's request as a chat's."""

    @property
    def limit_field(self) -> str:
        """Name of the field with the length limit."""
        return "max_tokens"


class CountTokensRequest(BaseModel):
    """Body of POST /v1/messages/count_tokens, and the part of a message's request that makes its prompt."""

    model_config = ConfigDict(extra="allow")

    model: Annotated[str, Field(min_length=1, max_length=512)]
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    system: StrictStr | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unserved(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name, reason in NOT_SERVED.items():
                if data.get(name) not in (None, []):
                    raise FieldError(name, f"not supported: {reason}")
            refuse_other_names(data, NAMES)
        return data

    def chat(self) -> MessagesChat:
        """Return the chat that this request means. Raises ApiError or FieldError."""
        extra = {
            key: value for key, value in (self.model_extra or {}).items() if key not in {*WITHOUT_EFFECT, *NOT_SERVED}
        }
        conversation = self._conversation()
        # A last message of the assistant is the beginning of the answer.
        begun = {"continue_final_message": True} if conversation.messages[-1]["role"] == "assistant" else {}
        return translated(MessagesChat, extra | self._fields() | begun, conversation, NAMES)

    def _fields(self) -> dict[str, Any]:
        choice, parallel = _tool_choice(self.tool_choice)
        return {
            "model": self.model,
            "tools": [_tool(tool, f"tools[{index}]") for index, tool in enumerate(self.tools or ())] or None,
            "tool_choice": choice,
            "parallel_tool_calls": parallel,
            "reasoning_effort": _effort(self.thinking, self.output_config),
            "response_format": _response_format(self.output_config),
        }

    def _conversation(self) -> Conversation:
        conversation = Conversation()
        if self.system:
            system = text_of(self.system, "system", ("text",), ignored=CACHE)
            conversation.add("system", {"role": "system", "content": system})
        for index, message in enumerate(self.messages):
            _read_message(conversation, message, f"messages[{index}]")
        return conversation


class MessagesRequest(CountTokensRequest):
    """Body of POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: list[Stop] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: float | None = None

    def _fields(self) -> dict[str, Any]:
        own = {"max_completion_tokens": self.max_tokens, "stop": self.stop_sequences or None}
        shared = {"stream": self.stream, "temperature": self.temperature, "top_p": self.top_p}
        return super()._fields() | own | shared


def _read_message(conversation: Conversation, message: dict[str, Any], place: str) -> None:
    refuse_keys(message, {"role", "content"}, place)
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant"):
        shown = repr(role)[:40] if isinstance(role, str) else "missing"
        raise FieldError(f"{place}.role", f"is {shown}, expected user or assistant; a system prompt belongs to system")
    if isinstance(content, str):
        conversation.add(f"{place}", {"role": role, "content": content})
        return
    if not isinstance(content, list) or not content:
        raise FieldError(f"{place}.content", "expected text or a list of blocks")
    types = ("text", "tool_result") if role == "user" else ("text", "thinking", "tool_use")
    blocks = [_block(block, f"{place}.content[{index}]", types) for index, block in enumerate(content)]
    if role == "assistant":
        conversation.add(place, _assistant(blocks))
        return
    for index, block in enumerate(blocks):
        if block["type"] == "tool_result":
            here = f"{place}.content[{index}]"
            conversation.add(here, _tool_result(block, here))
    if any(block["type"] == "text" for block in blocks):
        conversation.add(place, {"role": "user", "content": _texts(blocks)})


def _block(block: Any, place: str, types: tuple[str, ...]) -> dict[str, Any]:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(block, dict) or kind not in types:
        raise unexpected_type(place, kind, " or ".join(types))
    refuse_keys(block, BLOCK_KEYS[str(kind)], place)
    key = {"text": "text", "thinking": "thinking"}.get(str(kind))
    if key and not isinstance(block.get(key), str):
        raise FieldError(f"{place}.{key}", "expected text")
    return block


def _texts(blocks: list[dict[str, Any]]) -> str:
    return "\n".join(block["text"] for block in blocks if block["type"] == "text")


def _assistant(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    calls = [
        {
            "id": block.get("id"),
            "type": "function",
            "function": {"name": block.get("name"), "arguments": block.get("input")},
        }
        for block in blocks
        if block["type"] == "tool_use"
    ]
    message: dict[str, Any] = {"role": "assistant", "content": _texts(blocks)}
    if calls:
        message["tool_calls"] = calls
    if reasoning := "\n".join(block["thinking"] for block in blocks if block["type"] == "thinking"):
        message["reasoning_content"] = reasoning
    return message


def _tool_result(block: dict[str, Any], place: str) -> dict[str, Any]:
    text = text_of(block.get("content"), f"{place}.content", ("text",), ignored=CACHE)
    # Chat templates have no field for it, and the model has to know.
    text = f"Error: {text}" if block.get("is_error") else text
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text}


def _tool(tool: dict[str, Any], place: str) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        raise unexpected_type(place, tool["type"], "custom; tools that run at Anthropic are not served")
    refuse_keys(tool, TOOL_KEYS, place)
    function = {
        "name": tool.get("name"),
        "description": tool.get("description"),
        "parameters": tool.get("input_schema"),
    }
    return {"type": "function", "function": function | ({"strict": True} if tool.get("strict") is True else {})}


def _tool_choice(choice: dict[str, Any] | None) -> tuple[Any, bool | None]:
    """Return the choice of a chat's request, and whether several calls are allowed."""
    if choice is None:
        return None, None
    known = {"type", "disable_parallel_tool_use"} | ({"name"} if choice.get("type") == "tool" else set())
    refuse_keys(choice, known, "tool_choice")
    parallel = False if choice.get("disable_parallel_tool_use") else None
    kinds = {"auto": "auto", "any": "required", "none": "none"}
    match choice.get("type"):
        case "tool":
            return {"type": "function", "function": {"name": choice.get("name")}}, parallel
        case str() as kind if kind in kinds:
            return kinds[kind], parallel
    raise unexpected_type("tool_choice", choice.get("type"), "auto, any, tool or none")


def _effort(thinking: dict[str, Any] | None, output_config: dict[str, Any] | None) -> str | None:
    """Return the effort of a chat's request."""
    given = thinking or {}
    if given.get("type") != "enabled":
        # Thinking is sent in full, so that of `display` only the value for this is served.
        refuse_keys(given, {"type", "display"} if given.get("display") == "summarized" else {"type"}, "thinking")
    effort = (output_config or {}).get("effort")
    if effort is not None and not isinstance(effort, str):
        raise FieldError("output_config.effort", "expected low, medium or high")
    match given.get("type"):
        case None if thinking is None:
            return effort
        case "disabled":
            return "none"
        case "adaptive":
            return effort or "high"
        case "enabled":
            raise FieldError(
                "thinking.budget_tokens",
                "cannot be enforced by this server; use {type: adaptive}, and max_tokens as the limit",
            )
    raise unexpected_type("thinking", given.get("type"), "adaptive or disabled")


def _response_format(output_config: dict[str, Any] | None) -> dict[str, Any] | None:
    refuse_keys(output_config or {}, {"effort", "format"}, "output_config")
    given = (output_config or {}).get("format")
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("type") != "json_schema":
        raise unexpected_type(
            "output_config.format", given.get("type") if isinstance(given, dict) else None, "json_schema"
        )
    refuse_keys(given, {"type", "schema"}, "output_config.format")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": given.get("schema"), "strict": True}}


def arguments_of(text: str) -> dict[str, Any]:
    """Return a call's arguments as the object that Anthropic's form has."""
    value: dict[str, Any] = json.loads(text)
    return value
