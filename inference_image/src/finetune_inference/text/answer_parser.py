"""Answers in parts: reasoning, content and tool calls, read from the text while it is generated.

No text vanishes: a call that turns out to be malformed, or is cut off, becomes content as it was generated.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import regex

from finetune_inference.text.answer_format import AnswerFormat, ReasoningMarkers
from finetune_inference.text.call_syntax import (
    CallReader,
    CallSyntax,
    JsonCall,
    NotACallError,
    ParsedCall,
    PythonicCall,
    flexible,
    flexible_json,
)


@dataclass(frozen=True)
class Reasoning:
    """More of the reasoning that precedes the answer."""

    text: str


@dataclass(frozen=True)
class Content:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """One complete call."""

    index: int
    id: str
    name: str
    arguments: str
    """Arguments as the JSON text of an object."""


Part = Reasoning | Content | ToolCall


@dataclass(frozen=True)
class Tools:
    """The functions that a request offers, as far as reading calls needs them."""

    types: dict[str, dict[str, Any]] = field(default_factory=dict)
    """JSON schemas of each function's arguments."""
    offered: bool = False
    """True if the request offers functions; then a call needs no marker."""
    read: bool = True
    """False if calls stay text: `tool_choice` is none, or the answer has to match a schema."""
    single: bool = False
    """True if the answer ends after one call."""


class AnswerParser(Protocol):
    """Reader of one answer."""

    def push(self, text: str) -> list[Part]:
        """Add text and return the parts that became certain."""

    def finish(self) -> list[Part]:
        """Return the remaining parts, when no text follows."""

    @property
    def calls(self) -> int:
        """Number of calls so far."""

    @property
    def in_reasoning(self) -> bool:
        """True while the text is reasoning."""


class PlainParser:
    """Reader of answers that are all content."""

    calls = 0
    in_reasoning = False

    def push(self, text: str) -> list[Part]:
        """Add text and return it."""
        return [Content(text)] if text else []

    def finish(self) -> list[Part]:
        """Return nothing, because nothing is held back."""
        return []


class MarkedParser:
    """Reader of answers with markers around reasoning and calls."""

    def __init__(self, form: AnswerFormat, tools: Tools, new_id: Callable[[], str], *, in_reasoning: bool) -> None:
        self.calls = 0
        self._reasoning = form.reasoning
        self._syntax = form.calls if tools.read and form.calls and (form.calls.marked or tools.offered) else None
        self._tools = tools
        self._new_id = new_id
        self._text = ""
        """Text that is not certain yet."""
        self._raw = ""
        """Text since the last call or content that becomes content if no call follows."""
        self._reader: CallReader | None = None
        self._begun = False
        """True once content was returned; a call without a marker, and reasoning, can only stand before it."""
        self._patterns = _Patterns(form.reasoning, self._syntax)
        self._state = self._in_reasoning if in_reasoning else self._at_start
        self._trim = in_reasoning

    @property
    def in_reasoning(self) -> bool:
        """True while the text is reasoning."""
        return self._state == self._in_reasoning

    def push(self, text: str) -> list[Part]:
        """Add text and return the parts that became certain."""
        self._text += text
        return self._advance(last=False)

    def finish(self) -> list[Part]:
        """Return the remaining parts, when no text follows."""
        parts = self._advance(last=True)
        rest = self._raw + self._text
        self._raw = self._text = ""
        if self._state == self._in_reasoning:
            return [*parts, *_some(Reasoning, rest.rstrip())]
        if self._state == self._between_calls and not rest.strip():
            return parts
        return [*parts, *_some(Content, rest)]

    def _advance(self, *, last: bool) -> list[Part]:
        parts: list[Part] = []
        while True:
            state, length = self._state, len(self._text)
            parts += self._state(last)
            if self._state == state and len(self._text) == length:
                return parts

    def _at_start(self, last: bool) -> list[Part]:
        """Wait until the text shows how the answer begins."""
        pattern = self._patterns.reasoning
        found = pattern.match(self._text, partial=True) if pattern else None
        if found and not found.partial:
            self._text = self._text[found.end() :]
            self._trim = True
            self._state = self._in_reasoning
        elif not found or last:
            self._state = self._in_content
        return []

    def _in_reasoning(self, last: bool) -> list[Part]:
        assert self._patterns.reasoning_end  # noqa: S101 - the markers come in pairs
        if self._trim:
            self._text = self._text.lstrip()
            # An opening marker may follow a prompt that has one already.
            self._trim = not self._text
        end = self._patterns.reasoning_end.search(self._text, partial=True)
        if end is None:
            text, self._text = self._text, ""
            return _some(Reasoning, text)
        text, rest = self._text[: end.start()], self._text[end.end() :]
        if end.partial:
            self._text = self._text[end.start() :]
        else:
            self._text, self._state, self._trim = rest, self._after_reasoning, False
        return _some(Reasoning, text)

    def _after_reasoning(self, last: bool) -> list[Part]:
        self._text = self._text.lstrip()
        if self._text:
            self._state = self._in_content
        return []

    def _in_content(self, last: bool) -> list[Part]:
        if self._syntax is None:
            text, self._text = self._text, ""
            return self._content(text)
        found = self._begin_of_call()
        if found is None:
            text, self._text = self._text, ""
            return self._content(text)
        text, marker, rest = (
            self._text[: found.start()],
            self._text[found.start() : found.end()],
            self._text[found.end() :],
        )
        if found.partial and last:
            return []
        if found.partial:
            self._text = self._text[found.start() :]
        else:
            self._text, self._raw, self._reader = rest, marker, None
            self._state = self._in_call
        return self._content(text)

    def _begin_of_call(self) -> Any:
        assert self._syntax and self._patterns.call  # noqa: S101 - called only with a form of calls
        if self._syntax.marked:
            return self._patterns.call.search(self._text, partial=True)
        return None if self._begun else self._patterns.call.match(self._text, partial=True)

    def _in_call(self, last: bool) -> list[Part]:
        assert self._syntax  # noqa: S101 - as above
        self._reader = self._reader or CallReader(self._syntax, self._tools.types)
        try:
            found = self._reader.read(self._text)
        except NotACallError:
            self._state, self._begun = self._in_content, True
            text, self._raw = self._raw, ""
            # The marker is content, and the text after it may hold another.
            return self._content(text)
        if found is None:
            return []
        calls, end = found
        self._text, self._raw, self._state = self._text[end:], "", self._between_calls
        return [self._call(call) for call in calls[: 1 if self._tools.single else None]]

    def _between_calls(self, last: bool) -> list[Part]:
        """Skip the texts around calls until another begins, or other text."""
        end = self._patterns.glue.match(self._text).end()
        rest = self._text[end:]
        following = self._patterns.next_call.match(rest, partial=True)
        if not last and (not rest or (following and following.partial) or self._patterns.begins_glue(rest)):
            return []
        if following and not following.partial:
            self._raw, self._text = self._text[: end + following.end()], rest[following.end() :]
            self._reader, self._state = None, self._in_call
        elif rest:
            self._text, self._state, self._begun = rest, self._in_content, True
        else:
            self._text = ""
        return []

    def _call(self, call: ParsedCall) -> ToolCall:
        self.calls += 1
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        return ToolCall(self.calls - 1, self._new_id(), call.name, arguments)

    def _content(self, text: str) -> list[Part]:
        self._begun = self._begun or bool(text.strip())
        return _some(Content, text)


class _Patterns:
    """Patterns of the markers; a partial match at the end of the text is held back."""

    def __init__(self, reasoning: ReasoningMarkers | None, syntax: CallSyntax | None) -> None:
        self.reasoning: Any = None
        self.reasoning_end: Any = None
        if reasoning:
            self.reasoning = regex.compile(rf"\s*{flexible(reasoning.opening)}")
            self.reasoning_end = regex.compile(rf"\s*{flexible(reasoning.closing)}")
        self.call: Any = None
        if syntax is None:
            return
        opening = flexible(syntax.opening + " " + syntax.before)
        python_tag = r"(?:<\|python_tag\|>\s*)?"
        glue = [flexible(t) for t in (syntax.after, syntax.closing, syntax.separator, ";", ",") if t.strip()]
        if isinstance(syntax.shape, JsonCall | PythonicCall):
            bare = (
                flexible_json(syntax.shape.prefix) if isinstance(syntax.shape, JsonCall) else r"\[\s*[A-Za-z_][\w.-]*\("
            )
            self.call = regex.compile(rf"\s*{opening}" if syntax.marked else rf"\s*{python_tag}(?={bare})")
            self.next_call = regex.compile(
                rf"(?:{opening}\s*)?(?=[{{\[])" if syntax.marked else rf"{python_tag}(?={bare})"
            )
        else:
            self.call = regex.compile(rf"\s*{opening}")
            self.next_call = regex.compile(flexible(syntax.before) if syntax.before else opening)
        self.glue = regex.compile(rf"(?:\s|{'|'.join(glue)})*")
        self._glue = [regex.compile(pattern) for pattern in glue]

    def begins_glue(self, text: str) -> bool:
        """Return whether more text may complete a text that stands around calls."""
        matches = [pattern.match(text, partial=True) for pattern in self._glue]
        return any(match and match.partial for match in matches)


def _some(kind: Callable[[str], Part], text: str) -> list[Part]:
    return [kind(text)] if text else []
