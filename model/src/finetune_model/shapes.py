"""Conversations that a template renders alike, so that not every prompt of every row has to be rendered.

Rendering takes longer than tokenizing. Two conversations have one shape if a template can hardly tell them apart: the same roles
and keys, and texts that give the same result in each test that the template makes of texts. For a shape the first row is rendered with all
its prompts; what the template writes between the texts, and where answers begin and end, is then known. A later row is
rendered once, and if it consists of the same parts around its own texts, its answers stand at the same places, and what else the template would render of it is known. At the 2nd, 4th, 8th ... row
all prompts are rendered again, and must agree.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from finetune_model.chat import Conversation

MAX_SHAPES: Final = 4096
"""Shapes that are remembered; a dataset has as many as it has kinds of conversations."""
_MISSES: Final = 16
"""Rows that may differ from a plan before its use is given up."""
_KEYS: Final = frozenset({"role", "content", "reasoning_content"})
_GENERATION_TAG: Final = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
_TRIMMING: Final = frozenset({"strip", "lstrip", "rstrip", "trim"})

Shape = tuple[Any, ...]
Range = tuple[int, int]
"""Range of characters of a text."""
Place = tuple[int, int]
"""Position in a rendering: after so many texts of the conversation, and so many characters."""


class ShapeReader:
    """Reads shapes for one template."""

    def __init__(self, template: str) -> None:
        """Find the strings that the template compares texts with. Raises jinja2.TemplateSyntaxError."""
        self._contained, self._equal = _tested_strings(template)

    def shape_of(self, chat: Conversation, learnt: Sequence[int]) -> Shape | None:
        """Return the shape of a conversation; None for one with calls, whose texts are nested."""
        texts: dict[str, int] = {}
        parts: list[Any] = []
        for message in chat.messages:
            if not message.keys() <= _KEYS:
                return None
            parts.append(message["role"])
            for text in _texts(message):
                # Templates compare messages with each other, too.
                first = texts.setdefault(text, len(texts))
                parts.append((first, self._tests(text)))
        return (tuple(parts), tuple(learnt), json.dumps(chat.tools) if chat.tools else None)

    def _tests(self, text: str) -> tuple[Any, ...]:
        stripped = text.strip()
        edges = (text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]) if text != stripped else ()
        return (
            bool(stripped),
            edges,
            tuple(number for number, tested in enumerate(self._contained) if tested in text),
            text if text in self._equal else None,
        )


@dataclass(frozen=True)
class Rendering:
    """A text with its answers; `count` is the number of messages that it is the rendering of."""

    text: str
    answers: list[Range]
    count: int


@dataclass(frozen=True)
class _Part:
    """A rendering of a shape: literals around the conversation's texts, and the places of answers."""

    count: int
    literals: list[str]
    stripped: list[bool | None]
    """True for each text that is trimmed; None for one that the template leaves out."""
    answers: list[tuple[Place, Place]]


class Plan:
    """Rendering of one shape, learnt from one of its rows."""

    def __init__(self, parts: list[_Part]) -> None:
        self._parts = parts
        self.uses = 0
        self.misses = 0

    @classmethod
    def learn(cls, chat: Conversation, renderings: Sequence[Rendering]) -> "Plan | None":
        """Return the plan of a row that was rendered with all its prompts; None if its texts cannot be told from the rest."""
        parts = [_part(chat, rendering) for rendering in renderings]
        complete = [part for part in parts if part is not None]
        return cls(complete) if len(complete) == len(parts) else None

    @property
    def is_useful(self) -> bool:
        """True while rows of the shape usually consist of its parts."""
        return self.misses < _MISSES or self.misses * 2 < self.uses

    def is_due(self) -> bool:
        """Count a use, and return whether all prompts have to be rendered for it."""
        self.uses += 1
        return self.uses & (self.uses - 1) == 0

    def apply(self, chat: Conversation, render: Callable[[int], str]) -> list[Rendering] | None:
        """Render a row of this shape; None if it does not consist of the parts that were learnt."""
        found: list[Rendering] = []
        for part in self._parts:
            pieces: list[str] = []
            starts: list[int] = []
            position = 0
            for literal, text in zip(part.literals, [*_shown(chat, part), ""], strict=True):
                starts.append(position)
                pieces += [literal, text]
                position += len(literal) + len(text)
            text = "".join(pieces)
            # The whole conversation comes first; where it consists of the parts, the beginnings of it do.
            if not found and render(part.count) != text:
                self.misses += 1
                return None
            answers = [
                (starts[first] + more, starts[last] + further) for (first, more), (last, further) in part.answers
            ]
            found.append(Rendering(text, answers, part.count))
        return found


def _part(chat: Conversation, rendering: Rendering) -> _Part | None:
    literals: list[str] = []
    stripped: list[bool | None] = []
    starts, position = [0], 0
    for text in _texts_of(chat, rendering.count):
        place, is_stripped = rendering.text.find(text, position), False
        if place < 0 or not text.strip():
            place, is_stripped = rendering.text.find(text.strip(), position), True
        if place < 0 or not text.strip():
            stripped.append(None)
            continue
        stripped.append(is_stripped)
        literals.append(rendering.text[position:place])
        position = place + len(text.strip() if is_stripped else text)
        starts.append(position)
    literals.append(rendering.text[position:])
    answers = []
    for start, end in rendering.answers:
        places = _place(start, starts, literals), _place(end, starts, literals)
        if places[0] is None or places[1] is None:
            return None
        answers.append((places[0], places[1]))
    return _Part(rendering.count, literals, stripped, answers)


def _place(position: int, starts: Sequence[int], literals: Sequence[str]) -> Place | None:
    """Return a position as a place in one of the literals; None if it is inside a text of the conversation."""
    for number, (start, literal) in enumerate(zip(starts, literals, strict=True)):
        if start <= position <= start + len(literal):
            return number, position - start
    return None


def _shown(chat: Conversation, part: _Part) -> Iterator[str]:
    for text, is_stripped in zip(_texts_of(chat, part.count), part.stripped, strict=True):
        if is_stripped is not None:
            yield text.strip() if is_stripped else text


def _texts_of(chat: Conversation, count: int) -> Iterator[str]:
    for message in chat.messages[:count]:
        yield from _texts(message)


def _texts(message: dict[str, Any]) -> Iterator[str]:
    if "reasoning_content" in message:
        yield message["reasoning_content"]
    yield message["content"]


def _tested_strings(template: str) -> tuple[list[str], frozenset[str]]:
    """Return the strings that a template looks for inside texts, and those that it compares with whole texts."""
    from jinja2 import Environment, nodes

    # The tag marks answers for transformers and renders nothing.
    source = _GENERATION_TAG.sub("", template)
    tree = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False).parse(source)  # noqa: S701 - parsed, not rendered
    contained: dict[str, None] = {}
    equal: set[str] = set()
    for node in tree.find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Test)):
        if isinstance(node, nodes.Compare):
            operands = [node.expr, *(operand.expr for operand in node.ops)]
            is_equality = all(operand.op in ("eq", "ne") for operand in node.ops)
            constants = [one.value for one in operands if isinstance(one, nodes.Const) and isinstance(one.value, str)]
            if is_equality:
                equal.update(constants)
            else:
                contained.update(dict.fromkeys(constants))
            continue
        name = node.node.attr if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) else None
        if name in _TRIMMING:
            continue
        constants = [
            one.value
            for one in getattr(node, "args", None) or ()
            if isinstance(one, nodes.Const) and isinstance(one.value, str)
        ]
        contained.update(dict.fromkeys(constants))
    return [text for text in contained if text], frozenset(equal)
