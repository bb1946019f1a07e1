"""Token ids of rendered conversations in which the tokens of each prompt are those that a server makes of the prompt alone.

A tokenizer may merge the last characters of a prompt with the first ones of the answer. The model would then learn an answer
after tokens that no server sends. Such an answer gets a row of its own, in which prompt and answer are tokenized apart.

Tokenizing each prompt once more would double the work. A tokenizer never merges across an added token such as `<|im_start|>`,
so it is enough to compare the tokens from the prompt's last added token on, and these few repeat in every row.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from finetune_model.turns import Answer, TurnText

MAX_KNOWN_TAIL: Final = 64
"""Characters of a prompt's end up to which its tokens are kept for later rows; longer ends repeat rarely."""
MAX_KNOWN_TAILS: Final = 4096
_ANCHORS: Final = ("\n", ":", ".", "]", ">", "x", " ")
"""Texts before an answer that is tokenized apart, because some tokenizers treat the beginning of a text as that of a word."""


class BorderError(ValueError):
    """An answer that cannot be tokenized apart from its prompt."""


@dataclass
class TurnIds:
    """Token ids of a conversation; each learnt answer is a range of positions, preceded by its prompt's own token ids."""

    ids: list[int]
    answers: list[tuple[int, int]]
    ignored: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class _Border:
    """End of a prompt in a tokenized text."""

    answer: Answer
    token: int
    """Position of the prompt's last added token, or 0."""
    tail: str
    """The prompt from this token on."""


class TurnTokenizer:
    """Tokenizes rendered conversations with one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added: dict[str, int] = {
            token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.content
        }
        longest_first = sorted(self._added, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._tails: dict[str, list[int]] = {}
        self._starts_words: bool | None = None

    def encode(self, texts: Sequence[TurnText]) -> list[list[TurnIds]]:
        """Tokenize each conversation: the whole with the answers whose prompts are intact in it, then the other answers.

        Raises BorderError.
        """
        encoded = self._tokenizer(
            [text.text for text in texts], add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        borders = [
            [self._border(text.text, answer, encoded.encodings[row]) for answer in text.answers]
            for row, text in enumerate(texts)
        ]
        tails = self._tail_ids(border.tail for row in borders for border in row)
        return [
            self._split(text, encoded["input_ids"][row], encoded.encodings[row], borders[row], tails)
            for row, text in enumerate(texts)
        ]

    def _split(
        self, text: TurnText, ids: list[int], encoding: Any, borders: Sequence[_Border], tails: dict[str, list[int]]
    ) -> list[TurnIds]:
        ignored = [(encoding.char_to_token(place.start), place.end) for place in text.ignored]
        whole = TurnIds(ids, [], [(first or 0, _end_token(encoding, end, len(ids))) for first, end in ignored])
        apart = []
        for border in borders:
            tail = tails[border.tail]
            start = border.token + len(tail)
            if ids[border.token : start] == tail and start < len(ids):
                whole.answers.append((start, max(start + 1, _end_token(encoding, border.answer.end, len(ids)))))
            else:
                answer = self.continuations([text.text[border.answer.start : border.answer.end]])[0]
                apart.append(TurnIds(ids[: border.token] + tail + answer, [(start, start + len(answer))]))
        return [whole, *apart]

    def _border(self, text: str, answer: Answer, encoding: Any) -> _Border:
        """Find the prompt's last added token; the whole prompt is its tail if the tokenizer did not keep such a token apart."""
        start = self._last_added(text, answer.start)
        if start is not None:
            token = encoding.char_to_token(start)
            found = self._pattern.match(text, start, answer.start) if self._pattern else None
            if token is not None and found and encoding.ids[token] == self._added[found.group()]:
                return _Border(answer, token, text[start : answer.start])
        return _Border(answer, 0, text[: answer.start])

    def _last_added(self, text: str, end: int) -> int | None:
        """Return where the last added token before `end` starts; None if there is none."""
        if self._pattern is None:
            return None
        window = 128
        while True:
            begin = max(0, end - window)
            starts = [match.start() for match in self._pattern.finditer(text, begin, end)]
            # The first match of a window may be the end of a longer token that begins before it.
            if begin == 0 or len(starts) > 1:
                return starts[-1] if starts else None
            window *= 8

    def _tail_ids(self, tails: Iterable[str]) -> dict[str, list[int]]:
        wanted = set(tails)
        if len(self._tails) > MAX_KNOWN_TAILS:
            self._tails.clear()
        unknown = sorted(tail for tail in wanted - self._tails.keys() if tail)
        found = dict(zip(unknown, self._ids(unknown), strict=True)) if unknown else {}
        self._tails.update({tail: ids for tail, ids in found.items() if len(tail) <= MAX_KNOWN_TAIL})
        return {tail: found[tail] if tail in found else self._tails.get(tail, []) for tail in wanted}

    def continuations(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of texts that continue others, tokenized apart from what precedes them. Raises BorderError."""
        if self._starts_words is None:
            together, apart = self._ids(["\nword"])[0], self._ids(["\n", "word"])
            self._starts_words = together != apart[0] + apart[1]
        if not self._starts_words:
            return self._ids(texts) if texts else []
        found: dict[int, list[int]] = {}
        for anchor in _ANCHORS:
            missing = [row for row in range(len(texts)) if row not in found]
            if not missing:
                break
            before, *joined = self._ids([anchor, *(anchor + texts[row] for row in missing)])
            for row, both in zip(missing, joined, strict=True):
                if both[: len(before)] == before:
                    found[row] = both[len(before) :]
        if len(found) < len(texts):
            raise BorderError("the tokenizer merges an answer's beginning with every text before it")
        return [found[row] for row in range(len(texts))]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        return ids


def _end_token(encoding: Any, end: int, count: int) -> int:
    """Return the position after the token that holds the character before `end`."""
    for character in range(end - 1, max(-1, end - 9), -1):
        token = encoding.char_to_token(character)
        if token is not None:
            span = encoding.token_to_chars(token)
            # The bytes of one character may be several tokens.
            while token + 1 < count and encoding.token_to_chars(token + 1) == span:
                token += 1
            return int(token) + 1
    return count
