"""Requests and responses of OpenAI's API, as far as it is served here.

Unknown fields are ignored, because clients of many releases send many fields. Fields that would change the answer and are
not served are named in `UNSUPPORTED` and refused: an answer that silently lacks what was asked for is worse than an error.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, StrictStr, model_validator

from finetune_api.validation import FieldError
from finetune_inference.engine.interface import MAX_TOP_LOGPROBS, FinishReason

MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_BIASES = 1024
MAX_KIND = 32
"""Characters of an unsupported part's type that are shown."""
SMALLEST_SEED, LARGEST_SEED = -(2**63), 2**63 - 1


def _bounded(value: Any) -> Any:
    """Refuse a large mapping before its entries are checked one by one."""
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"at most {MAX_BIASES} tokens can have a bias")
    return value


Stop = Annotated[StrictStr, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
TokenIds = Annotated[list[Annotated[StrictInt, Field(ge=0)]], Field(min_length=1, fail_fast=True)]


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    include_usage: bool | None = None


class GenerationRequest(BaseModel):
    """What chats and completions have in common."""

    model_config = ConfigDict(allow_inf_nan=False, extra="ignore")
    UNSUPPORTED: ClassVar[tuple[str, ...]] = ()
    """Fields that are refused if they are set to anything but null, false, an empty list or their neutral value."""
    NEUTRAL: ClassVar[tuple[Any, ...]] = (None, False, [], {}, "none", "auto", "default", "")

    model: Annotated[str, Field(min_length=1, max_length=512)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=SMALLEST_SEED, le=LARGEST_SEED)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_bounded)
        ]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if isinstance(data, dict):
            found = [name for name in cls.UNSUPPORTED if data.get(name) not in cls.NEUTRAL]
            if found:
                raise FieldError(", ".join(found), "not supported by this server")
        return data

    @model_validator(mode="after")
    def _check_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise FieldError("stream_options", "set stream to true as well")
        return self

    @property
    def stops(self) -> list[str]:
        """Stop texts, however they were written."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def choices(self) -> int:
        """Answers per prompt."""
        return self.n or 1

    @property
    def limit_field(self) -> str:
        """The field that says how long an answer may be."""
        return "max_tokens"

    @property
    def include_usage(self) -> bool:
        """A stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(BaseModel):
    """A part of a message. Only text is served."""

    type: Literal["text"]
    text: StrictStr

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_types(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(kind := data.get("type"), str) and kind != "text":
            raise ValueError(f"only text is supported, found {kind[:MAX_KIND]}")
        return data


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: str | None = None

    def to_template(self) -> dict[str, str]:
        """As chat templates expect it: text only; `developer` is OpenAI's newer word for `system`."""
        parts = self.content if isinstance(self.content, list) else []
        text = "\n".join(part.text for part in parts) if parts else self.content or ""
        return {"role": "system" if self.role == "developer" else self.role, "content": str(text)}


class JsonSchema(BaseModel):
    """A schema that an answer is held to."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None
    """Unless true, keywords that cannot be enforced are passed over; the others are enforced anyway."""


class TextFormat(BaseModel):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(BaseModel):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(BaseModel):
    """A JSON value that a schema describes."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class ChatCompletionRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    UNSUPPORTED: ClassVar[tuple[str, ...]] = (
        "tools",
        "tool_choice",
        "functions",
        "function_call",
        "modalities",
        "audio",
        "web_search_options",
    )
    NEUTRAL: ClassVar[tuple[Any, ...]] = (*GenerationRequest.NEUTRAL, ["text"])

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise FieldError("top_logprobs", "set logprobs to true as well")
        if self.max_tokens == 0:
            raise FieldError("max_tokens", "use 1 or more")
        return self

    @property
    def answer_limit(self) -> int | None:
        """Tokens wanted at most."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def limit_field(self) -> str:
        """OpenAI's newer field, where it is used."""
        return "max_completion_tokens" if self.max_completion_tokens else "max_tokens"


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    UNSUPPORTED: ClassVar[tuple[str, ...]] = ("suffix",)

    prompt: (
        StrictStr
        | Annotated[list[StrictStr], Field(min_length=1, fail_fast=True)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)]
    )
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if self.best_of is not None and self.best_of != self.choices:
            raise FieldError("best_of", "only the same value as n is supported")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [item for item in self.prompt if isinstance(item, str | list)]


class TokenizeRequest(BaseModel):
    """POST /tokenize, as vLLM has it: a text, or a conversation that goes through the chat template."""

    model_config = ConfigDict(extra="ignore")

    model: Annotated[str, Field(min_length=1, max_length=512)]
    prompt: StrictStr | None = None
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise FieldError("prompt", "set either prompt or messages")
        return self


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
        """Counts with their sum."""
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )


class TopLogprob(BaseModel):
    """One of the likeliest tokens."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of a chat's answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a chat's answer."""

    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(BaseModel):
    """The answer of a chat."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """Response of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str


class ChatDelta(BaseModel):
    """What a chunk adds to the answer. Unset fields are not sent."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    """A chunk of one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a completion; the lists run in parallel, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One completion, whole or a chunk."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class Completion(BaseModel):
    """Response of POST /v1/completions; also a chunk of it."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    system_fingerprint: str


class ChatChunk(BaseModel):
    """A chunk of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    system_fingerprint: str


class ModelCard(BaseModel):
    """A served model. `parent` and `root` are set for adapters as vLLM sets them, `digest` is ours."""

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
