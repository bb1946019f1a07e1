"""What a dataset is made of: rows as they were parsed, and examples that are known to be right."""

from dataclasses import dataclass
from typing import Any, Final, Literal

Message = dict[str, Any]
"""A message of a chat in OpenAI's form: role, content, and sometimes weight, name, tool_calls."""
Format = Literal["messages", "preference", "prompt-completion", "text"]
PARTS: Final[dict[Format, tuple[str, ...]]] = {
    "messages": ("messages",),
    "preference": ("prompt", "chosen", "rejected"),
    "prompt-completion": ("prompt", "completion"),
    "text": ("text",),
}
"""Parts that a row of each format must have, in the order in which formats are detected."""
ROLES: Final = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Row:
    """A parsed row and the words by which its author finds it."""

    where: str
    """For example `line 3` or `row 3`, counted from 1."""
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Example:
    """A row whose parts are known to be right; which of them are set depends on the format."""

    where: str
    messages: list[Message] | None = None
    tools: list[Any] | None = None
    """Functions that the chat template is to offer; with `messages` only."""
    prompt: str | list[Message] | None = None
    """Text, or the beginning of a chat in the `preference` format."""
    completion: str | None = None
    text: str | None = None
    chosen: str | list[Message] | None = None
    """The better of two answers to `prompt`, in the prompt's form."""
    rejected: str | list[Message] | None = None
    """The worse one."""
