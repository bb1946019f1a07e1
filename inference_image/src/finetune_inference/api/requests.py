"""Requests of OpenAI's API, in the part that this server supports.

Each field is served, refused by name or ignored as `request_fields` says, because an answer that silently ignores a field is
worse than an error.
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    model_validator,
)

from finetune_api.validation import FieldError, shown
from finetune_inference.api.request_fields import Route, refusal, without_neutral
from finetune_inference.api.structured_output import (
    AnswerForm,
    Choices,
    Pattern,
    ResponseFormat,
    Schema,
    StructuredOutputs,
    form_of,
    form_of_response_format,
    only_form,
)
from finetune_inference.engine.interface import MAX_TOP_LOGPROBS
from finetune_inference.text.answer_decoder import TextRules
from finetune_model.messages import MessageError, normalize, normalize_tools

MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_STOP_TOKENS = 64
MAX_BIASES = 1024
MAX_TOOLS = 128
"""Most functions of a request; OpenAI's own limit."""
MAX_NAME = 256
SMALLEST_SEED, LARGEST_SEED = -(2**63), 2**63 - 1


def _limit_entries(value: Any) -> Any:
    """Refuse a large mapping before its entries are checked one by one."""
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"has {len(value)} tokens; use {MAX_BIASES} or less")
    return value


Stop = Annotated[StrictStr, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
TokenId = Annotated[StrictInt, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Accepted without effect: OpenAI pads chunks to hide their length, and no chunk of this server is padded."""


class GenerationRequest(BaseModel):
    """Fields that chats and completions share."""

    model_config = ConfigDict(allow_inf_nan=False, extra="forbid")
    ROUTE: ClassVar[Route]
    """Route whose decisions about fields apply."""
    _form: AnswerForm | None = None
    """Form of the answer, read once from the fields that describe one."""

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
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKENS, fail_fast=True)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: Pattern | None = None
    guided_choice: Choices | None = None
    guided_grammar: Pattern | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out_neutral_fields(cls, data: Any) -> Any:
        return without_neutral(cls.ROUTE, data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _check_common_fields(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise FieldError("stream_options", "set stream to true as well")
        if self.truncate_prompt_tokens == 0:
            raise FieldError("truncate_prompt_tokens", "use 1 or more, or -1 for all that fit")
        self._form = only_form(self._forms())
        return self

    @classmethod
    def refusal(cls, field: str) -> str | None:
        """Return the reason why a field is refused; None for an unknown one."""
        return refusal(cls.ROUTE, field)

    @property
    def form(self) -> AnswerForm | None:
        """The form of the answer; None for free text."""
        return self._form

    @property
    def text_rules(self) -> TextRules:
        """Wishes about the text of the answer."""
        return TextRules(
            stops=tuple(self.stops),
            include_stop=bool(self.include_stop_str_in_output),
            skip_special_tokens=self.skip_special_tokens is not False,
            min_tokens=self.min_tokens or 0,
            constraint_field=self._form.field if self._form else "response_format",
        )

    def _forms(self) -> Iterator[AnswerForm]:
        if form := form_of_response_format(self.response_format):
            yield form
        if self.structured_outputs:
            for kind, value in self.structured_outputs.forms().items():
                if value not in (None, False):
                    yield form_of("structured_outputs", kind, value)
        for kind in ("json", "regex", "choice", "grammar"):
            if (value := getattr(self, f"guided_{kind}")) is not None:
                yield form_of(f"guided_{kind}", kind, value)

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


def read_conversation(data: Any) -> Any:
    """Return a body with its messages and tools in the form that templates get. Raises FieldError, also for an unknown key."""
    if not isinstance(data, dict):
        return data
    messages, tools = data.get("messages"), data.get("tools")
    if isinstance(tools, list) and len(tools) > MAX_TOOLS:
        raise FieldError("tools", f"has {len(tools)} functions; use {MAX_TOOLS} or less")
    try:
        # Other types are refused with all other fields, in the same words.
        read = {"messages": normalize(messages)[0]} if isinstance(messages, list) and messages else {}
        return {**data, **read, **({"tools": normalize_tools(tools)} if isinstance(tools, list) else {})}
    except MessageError as error:
        raise FieldError(error.path, error.problem) from None


Messages = Annotated[list[dict[str, Any]], Field(min_length=1)]
ToolList = list[dict[str, Any]]


class FunctionName(BaseModel):
    """Function that the answer has to call."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


class NamedToolChoice(BaseModel):
    """Choice of one function."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: FunctionName


class ChatCompletionRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    ROUTE: ClassVar[Route] = "chat"

    messages: Messages
    tools: ToolList | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_conversation(cls, data: Any) -> Any:
        return read_conversation(data)

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise FieldError("top_logprobs", "set logprobs to true as well")
        if self.max_tokens == 0:
            raise FieldError("max_tokens", "use 1 or more")
        self._check_tools()
        _check_chat_options(self.continue_final_message, self.add_generation_prompt)
        return self

    def _check_tools(self) -> None:
        for index, tool in enumerate(self.tools or ()):
            if tool["function"]["parameters"].get("type", "object") != "object":
                raise FieldError(
                    f"tools[{index}].function.parameters.type", "expected object, because arguments have names"
                )
        names = [tool["function"]["name"] for tool in self.tools or ()]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise FieldError("tools", f"has the function {twice[:MAX_NAME]} twice; names have to differ")
        if self.tool_choice in (None, "none", "auto"):
            return
        if not names:
            raise FieldError("tool_choice", "requires a call, but tools has no function")
        if isinstance(self.tool_choice, NamedToolChoice) and self.tool_choice.function.name not in names:
            raise FieldError("tool_choice.function.name", f"is not in tools, which has {', '.join(names)[:MAX_NAME]}")
        if self.form is not None:
            raise FieldError(self.form.field, "has no effect if tool_choice requires a call; remove one of them")

    @property
    def answer_limit(self) -> int | None:
        """Most tokens of the answer."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def limit_field(self) -> str:
        """Name of the field with the length limit: OpenAI's newer one, if the request has it."""
        return "max_completion_tokens" if self.max_completion_tokens else "max_tokens"


def _check_prompt(value: Any) -> Any:
    """Refuse a value that no form of prompt begins like, in one sentence instead of one for each form."""
    items = value if isinstance(value, list) else []
    if isinstance(value, str) or (items and isinstance(items[0], str | int | list) and not isinstance(items[0], bool)):
        return value
    found = f"a list that begins with {shown(items[0])}" if items else shown(value) if value != [] else "an empty list"
    raise ValueError(f"expected a text, a list of texts, a list of token ids, or a list of such lists, found {found}")


def _check_chat_options(continue_final_message: bool | None, add_generation_prompt: bool | None) -> None:
    if continue_final_message and add_generation_prompt:
        raise FieldError("add_generation_prompt", "set it to false, because continue_final_message is true")


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    ROUTE: ClassVar[Route] = "completions"

    prompt: Annotated[
        StrictStr
        | Annotated[list[StrictStr], Field(min_length=1, fail_fast=True)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)],
        BeforeValidator(_check_prompt),
    ]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if self.best_of is not None and self.best_of != self.choices:
            raise FieldError("best_of", f"only the same value as n is supported; n is {self.choices}")
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

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(min_length=1, max_length=512)]
    prompt: StrictStr | None = None
    messages: Messages | None = None
    tools: ToolList | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_conversation(cls, data: Any) -> Any:
        return read_conversation(data)

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise FieldError("prompt", "set either prompt or messages")
        of_chats = ("chat_template_kwargs", "continue_final_message", "add_generation_prompt")
        for name in of_chats if self.prompt is not None else ("add_special_tokens",):
            if getattr(self, name) is not None:
                raise FieldError(name, f"concerns {'messages' if self.prompt is not None else 'a prompt'}")
        _check_chat_options(self.continue_final_message, self.add_generation_prompt)
        return self
