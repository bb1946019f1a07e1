"""The parts of a chat's answer as a list of items, for the APIs whose answers are lists: Responses and Messages."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from finetune_inference.text.answer_parser import Content, Part, Reasoning, ToolCall

Kind = Literal["reasoning", "text", "call"]


@dataclass
class Item:
    """A block of reasoning, a text, or a call."""

    index: int
    kind: Kind
    text: str = ""
    """Text so far; the arguments of a call."""
    call: ToolCall | None = None


@dataclass(frozen=True)
class Begin:
    """An item begins."""

    item: Item


@dataclass(frozen=True)
class Add:
    """An item gets more text."""

    item: Item
    text: str


@dataclass(frozen=True)
class End:
    """An item is complete."""

    item: Item


@dataclass
class ItemList:
    """The items of an answer so far; the last one is open until another kind of part follows."""

    items: list[Item] = field(default_factory=list)
    _open: Item | None = None

    def add(self, parts: Iterable[Part]) -> Iterator[Begin | Add | End]:
        """Add parts and yield what happens to the items."""
        for part in parts:
            kind: Kind = (
                "call" if isinstance(part, ToolCall) else "reasoning" if isinstance(part, Reasoning) else "text"
            )
            if isinstance(part, Content) and not part.text.strip() and self._open is None and self.items:
                # White space between two calls.
                continue
            if self._open is None or self._open.kind != kind or kind == "call":
                yield from self.close()
                self._open = Item(len(self.items), kind, call=part if isinstance(part, ToolCall) else None)
                self.items.append(self._open)
                yield Begin(self._open)
            text = part.arguments if isinstance(part, ToolCall) else part.text
            self._open.text += text
            yield Add(self._open, text)

    def close(self) -> Iterator[End]:
        """End the open item, if there is one."""
        if self._open is not None:
            yield End(self._open)
            self._open = None
