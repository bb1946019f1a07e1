"""Forms that a request can hold its answers to: OpenAI's `response_format`, and vLLM's `structured_outputs` and `guided_*`."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictStr, model_validator

from finetune_api.validation import FieldError
from finetune_inference.text.grammar import ANY_OBJECT, Grammars, JsonConstraint

MAX_CHOICES = 1000


class JsonSchema(BaseModel):
    """Schema that the answer has to match."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None
    """If true, keywords that cannot be enforced are an error; otherwise they are ignored and all others enforced."""
    description: StrictStr | None = None
    """Purpose of the schema, for readers of the request."""


class TextFormat(BaseModel):
    """Free text."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]


class JsonObjectFormat(BaseModel):
    """Any JSON object."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["json_object"]


class JsonSchemaFormat(BaseModel):
    """JSON value that matches a schema."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
Schema = dict[str, Any] | StrictStr
"""JSON schema, as an object or as the text of one."""
Pattern = Annotated[StrictStr, Field(min_length=1)]
Choices = Annotated[
    list[Annotated[StrictStr, Field(min_length=1)]], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)
]


class StructuredOutputs(BaseModel):
    """vLLM's form of an answer: exactly one of the fields."""

    model_config = ConfigDict(extra="forbid")

    json_schema: Annotated[Schema | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: Pattern | None = None
    choice: Choices | None = None
    grammar: Pattern | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        given = [name for name, value in self.forms().items() if value not in (None, False)]
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise ValueError(f"expected one of json, json_object, regex, choice, grammar; found {found}")
        return self

    def forms(self) -> dict[str, Any]:
        """Return the fields by the names that requests give them."""
        return self.model_dump(by_alias=True)


@dataclass(frozen=True)
class AnswerForm:
    """The form that a request wants, and the field that says so."""

    field: str
    compile: Callable[[Grammars], JsonConstraint]
    """Compile the constraint of an answer. Raises GrammarError."""


def form_of_response_format(wanted: ResponseFormat | None) -> AnswerForm | None:
    """Return the form of OpenAI's field; None for free text."""
    match wanted:
        case JsonObjectFormat():
            return AnswerForm("response_format", lambda grammars: grammars.compile(ANY_OBJECT, lenient=False))
        case JsonSchemaFormat(json_schema=asked):
            return AnswerForm(
                "response_format", lambda grammars: grammars.compile(asked.json_schema, lenient=not asked.strict)
            )
    return None


def form_of(field: str, kind: str, value: Any) -> AnswerForm:
    """Return the form of one of vLLM's kinds: json, json_object, regex, choice or grammar. Raises FieldError."""
    match kind:
        case "json":
            schema = _schema(field, value)
            return AnswerForm(field, lambda grammars: grammars.compile(schema, lenient=False))
        case "json_object":
            return AnswerForm(field, lambda grammars: grammars.compile(ANY_OBJECT, lenient=False))
        case "regex":
            return AnswerForm(field, lambda grammars: grammars.compile_pattern(value))
        case "choice":
            return AnswerForm(field, lambda grammars: grammars.compile_choice(value))
    return AnswerForm(field, lambda grammars: grammars.compile_grammar(value))


def only_form(forms: Iterable[AnswerForm]) -> AnswerForm | None:
    """Return the one form that a request wants; None for free text. Raises FieldError for several."""
    wanted = list(forms)
    if len(wanted) > 1:
        raise FieldError(wanted[1].field, f"{wanted[0].field} is set as well; send one of them")
    return wanted[0] if wanted else None


def _schema(field: str, value: Schema) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    try:
        schema = json.loads(value)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise FieldError(field, "expected a JSON schema: an object, or the text of one")
    return schema
