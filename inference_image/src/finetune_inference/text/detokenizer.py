"""Streaming detokenizer: a character is returned once no later token can change it.

`tokenizers.decoders.DecodeStream` was tried in its place. It is twenty times faster per token (2 instead of 33 microseconds),
but an answer of broken characters yields nothing until a whole one follows (its cost grows with each such token: 6.6 s for 4000),
it has no flush for an answer that ends within a character, it raises "Invalid prefix encountered" for some tokens of
vocabularies with byte fallback, and it needs a tokenizer of the tokenizers library.
"""

from collections.abc import Sequence

from finetune_inference.text.vocabulary import REPLACEMENT, Vocabulary

HELD_BACK = 3
"""Replacement characters at the end that may still become one real character: three of its at most four bytes."""
WINDOW = 16
"""Fewest tokens that are decoded again with each new one; more if the text ends within a character."""
LONGEST_WINDOW = 64
"""Tokens after which broken characters are returned as they are."""
PREDECESSORS = 8
"""Last tokens of a prompt that its answer is decoded after. One with text is enough for the blank that SentencePiece tokens lose
at the beginning of a text; four may be the parts of a character that the answer completes."""


class Detokenizer:
    """Text of a growing token sequence in chunks, which together are the text of all tokens, without that of the prompt.

    A character may span several tokens, and a token's text may depend on the previous token. So the last tokens are decoded
    together, and an end that may still change is held back.
    """

    def __init__(self, vocabulary: Vocabulary, prompt: Sequence[int] = (), *, skip_special_tokens: bool = True) -> None:
        self._vocabulary = vocabulary
        self._skip_special_tokens = skip_special_tokens
        self._window: list[int] = []
        """Tokens since a point at which the text ended with a whole character."""
        self._clean = 0
        """Number of tokens of the window up to a later such point, at which the next window begins."""
        self._whole = 0
        """Number of tokens of the window up to the latest such point."""
        self._whole_text = ""
        """Text of those tokens."""
        self._sent = 0
        """Number of characters of the window's text that were returned."""
        self._held = ""
        """Text of the last tokens that may still change."""
        self._returned = 0
        """Number of characters that were returned."""
        self.token_start = 0
        """Position of the latest token's text in the text of all tokens."""
        self.has_begun = False
        """True once a token had a place in the text; before, a SentencePiece token loses its blank."""
        if prompt:
            self._start_after(prompt)

    def push(self, token_id: int) -> str:
        """Add a token and return the text that became certain."""
        self._window.append(token_id)
        text = self._decode()
        certain = certain_length(text)
        chunk, self._sent = text[self._sent : certain], max(self._sent, certain)
        # The broken characters held back so far stay broken when a whole character follows them.
        is_after_held = self._held and certain == len(text) and chunk.startswith(self._held)
        self.token_start = self._returned + (len(self._held) if is_after_held else 0)
        self._held = text[certain:]
        self._returned += len(chunk)
        self.has_begun = self.has_begun or self._is_visible(token_id)
        if certain == len(text):
            self._whole, self._whole_text = len(self._window), text
        if certain == len(text) or len(self._window) > LONGEST_WINDOW:
            self._move_window()
        return chunk

    def flush(self) -> str:
        """Return the text held back, when no token follows."""
        return self._decode()[self._sent :]

    def _start_after(self, prompt: Sequence[int]) -> None:
        """Begin the window with the end of the prompt, at a whole character and as far back as there is text."""
        count = min(PREDECESSORS, len(prompt))
        while True:
            self._window = list(prompt[-count:])
            text = self._decode()
            self.has_begun = any(map(self._is_visible, self._window))
            is_good = self.has_begun and not text.startswith(REPLACEMENT)
            if is_good or count >= min(len(prompt), LONGEST_WINDOW):
                break
            count += 1
        self._sent = certain_length(text)
        if self._sent == len(text):
            self._clean = self._whole = len(self._window)
            self._whole_text = text

    def _is_visible(self, token_id: int) -> bool:
        return not self._skip_special_tokens or token_id not in self._vocabulary.special_tokens

    def _decode(self) -> str:
        text = self._vocabulary.decode(self._window, skip_special_tokens=self._skip_special_tokens)
        if text.startswith(self._whole_text):
            return text
        # With byte fallback, bytes of a new character make the decoder break the whole characters before them.
        rest = self._vocabulary.decode(self._window[self._whole :], skip_special_tokens=self._skip_special_tokens)
        return self._whole_text + rest

    def _move_window(self) -> None:
        """Start the window at the previous whole character, so that it keeps some context but stays short."""
        if len(self._window) <= WINDOW:
            return
        if self._clean and not any(map(self._is_visible, self._window[self._clean :])):
            return
        if self._clean:
            self._window = self._window[self._clean :]
            self._whole, self._whole_text = 0, ""
            text = self._decode()
            self._sent = len(text)
            if certain_length(text) == len(text):
                self._whole, self._whole_text = len(self._window), text
        self._clean = len(self._window)


def certain_length(text: str) -> int:
    """Return the number of characters that no later token can change."""
    certain = len(text)
    while certain and len(text) - certain < HELD_BACK and text[certain - 1] == REPLACEMENT:
        certain -= 1
    return certain
