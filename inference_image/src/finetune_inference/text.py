"""Between text and tokens: a model's tokenizer and chat template, and token streams as text that is safe to send.

Nothing here knows HTTP or torch. `Vocabulary` is used from several threads; it only calls what tokenizers allow then.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_inference.engine import (
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
from finetune_inference.grammar import GrammarError, Grammars

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
HELD_BACK = 3
"""Replacement characters at the end that may still become one real character: all but the last byte of four."""
WINDOW = 16
"""Tokens that are decoded again with each new one, at least; more until the text ends with a whole character."""
LONGEST_WINDOW = 64
"""Tokens after which a stream of broken characters is taken as it is."""
FIRST_LOOK = 8
"""Characters for each token that there is room for: longer texts are looked at from their beginning. Most have about four."""
NEXT_LOOK = 4
"""How many times as long the next beginning is."""
UNCERTAIN = 256
"""Last tokens of a beginning that may come out as fewer once the text goes on: a word that was cut, for example."""


class PromptError(ValueError):
    """A prompt that cannot be made into tokens; the message says why."""


class PromptTooLongError(PromptError):
    """A prompt that was not read to its end, because its beginning has more tokens than there is room for."""

    def __init__(self, limit: int, least: int) -> None:
        super().__init__(f"it has more than {least} tokens; the model's context has {limit}")
        self.limit = limit
        self.least = least


class Vocabulary:
    """A tokenizer and its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.grammars = Grammars(tokenizer)
        # The first call may change the tokenizer (truncation that was saved with it); after that threads can share it.
        tokenizer("")

    @property
    def has_chat_template(self) -> bool:
        """Messages can be made into a prompt."""
        return bool(self._tokenizer.chat_template)

    @property
    def size(self) -> int:
        """Token ids are below this."""
        return len(self._tokenizer)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The token that ends a text, if the tokenizer names one."""
        token = self._tokenizer.eos_token_id
        return frozenset() if token is None else frozenset([token])

    def encode(self, text: str, limit: int | None = None) -> list[int]:
        """Token ids of a text as the model wants it to begin; at least one. Raises PromptError.

        A text of clearly more than `limit` tokens is refused without finding out how many.
        """
        _check_unicode(text)
        if limit is not None:
            self._check_length(text, limit)
        ids: list[int] = self._tokenizer(text).input_ids
        if not ids and self._tokenizer.bos_token_id is not None:
            return [self._tokenizer.bos_token_id]
        if not ids:
            raise PromptError("the prompt is empty")
        return ids

    def encode_chat(self, messages: Sequence[dict[str, Any]], limit: int | None = None) -> list[int]:
        """Token ids of a conversation, up to where the assistant begins to speak; `limit` as for `encode`. Raises PromptError."""
        if not self.has_chat_template:
            raise PromptError("this model has no chat template; use /v1/completions")
        for message in messages:
            _check_unicode(message["content"])
        try:
            if limit is not None and sum(len(message["content"]) for message in messages) > FIRST_LOOK * limit:
                # Of what the template makes of them, because it may leave most of it out.
                rendered = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
                self._check_length(rendered, limit)
            ids: list[int] = self._tokenizer.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=False
            )
        except PromptTooLongError:
            raise
        except Exception as error:
            # Templates are programs that come with the model; they refuse by raising, and break on what they did not expect.
            raise PromptError(f"the model's chat template refused these messages: {error}") from None
        if not ids:
            raise PromptError("the model's chat template made an empty prompt of these messages")
        return ids

    def _check_length(self, text: str, limit: int) -> None:
        """Raise PromptTooLongError if a beginning has too many tokens: megabytes of text keep a thread busy for a minute."""
        end = FIRST_LOOK * limit
        while end < len(text):
            least = len(self._tokenizer(text[:end]).input_ids) - UNCERTAIN
            if least > limit:
                raise PromptTooLongError(limit, least)
            end *= NEXT_LOOK

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, without special ones."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def token_text(self, token_id: int) -> str:
        """One token as text, special or not; a token that is a part of a character shows the replacement character."""
        text: str = self._tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def prepare_token_bytes(self) -> None:
        """Make now what `token_bytes` needs, which takes up to two seconds the first time."""
        with suppress(GrammarError):
            self.grammars.prepare()

    def token_bytes(self, token_id: int) -> bytes | None:
        """One token as bytes; those of tokens in a row make whole characters where each alone may not. None if unknown."""
        text = self.token_text(token_id)
        if REPLACEMENT not in text:
            return text.encode()
        try:
            return self.grammars.token_bytes(token_id)
        except GrammarError:
            return None


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        # JSON can spell half of a surrogate pair; no tokenizer can read it.
        raise PromptError("the text is not valid Unicode: it contains an unpaired surrogate") from None


class Detokenizer:
    """Text of a growing token sequence, piece by piece; the pieces together are the text of all tokens.

    A character may be spread over several tokens, and a token's text may depend on the one before it. So the last tokens
    are decoded together, and an end that may still change is held back.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._window: list[int] = []
        """Tokens since a point at which the text was whole."""
        self._clean = 0
        """Tokens of the window up to the latest such point."""
        self._sent = 0
        """Characters of the window's text that were given out."""

    def push(self, token_id: int) -> str:
        """Text that became certain with this token."""
        self._window.append(token_id)
        text = self._vocabulary.decode(self._window)
        certain = len(text)
        while certain and len(text) - certain < HELD_BACK and text[certain - 1] == REPLACEMENT:
            certain -= 1
        piece, self._sent = text[self._sent : certain], max(self._sent, certain)
        if certain == len(text) or len(self._window) > LONGEST_WINDOW:
            self._move_window()
        return piece

    def flush(self) -> str:
        """The rest, when no token follows."""
        return self._vocabulary.decode(self._window)[self._sent :]

    def _move_window(self) -> None:
        """Begin the window at the previous whole point, so that it keeps some context but does not grow for ever."""
        if len(self._window) <= WINDOW:
            return
        if self._clean:
            self._window = self._window[self._clean :]
            self._sent = len(self._vocabulary.decode(self._window))
        self._clean = len(self._window)


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
class Delta:
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


class Answer:
    """Turns one sequence's events into deltas of text."""

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(vocabulary)
        self._stops = StopTexts(stops)
        self._tokens = 0

    def feed(self, event: Event) -> Delta:
        """The delta of one event; after one with a finish reason nothing may be fed.

        Raises EngineFailedError, AnswerRefusedError or AnswerTimeoutError.
        """
        match event:
            case PromptScored(tokens):
                return Delta(prompt=tokens)
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

    def _generated(self, token: ScoredToken) -> Delta:
        self._tokens += 1
        text = self._stops.push(self._detokenizer.push(token.token_id))
        if self._stops.found:
            return Delta(text, token, finish_reason="stop", completion_tokens=self._tokens)
        return Delta(text, token)

    def _finished(self, reason: FinishReason, completion_tokens: int) -> Delta:
        text = self._stops.push(self._detokenizer.flush())
        if self._stops.found:
            return Delta(text, finish_reason="stop", completion_tokens=completion_tokens)
        return Delta(text + self._stops.flush(), finish_reason=reason, completion_tokens=completion_tokens)


def load_vocabulary(path: str, revision: str | None = None) -> Vocabulary:
    """The tokenizer of a local folder, or of a hub repository. Raises OSError or ValueError; never runs code from there."""
    from transformers import AutoTokenizer

    local = Path(path).is_absolute() or Path(path).exists()
    tokenizer = AutoTokenizer.from_pretrained(
        path, revision=revision or "main", trust_remote_code=False, local_files_only=local
    )
    return Vocabulary(tokenizer)
