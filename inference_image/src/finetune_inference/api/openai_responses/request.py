"""Requests of OpenAI's Responses API, and their translation into a chat.

Fields that need state are refused with the reason, because this server keeps no responses; a client sends the conversation with
each request instead. Other fields than those here are fields of a chat's request, and served or refused as there.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictStr, model_validator

from finetune_api.validation import FieldError
from finetune_inference.api.requests import ChatCompletionRequest
from finetune_inference.api.translation import (
    Conversation,
    refuse_keys,
    refuse_other_names,
    text_of,
    translated,
    unexpected_type,
)

NO_STATE = "this server keeps no responses; send the whole conversation in input"
NEEDS_STATE: dict[str, str] = {
    "previous_response_id": NO_STATE,
    "conversation": NO_STATE,
    "background": "this server answers within the request; leave it out",
    "prompt": "this server has no stored prompts; send instructions and input",
}
"""Fields that are refused unless they are null or false, with the reason."""
WITHOUT_EFFECT = frozenset(
    {
        "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "service_tier",
        "background", "conversation", "previous_response_id", "prompt", "max_tool_calls",
    }
)  # fmt: skip
"""Fields that cannot change an answer of this server: of billing and caches, of tools that run at OpenAI, and `NEEDS_STATE`."""
INCLUDABLE = ("message.output_text.logprobs", "reasoning.encrypted_content")
"""Values of `include` that are served; reasoning is sent as text, encrypted or not."""
NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "include",
}
"""Fields of a chat's request by their names here, where they differ."""
ITEM_KEYS = {
    "message": frozenset({"type", "role", "content", "id", "status", "phase"}),
    "function_call": frozenset({"type", "id", "call_id", "name", "arguments", "status", "parsed_arguments", "caller"}),
    "function_call_output": frozenset({"type", "id", "call_id", "output", "status"}),
    "reasoning": frozenset({"type", "id", "content", "summary", "status"}),
}
"""Keys of the items of `input` that are read, or that repeat what this server has sent."""


class Reasoning(BaseModel):
    """Options of the reasoning."""

    model_config = ConfigDict(extra="forbid")

    effort: StrictStr | None = None
    summary: Literal["auto"] | None = None
    """Reasoning is sent in full, so that only the default is served."""


class TextOptions(BaseModel):
    """Options of the answer's text."""

    model_config = ConfigDict(extra="forbid")

    format: dict[str, Any] | None = None
    verbosity: Literal["medium"] | None = None
    """Only the default, because chat templates have no variable for it."""


class ResponsesStreamOptions(BaseModel):
    """Options of a streamed answer; its last event always has the token counts."""

    model_config = ConfigDict(extra="forbid")

    include_obfuscation: bool | None = None
    """Accepted without effect: no event of this server is padded to hide its length."""


class ResponsesChat(ChatCompletionRequest):
    """A response's request as a chat's."""

    @property
    def limit_field(self) -> str:
        """Name of the field with the length limit."""
        return "max_output_tokens"


class ResponsesRequest(BaseModel):
    """Body of POST /v1/responses."""

    model_config = ConfigDict(extra="allow")

    model: Annotated[str, Field(min_length=1, max_length=512)]
    input: StrictStr | Annotated[list[dict[str, Any]], Field(min_length=1)]
    instructions: StrictStr | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    temperature: float | None = None
    text: TextOptions | None = None
    tool_choice: StrictStr | dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    top_logprobs: int | None = None
    top_p: float | None = None
    truncation: Literal["disabled"] | None = None
    """Only the default: a conversation that is too long is an error."""
    include: list[StrictStr] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_state(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, reason in NEEDS_STATE.items():
            if data.get(name) not in (None, False):
                raise FieldError(name, f"not supported: {reason}")
        if data.get("store") is True:
            raise FieldError("store", "is true, but this server keeps no responses; set it to false")
        refuse_other_names(data, NAMES)
        return data

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise FieldError("stream_options", "set stream to true as well")
        for value in self.include or ():
            if value not in INCLUDABLE:
                raise FieldError("include", f"has {value[:64]!r}, expected one of {', '.join(INCLUDABLE)}")
        if self.top_logprobs and INCLUDABLE[0] not in (self.include or ()):
            raise FieldError("top_logprobs", f"add {INCLUDABLE[0]} to include as well")
        return self

    def chat(self) -> ResponsesChat:
        """Return the chat that this request means. Raises ApiError or FieldError."""
        extra = {key: value for key, value in (self.model_extra or {}).items() if key not in WITHOUT_EFFECT}
        logprobs = INCLUDABLE[0] in (self.include or ())
        fields = extra | {
            "model": self.model,
            "max_completion_tokens": self.max_output_tokens,
            "parallel_tool_calls": self.parallel_tool_calls,
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
            "response_format": _response_format(self.text.format if self.text else None),
            "stream": self.stream,
            "temperature": self.temperature,
            "tool_choice": _tool_choice(self.tool_choice),
            "tools": self.tools,
            "logprobs": logprobs or None,
            "top_logprobs": self.top_logprobs if logprobs else None,
            "top_p": self.top_p,
        }
        return translated(ResponsesChat, fields, self._conversation(), NAMES)

    def _conversation(self) -> Conversation:
        conversation = Conversation()
        if self.instructions:
            conversation.add("instructions", {"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            conversation.add("input", {"role": "user", "content": self.input})
            return conversation
        reader = _InputReader(conversation)
        for index, item in enumerate(self.input):
            reader.read(item, f"input[{index}]")
        return conversation


class _InputReader:
    """Reader of input items; those of one answer become one message, as its reasoning, text and calls were generated."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._answer: dict[str, Any] | None = None
        """The assistant's message that further items belong to."""

    def read(self, item: dict[str, Any], place: str) -> None:
        """Add one item. Raises FieldError."""
        kind = item.get("type", "message")
        if not isinstance(kind, str) or kind not in ITEM_KEYS:
            raise unexpected_type(place, kind, ", ".join(ITEM_KEYS))
        refuse_keys(item, ITEM_KEYS[kind], place)
        match kind:
            case "message":
                self._message(item, place)
            case "function_call":
                function = {"name": item.get("name"), "arguments": item.get("arguments")}
                call = {"id": item.get("call_id"), "type": "function", "function": function}
                self._turn(place).setdefault("tool_calls", []).append(call)
            case "function_call_output":
                output = text_of(item.get("output"), f"{place}.output", ("input_text", "output_text", "text"))
                self._add(place, {"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
            case "reasoning":
                self._reasoning(item, place)

    def _message(self, item: dict[str, Any], place: str) -> None:
        types = ("input_text", "output_text", "text", "refusal")
        text = text_of(
            item.get("content"), f"{place}.content", types, ignored=frozenset({"annotations", "logprobs", "parsed"})
        )
        if item.get("role") != "assistant":
            self._add(place, {"role": item.get("role"), "content": text if item.get("content") is not None else None})
            return
        if self._answer is None or self._answer["content"] is not None or "tool_calls" in self._answer:
            self._answer = None
        self._turn(place)["content"] = text

    def _reasoning(self, item: dict[str, Any], place: str) -> None:
        text = text_of(item.get("content"), f"{place}.content", ("reasoning_text", "text"))
        text = text or text_of(item.get("summary"), f"{place}.summary", ("summary_text",))
        self._answer = None
        self._turn(place)["reasoning_content"] = text

    def _turn(self, place: str) -> dict[str, Any]:
        if self._answer is None:
            self._answer = self._conversation.add(place, {"role": "assistant", "content": None})
        return self._answer

    def _add(self, place: str, message: dict[str, Any]) -> None:
        self._answer = None
        self._conversation.add(place, message)


def _response_format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    if given is None or given.get("type") != "json_schema":
        return given
    inner = {key: value for key, value in given.items() if key not in ("type", "description")}
    return {"type": "json_schema", "json_schema": inner}


def _tool_choice(given: str | dict[str, Any] | None) -> Any:
    if not isinstance(given, dict):
        return given
    if given.get("type") != "function":
        raise unexpected_type("tool_choice", given.get("type"), "function")
    refuse_keys(given, {"type", "name"}, "tool_choice")
    return {"type": "function", "function": {"name": given.get("name")}}
