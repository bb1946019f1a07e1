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


class StopTexts:
    """Cuts a text stream before the first stop text, and holds back a possible beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found = False

    def push(self, chunk: str) -> str:
        """Add text and return the part that is certainly before any stop text."""
        if not self._stops:
            return chunk
        text = self._held + chunk
        positions = [position for stop in self._stops if (position := text.find(stop)) >= 0]
        if positions:
            self.found = True
            self._held = ""
            return text[: min(positions)]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return the text held back, when no text follows."""
        held, self._held = self._held, ""
        return held


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
    completion_tokens: int = 0
    """Number of generated tokens; set on the last delta, else 0."""


class EngineFailedError(Exception):
    """The engine could not complete a sequence."""


class AnswerRefusedError(Exception):
    """The request of a sequence cannot be met; the message gives the reason."""


class AnswerTimeoutError(Exception):
    """A sequence exceeded its time limit."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the answer was not complete after {seconds:g} s")
        self.seconds = seconds


class AnswerDecoder:
    """Decoder of one sequence's events into deltas of text."""

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(vocabulary)
        self._stops = StopTexts(stops)
        self._tokens = 0

    def feed(self, event: Event) -> TextDelta:
        """Return the delta of one event. A delta with a finish reason is the last one.

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
