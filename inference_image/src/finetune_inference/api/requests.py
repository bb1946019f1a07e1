"""Requests of OpenAI's API, in the part that this server supports.

Unknown fields are ignored, because clients of many releases send many fields. Unsupported fields that would change the answer
are listed in `UNSUPPORTED` and refused, because an answer that silently ignores a field is worse than an error.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, StrictStr, model_validator

from finetune_api.validation import FieldError
from finetune_inference.engine.interface import MAX_TOP_LOGPROBS

MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_BIASES = 1024
MAX_KIND = 32
"""Most characters of an unsupported part's type in a message."""
SMALLEST_SEED, LARGEST_SEED = -(2**63), 2**63 - 1


def _limit_entries(value: Any) -> Any:
    """Refuse a large mapping before its entries are checked one by one."""
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"has {len(value)} tokens; use {MAX_BIASES} or less")
    return value


Stop = Annotated[StrictStr, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
TokenIds = Annotated[list[Annotated[StrictInt, Field(ge=0)]], Field(min_length=1, fail_fast=True)]


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    include_usage: bool | None = None


class GenerationRequest(BaseModel):
    """Fields that chats and completions share."""

    model_config = ConfigDict(allow_inf_nan=False, extra="ignore")
    UNSUPPORTED: ClassVar[tuple[str, ...]] = ()
    """Fields that are refused unless their value is neutral."""
    NEUTRAL: ClassVar[tuple[Any, ...]] = (None, False, [], {}, "none", "auto", "default", "")
    """Values of unsupported fields that do not change an answer."""

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
            dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_limit_entries)
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
        """Stop texts as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def choices(self) -> int:
        """Number of answers per prompt."""
        return self.n or 1

    @property
    def limit_field(self) -> str:
        """Name of the field with the length limit of the answer."""
        return "max_tokens"

    @property
    def include_usage(self) -> bool:
        """True if the stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(BaseModel):
    """Part of a message; only text is supported."""

    type: Literal["text"]
    text: StrictStr

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_types(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(kind := data.get("type"), str) and kind != "text":
            raise ValueError(f"only text is supported, found {kind[:MAX_KIND]}")
        return data


class Message(BaseModel):
    """Message of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: str | None = None

    def to_template(self) -> dict[str, str]:
        """Return the message for chat templates: text only, and `system` for OpenAI's newer role `developer`."""
        parts = self.content if isinstance(self.content, list) else []
        text = "\n".join(part.text for part in parts) if parts else self.content or ""
        return {"role": "system" if self.role == "developer" else self.role, "content": str(text)}


class JsonSchema(BaseModel):
    """Schema that the answer has to match."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None
    """If true, keywords that cannot be enforced are an error; otherwise they are ignored and all others enforced."""


class TextFormat(BaseModel):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(BaseModel):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(BaseModel):
    """JSON value that matches a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class ChatCompletionRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

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
        """Most tokens of the answer."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def limit_field(self) -> str:
        """Name of the field with the length limit: OpenAI's newer one, if the request has it."""
        return "max_completion_tokens" if self.max_completion_tokens else "max_tokens"


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

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
        """Prompts, each as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [item for item in self.prompt if isinstance(item, str | list)]


class TokenizeRequest(BaseModel):
    """Body of POST /tokenize, in vLLM's format: a text, or a conversation for the chat template."""

    model_config = ConfigDict(extra="ignore")

    model: Annotated[str, Field(min_length=1, max_length=512)]
    prompt: StrictStr | None = None
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise FieldError("prompt", "set either prompt or messages")
        return self
