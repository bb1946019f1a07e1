"""Entries of the reference on phases, condition types and reasons, read from the docstrings in `conditions` and `reasons`."""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from finetune_api.conditions import ConditionType, Phase
from finetune_api.reasons import Reason

TO_DO: Final = "To do: "


@dataclass(frozen=True)
class ReasonEntry:
    """A reason."""

    group: str
    name: str
    meaning: str
    to_do: str


@dataclass(frozen=True)
class ConditionEntry:
    """A condition type."""

    name: str
    meaning: str
    kinds: tuple[str, ...]
    when: dict[str, str]
    """Meaning of True, False and Unknown, as far as the condition has them."""
    set_by: str


def phases() -> dict[str, str]:
    """Return the meaning of every phase."""
    return {name: text for _, name, text in _members(Phase)}


def conditions(kind: str) -> list[ConditionEntry]:
    """Return the condition types of a kind, in the order of their declaration."""
    entries = [_condition(name, text) for _, name, text in _members(ConditionType)]
    return [entry for entry in entries if kind in entry.kinds]


def reasons() -> list[ReasonEntry]:
    """Return every reason, in the order of its declaration."""
    return [
        ReasonEntry(group, name, *(part.strip() for part in text.split(TO_DO, 1)))
        for group, name, text in _members(Reason)
    ]


def _condition(name: str, text: str) -> ConditionEntry:
    meaning, _, lines = text.partition("\n\n")
    facts = dict(line.strip().split(": ", 1) for line in lines.splitlines())
    return ConditionEntry(
        name=name,
        meaning=meaning,
        kinds=tuple(facts["Kinds"].rstrip(".").split(", ")),
        when={status: facts[status] for status in ("True", "False", "Unknown") if status in facts},
        set_by=facts["Set by"],
    )


def _members(enum: type[StrEnum]) -> Iterator[tuple[str, str, str]]:
    """Yield group, value and docstring of every member; a comment on a line of its own begins a group."""
    source = inspect.getsource(enum)
    groups = {i: line.strip("# ") for i, line in enumerate(source.splitlines(), 1) if line.startswith("    # ")}
    definition = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    for member, docstring in zip(definition.body, definition.body[1:], strict=False):
        if not isinstance(member, ast.Assign) or not isinstance(docstring, ast.Expr):
            continue
        group = groups[max(line for line in groups if line < member.lineno)] if groups else ""
        yield group, ast.literal_eval(member.value), inspect.cleandoc(ast.literal_eval(docstring.value))
