"""Responses of OpenAI's API, in the part that this server supports."""

from typing import Any, Literal, Self

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer

from finetune_inference.engine.interface import FinishReason
from finetune_inference.text.chat_answer import ChatFinishReason


class TokenizeResponse(BaseModel):
    """Response of POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]


class Usage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int) -> Self:
        """Make the counts and their sum."""
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )


class TopLogprob(BaseModel):
    """One of the likeliest tokens at a position."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """Token of a chat's answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a chat's answer."""

    content: list[TokenLogprob]
    refusal: None = None


class FunctionCall(BaseModel):
    """Function that is called, with its arguments as the JSON text of an object."""

    name: str
    arguments: str


class ToolCallItem(BaseModel):
    """Call of a function in an answer."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantMessage(BaseModel):
    """Answer of a chat."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    """Text; null if the answer only calls functions."""
    reasoning_content: str | None = None
    """Text that the model generated before its answer, in the field that DeepSeek's API has for it; absent without one."""
    tool_calls: list[ToolCallItem] | None = None
    """Calls; absent without any."""
    refusal: None = None

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        absent = [name for name in ("reasoning_content", "tool_calls") if getattr(self, name) is None]
        return {key: value for key, value in serialize(self).items() if key not in absent}


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason


class ChatCompletion(BaseModel):
    """Response of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str


class FunctionCallDelta(BaseModel):
    """Addition to a function call."""

    name: str | None = None
    arguments: str

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _set_only(serialize(self))


class ToolCallDelta(BaseModel):
    """Addition to the call with this index."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCallDelta

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _set_only(serialize(self))


def _set_only(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


class ChatDelta(BaseModel):
    """Addition to the answer by one chunk. Unset fields are not sent."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(BaseModel):
    """Part of one answer in a chunk."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None = None


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a completion, as parallel lists with one entry per token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One completion, whole or in a chunk."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class Completion(BaseModel):
    """Response of POST /v1/completions, or a chunk of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    system_fingerprint: str


class ChatChunk(BaseModel):
    """Chunk of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    system_fingerprint: str


class ModelCard(BaseModel):
    """Served model. `parent` and `root` are set as vLLM sets them for adapters; `digest` is our addition."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "finetune-operator"
    root: str
    parent: str | None
    max_model_len: int
    digest: str | None


class ModelList(BaseModel):
    """Response of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
