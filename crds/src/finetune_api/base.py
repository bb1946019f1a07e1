"""Base classes of all models, and rules that span several fields of a model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel, to_snake
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

CEL: Final = "x-kubernetes-validations"
"""Key of CEL rules in a structural schema."""


@dataclass(frozen=True)
class Rule:
    """A rule that spans several fields: CEL for the API server, a predicate for Python, one message for both."""

    cel: str
    """Expression that is true for valid objects."""
    holds: Callable[[Any], bool]
    """Predicate that is true for valid models."""
    message: str
    """Sentence that says what is expected."""


class SpecModel(BaseModel):
    """Base of everything that users write. An unknown field is an error, never ignored. Frozen: a spec is a fact."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)
    RULES: ClassVar[tuple[Rule, ...]] = ()
    """Rules that span several fields, checked by pydantic and, as CEL, by the API server."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict with camelCase keys; unset optional fields are absent rather than null."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        broken = [rule.message for rule in self.RULES if not rule.holds(self)]
        if broken:
            raise ValueError("; ".join(broken))
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        if cls.RULES:
            target = handler.resolve_ref_schema(schema)
            rules = [{"rule": rule.cel, "message": rule.message} for rule in cls.RULES]
            target[CEL] = rules + target.get(CEL, [])
        return schema


class StatusModel(BaseModel):
    """Base of everything that the operator writes. Fields of a newer release are ignored, so that a rollback can still read the object."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict with camelCase keys; unset optional fields are absent rather than null."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def exactly_one_of(*fields: str) -> Rule:
    """Return the rule that exactly one of these fields is set. Fields are named as users write them."""
    cel = f"has(self.{fields[0]}) != has(self.{fields[1]})" if len(fields) == 2 else f"{_count(fields)} == 1"
    return Rule(cel, lambda m: _number_set(m, fields) == 1, f"set exactly one of {_list(fields)}")


def at_most_one_of(*fields: str, message: str | None = None) -> Rule:
    """Return the rule that at most one of these fields is set. Fields are named as users write them."""
    text = message or f"set at most one of {_list(fields)}"
    both = " && ".join(f"has(self.{field})" for field in fields)
    return Rule(
        f"!({both})" if len(fields) == 2 else f"{_count(fields)} <= 1", lambda m: _number_set(m, fields) <= 1, text
    )


def requires(field: str, other: str, message: str) -> Rule:
    """Return the rule that `field` is set only together with `other`."""
    cel = f"!has(self.{field}) || has(self.{other})"
    return Rule(cel, lambda m: not _number_set(m, (field,)) or _number_set(m, (other,)) == 1, message)


def _number_set(model: BaseModel, fields: tuple[str, ...]) -> int:
    return sum(getattr(model, to_snake(field)) is not None for field in fields)


def _count(fields: tuple[str, ...]) -> str:
    return " + ".join(f"(has(self.{field}) ? 1 : 0)" for field in fields)


def _list(fields: tuple[str, ...]) -> str:
    return f"{', '.join(fields[:-1])} and {fields[-1]}"
