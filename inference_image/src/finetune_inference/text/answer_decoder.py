"""The answer of one request as text: detokenized, cut at stop texts, with its finish reason."""

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


class StopTexts:
    """Cuts a text stream before the first stop text, and holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Text that is certainly before any stop text."""
        if not self._stops:
            return piece
        text = self._held + piece
        positions = [position for stop in self._stops if (position := text.find(stop)) >= 0]
        if positions:
            self.found = True
            self._held = ""
            return text[: min(positions)]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The rest, when no text follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one event of the engine adds to an answer."""

    text: str = ""
    token: ScoredToken | None = None
    prompt: list[ScoredToken] | None = None
    """The scored prompt; comes once and first, if it was asked for."""
    finish_reason: FinishReason | None = None
    """Set on the last delta of a sequence."""
    completion_tokens: int = 0
    """On the last delta: tokens generated."""


class EngineFailedError(Exception):
    """The engine could not finish a sequence."""


class AnswerRefusedError(Exception):
    """A sequence cannot go on as the request wants it; the message says why."""


class AnswerTimeoutError(Exception):
    """A sequence took longer than sequences may."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the answer was not complete after {seconds:g} s")
        self.seconds = seconds


class AnswerDecoder:
    """Turns one sequence's events into deltas of text."""

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(vocabulary)
        self._stops = StopTexts(stops)
        self._tokens = 0

    def feed(self, event: Event) -> TextDelta:
        """The delta of one event; after one with a finish reason nothing may be fed.

        Raises EngineFailedError, AnswerRefusedError or AnswerTimeoutError.
        """
        match event:
            case PromptScored(tokens):
                return TextDelta(prompt=tokens)
            case Generated(token):
                return self._generated(token)
            case Finished(reason, completion_tokens):
                return self._finished(reason, completion_tokens)
            case Refused(message):
                raise AnswerRefusedError(message)
            case Failed(message):
                raise EngineFailedError(message)
            case TimedOut(seconds):
                raise AnswerTimeoutError(seconds)

    def _generated(self, token: ScoredToken) -> TextDelta:
        self._tokens += 1
        text = self._stops.push(self._detokenizer.push(token.token_id))
        if self._stops.found:
            return TextDelta(text, token, finish_reason="stop", completion_tokens=self._tokens)
        return TextDelta(text, token)

    def _finished(self, reason: FinishReason, completion_tokens: int) -> TextDelta:
        text = self._stops.push(self._detokenizer.flush())
        if self._stops.found:
            return TextDelta(text, finish_reason="stop", completion_tokens=completion_tokens)
        return TextDelta(text + self._stops.flush(), finish_reason=reason, completion_tokens=completion_tokens)
