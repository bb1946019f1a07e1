"""From one sequence's events to text: detokenized, cut at stop texts, with its finish reason."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_inference.engine.interface import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Generated,
    PromptScored,
    Refused,
    ScoredToken,
    TimedOut,
)
from finetune_inference.text.detokenizer import Detokenizer
from finetune_inference.text.vocabulary import Vocabulary

FIRST_MARK = 0xD800
"""First code point of `SpecialMarks`."""


@dataclass(frozen=True)
class TextRules:
    """Wishes of a request about the text of its answers."""

    stops: tuple[str, ...] = ()
    """Texts that end the answer."""
    include_stop: bool = False
    """The text ends after the stop text or the end token instead of before it."""
    skip_special_tokens: bool = True
    """Special tokens are left out of the text."""
    min_tokens: int = 0
    """Number of tokens in which no stop text is searched."""
    constraint_field: str = "response_format"
    """Field of the request that the constraint came from, for errors."""


class StopTexts:
    """Cuts a text stream before the first stop text, and holds back a possible beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found: str | None = None
        """The stop text at which the stream was cut."""

    def push(self, chunk: str) -> str:
        """Add text and return the part that is certainly before any stop text."""
        if not self._stops:
            return chunk
        text = self._held + chunk
        positions = [(position, stop) for stop in self._stops if (position := text.find(stop)) >= 0]
        if positions:
            position, self.found = min(positions)
            self._held = ""
            return text[:position]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return the text held back, when no text follows."""
        held, self._held = self._held, ""
        return held


class SpecialMarks:
    """Stand-ins for the special tokens that stop texts contain, because these tokens have no text of their own.

    Each is half a surrogate pair, which no decoded text contains, and is taken out of the text again.
    """

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str]) -> None:
        specials = {i: text for i, text in vocabulary.special_tokens.items() if any(text in stop for stop in stops)}
        self._by_id = {token_id: chr(FIRST_MARK + n) for n, token_id in enumerate(specials)}
        # The longest first, because the text of a special token may begin with that of another one.
        self._texts = sorted(((specials[i], mark) for i, mark in self._by_id.items()), key=lambda each: -len(each[0]))
        self._removal = dict.fromkeys(map(ord, self._by_id.values()))

    def of(self, token_id: int) -> str:
        """Return the stand-in of a token; empty for most tokens."""
        return self._by_id.get(token_id, "")

    def in_stop(self, stop: str) -> str:
        """Return a stop text with stand-ins."""
        for text, mark in self._texts:
            stop = stop.replace(text, mark)
        return stop

    def removed(self, text: str) -> str:
        """Return a text without stand-ins."""
        return text.translate(self._removal) if self._removal else text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Addition to an answer by one event of the engine."""

    text: str = ""
    token: ScoredToken | None = None
    prompt: list[ScoredToken] | None = None
    """The scored prompt, if requested; comes once and first."""
    finish_reason: FinishReason | None = None
    """Set on the last delta of a sequence, else None."""
    offset: int = 0
    """Number of characters of the answer before the token's own."""
    starts_text: bool = False
    """True if the token has no text before it, neither in the prompt nor in the answer."""
    completion_tokens: int = 0
    """Number of generated tokens; set on the last delta, else 0."""


class EngineFailedError(Exception):
    """The engine could not complete a sequence."""


class AnswerRefusedError(Exception):
    """The request of a sequence cannot be met; the message gives the reason."""

    def __init__(self, message: str, field: str) -> None:
        """Name the field of the request that cannot be met."""
        super().__init__(message)
        self.field = field


class AnswerTimeoutError(Exception):
    """A sequence exceeded its time limit."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the answer was not complete after {seconds:g} s")
        self.seconds = seconds


class AnswerDecoder:
    """Decoder of one sequence's events into deltas of text, which continue the text of its prompt."""

    def __init__(self, vocabulary: Vocabulary, rules: TextRules, prompt: Sequence[int] = ()) -> None:
        self._rules = rules
        self._detokenizer = Detokenizer(vocabulary, prompt, skip_special_tokens=rules.skip_special_tokens)
        self._marks = SpecialMarks(vocabulary, rules.stops if rules.skip_special_tokens else ())
        self._stop_texts = {self._marks.in_stop(stop): stop for stop in rules.stops}
        # A model can also write the text of a special token with ordinary tokens.
        self._stop_texts |= {stop: stop for stop in rules.stops}
        self._stops = StopTexts(list(self._stop_texts))
        self._tokens = 0

    @property
    def stop_text(self) -> str | None:
        """Stop text that ended the answer; None if none did."""
        return self._stop_texts.get(self._stops.found or "")

    def feed(self, event: Event) -> TextDelta:
        """Return the delta of one event. A delta with a finish reason is the last one.

        Raises EngineFailedError, AnswerRefusedError or AnswerTimeoutError.
        """
        match event:
            case PromptScored(tokens):
                return TextDelta(prompt=tokens)
            case Generated(token):
                return self._generated(token)
            case Finished():
                return self._finished(event)
            case Refused(message):
                raise AnswerRefusedError(message, self._rules.constraint_field)
            case Failed(message):
                raise EngineFailedError(message)
            case TimedOut(seconds):
                raise AnswerTimeoutError(seconds)

    def _generated(self, token: ScoredToken) -> TextDelta:
        self._tokens += 1
        starts_text = not self._detokenizer.has_begun
        text = self._detokenizer.push(token.token_id)
        text += self._marks.of(token.token_id)
        if self._tokens > self._rules.min_tokens:
            text = self._stops.push(text)
        ended = self._stops.found is not None
        return TextDelta(
            self._marks.removed(text) + self._included(),
            token,
            finish_reason="stop" if ended else None,
            completion_tokens=self._tokens if ended else 0,
            offset=self._detokenizer.token_start,
            starts_text=starts_text,
        )

    def _finished(self, event: Finished) -> TextDelta:
        text = ""
        if self._rules.include_stop and event.end_token is not None:
            text = self._detokenizer.push(event.end_token)
        text = self._stops.push(text + self._detokenizer.flush())
        reason: FinishReason = "stop" if self._stops.found else event.reason
        return TextDelta(
            self._marks.removed(text + self._stops.flush()) + self._included(),
            finish_reason=reason,
            completion_tokens=event.completion_tokens,
        )

    def _included(self) -> str:
        """Return the stop text that was found, if the answer includes it."""
        found = self._stops.found
        return self._stop_texts[found] if found is not None and self._rules.include_stop else ""
