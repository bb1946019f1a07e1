"""Rows as they were parsed, and examples that have been checked."""

from dataclasses import dataclass
from typing import Any, Final, Literal

from finetune_model.messages import Message, Tool

__all__ = ["PARTS", "Example", "Format", "Message", "Row", "Tool"]

Format = Literal["messages", "preference", "prompt-completion", "text"]
PARTS: Final[dict[Format, tuple[str, ...]]] = {
    "messages": ("messages",),
    "preference": ("prompt", "chosen", "rejected"),
    "prompt-completion": ("prompt", "completion"),
    "text": ("text",),
}
"""Required parts of a row by format, as they are named unless `dataset.columns` says otherwise."""


@dataclass(frozen=True, slots=True)
class Row:
    """Parsed row, with its place in the file."""

    where: str
    """For example `line 3` or `row 3`, counted from 1."""
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Example:
    """Checked row; the format decides which parts are set."""

    where: str
    messages: list[Message] | None = None
    """Conversation in the form of `finetune_model.messages`."""
    tools: list[Tool] | None = None
    """Functions that the chat template offers to the model; with messages only."""
    prompt: str | list[Message] | None = None
    """Text, or in the `preference` format the beginning of a chat."""
    gap: str = ""
    """White space between a prompt and an answer that stood in one text. Only a model without chat template reads it."""
    completion: str | None = None
    text: str | None = None
    chosen: str | list[Message] | None = None
    """The better of two answers to `prompt`, in the prompt's form."""
    rejected: str | list[Message] | None = None
    """The worse one."""
