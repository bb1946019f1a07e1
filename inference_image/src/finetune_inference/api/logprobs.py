"""Log-probabilities of answers in OpenAI's two forms: a list of tokens for chats, parallel lists for completions.

A token's text and bytes are those that it adds to the text before it, so that all bytes together are the answer's. A special
token that the text does not show has its name as text, no bytes and no width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from finetune_inference.api.responses import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from finetune_inference.engine.interface import ScoredToken
from finetune_inference.text.answer_decoder import TextDelta
from finetune_inference.text.detokenizer import Detokenizer
from finetune_inference.text.vocabulary import Vocabulary


def chat_logprobs(
    vocabulary: Vocabulary, deltas: Sequence[TextDelta], *, skip_special_tokens: bool = True
) -> ChatLogprobs:
    """Return the log-probabilities of the tokens of an answer, or of a part of it."""

    def entry(token_id: int, logprob: float, *, starts_text: bool) -> TopLogprob:
        text = vocabulary.token_text(token_id, starts_text=starts_text)
        hidden = skip_special_tokens and token_id in vocabulary.special_tokens
        content = b"" if hidden else vocabulary.token_bytes(token_id, starts_text=starts_text)
        return TopLogprob(token=text, logprob=logprob, bytes=None if content is None else list(content))

    content = []
    for delta in deltas:
        if delta.token is None:
            continue
        first = entry(delta.token.token_id, delta.token.logprob or 0.0, starts_text=delta.starts_text)
        top = [entry(token_id, logprob, starts_text=delta.starts_text) for token_id, logprob in delta.token.top]
        content.append(TokenLogprob(token=first.token, logprob=first.logprob, bytes=first.bytes, top_logprobs=top))
    return ChatLogprobs(content=content)


@dataclass(frozen=True)
class CompletionScores:
    """Builder of the parallel lists of one answer."""

    vocabulary: Vocabulary
    prompt_offsets: Sequence[int]
    """Position of each token of the prompt in the returned text."""
    echo_length: int
    """Number of characters of the prompt in the returned text; 0 without echo."""

    def build(self, deltas: Sequence[TextDelta]) -> CompletionLogprobs:
        """Return the lists for the tokens of some deltas."""
        entries = [entry for delta in deltas for entry in self._entries(delta)]
        return CompletionLogprobs(
            tokens=[self.vocabulary.token_text(each.token.token_id, starts_text=each.starts_text) for each in entries],
            token_logprobs=[each.token.logprob for each in entries],
            top_logprobs=[self._top(each) for each in entries],
            text_offset=[each.offset for each in entries],
        )

    def _entries(self, delta: TextDelta) -> Iterator["_Entry"]:
        if delta.prompt:
            begun = False
            for token, offset in zip(delta.prompt, self.prompt_offsets, strict=True):
                yield _Entry(token, offset, starts_text=not begun)
                begun = begun or token.token_id not in self.vocabulary.special_tokens
        if delta.token:
            yield _Entry(delta.token, self.echo_length + delta.offset, starts_text=delta.starts_text)

    def _top(self, entry: "_Entry") -> dict[str, float] | None:
        """Return the likeliest tokens and the actual one; None for the first token of a prompt, which nothing predicts."""
        token = entry.token
        if token.logprob is None:
            return None
        # Different tokens may have the same text (parts of characters do); the likeliest, which comes first, stays.
        top: dict[str, float] = {}
        for token_id, logprob in (*token.top, (token.token_id, token.logprob)):
            top.setdefault(self.vocabulary.token_text(token_id, starts_text=entry.starts_text), logprob)
        return top


class _Entry(NamedTuple):
    """A token with its place in the returned text."""

    token: ScoredToken
    offset: int
    starts_text: bool
    """True if no text precedes the token."""


def prompt_offsets(vocabulary: Vocabulary, ids: Sequence[int], text: str, *, skip_special_tokens: bool) -> list[int]:
    """Return the position of each token of a prompt in its `text`.

    A special token has no width, except where the text of the prompt names it.
    """
    detokenizer = Detokenizer(vocabulary, skip_special_tokens=skip_special_tokens)
    offsets, named = [], 0
    for token_id in ids:
        detokenizer.push(token_id)
        position = detokenizer.token_start + named
        # A tokenizer that normalizes texts may make them longer.
        offsets.append(min(position, len(text)))
        special = vocabulary.special_tokens.get(token_id) if skip_special_tokens else None
        if special and text.startswith(special, position):
            named += len(special)
    return offsets
