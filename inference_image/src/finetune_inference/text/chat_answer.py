"""From one sequence's events to the parts of a chat's answer."""

import secrets
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from finetune_inference.engine.interface import Event
from finetune_inference.text.answer_decoder import AnswerDecoder, TextDelta, TextRules
from finetune_inference.text.answer_format import AnswerFormat
from finetune_inference.text.answer_parser import (
    AnswerParser,
    Content,
    MarkedParser,
    Part,
    PlainParser,
    Reasoning,
    Tools,
)
from finetune_inference.text.harmony import HarmonyParser
from finetune_inference.text.vocabulary import Vocabulary

ChatFinishReason = Literal["stop", "length", "tool_calls"]
_ID_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class AnswerDelta(TextDelta):
    """Addition to a chat's answer by one event of the engine; `text` is the addition before it was read."""

    parts: tuple[Part, ...] = ()
    """The addition in parts; an end of the text that is not certain yet comes with a later delta."""
    ended: ChatFinishReason | None = None
    """Set on the last delta, else None."""
    in_reasoning: bool = False
    """True if the token belongs to the reasoning."""
    stop_text: str | None = None
    """Stop text that ended the answer; set on the last delta only."""


@dataclass(frozen=True)
class Reading:
    """How an answer is read."""

    form: AnswerFormat
    tools: Tools
    in_reasoning: bool = False
    """True if the prompt ends within a block of reasoning."""


class ChatDecoder:
    """Decoder of one sequence's events into parts."""

    def __init__(self, vocabulary: Vocabulary, rules: TextRules, prompt: Sequence[int], reading: Reading) -> None:
        markers = reading.form.markers
        self._decoder = AnswerDecoder(vocabulary.keeping(markers) if markers else vocabulary, rules, prompt)
        self._parser = _parser(reading.form, reading.tools, in_reasoning=reading.in_reasoning)
        self._single = reading.tools.single
        self._tokens = 0

    def feed(self, event: Event) -> AnswerDelta:
        """Return the delta of one event. A delta with a finish reason is the last one. Raises as `AnswerDecoder.feed`."""
        raw = self._decoder.feed(event)
        in_reasoning = self._parser.in_reasoning
        self._tokens += raw.token is not None
        parts = self._parser.push(raw.text)
        if self._single and self._parser.calls and not raw.finish_reason:
            # The client allows one call, so the rest would be discarded.
            raw = replace(raw, finish_reason="stop", completion_tokens=self._tokens)
        if raw.finish_reason:
            parts += self._parser.finish()
        ended: ChatFinishReason | None = raw.finish_reason
        if ended == "stop" and self._parser.calls:
            ended = "tool_calls"
        known = {each.name: getattr(raw, each.name) for each in fields(TextDelta)}
        return AnswerDelta(
            **known,
            parts=_joined(parts),
            ended=ended,
            in_reasoning=raw.token is not None and (in_reasoning or self._parser.in_reasoning),
            stop_text=self._decoder.stop_text if raw.finish_reason else None,
        )


def opens_reasoning(form: AnswerFormat, prompt: str) -> bool:
    """Return whether a prompt ends within a block of reasoning."""
    return form.reasoning is not None and prompt.rstrip().endswith(form.reasoning.opening)


def _parser(form: AnswerFormat, tools: Tools, *, in_reasoning: bool) -> AnswerParser:
    new_id = call_ids(short=form.short_ids)
    if form.harmony:
        return HarmonyParser(tools, new_id)
    if form.reasoning is None and form.calls is None:
        return PlainParser()
    return MarkedParser(form, tools, new_id, in_reasoning=in_reasoning)


def call_ids(*, short: bool) -> Callable[[], str]:
    """Return the maker of calls' ids: OpenAI's form, or nine letters and digits, which some templates demand in the history."""
    prefix, length = ("", 9) if short else ("call_", 24)
    return lambda: prefix + "".join(secrets.choice(_ID_LETTERS) for _ in range(length))


def _joined(parts: list[Part]) -> tuple[Part, ...]:
    """Join neighboring texts of one kind."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, Content) and isinstance(last, Content):
            joined[-1] = Content(last.text + part.text)
        elif isinstance(part, Reasoning) and isinstance(last, Reasoning):
            joined[-1] = Reasoning(last.text + part.text)
        else:
            joined.append(part)
    return tuple(joined)
