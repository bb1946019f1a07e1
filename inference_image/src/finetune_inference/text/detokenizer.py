"""Streaming detokenizer: a character is returned once no later token can change it.

`tokenizers.decoders.DecodeStream` was tried in its place. It is twenty times faster per token (2 instead of 33 microseconds),
but an answer of broken characters yields nothing until a whole one follows (its cost grows with each such token: 6.6 s for 4000),
it has no flush for an answer that ends within a character, it raises "Invalid prefix encountered" for some tokens of
vocabularies with byte fallback, and it needs a tokenizer of the tokenizers library.
"""

from finetune_inference.text.vocabulary import REPLACEMENT, Vocabulary

HELD_BACK = 3
"""Replacement characters at the end that may still become one real character: three of its at most four bytes."""
WINDOW = 16
"""Fewest tokens that are decoded again with each new one; more if the text ends within a character."""
LONGEST_WINDOW = 64
"""Tokens after which broken characters are returned as they are."""


class Detokenizer:
    """Text of a growing token sequence in chunks, which together are the text of all tokens.

    A character may span several tokens, and a token's text may depend on the previous token. So the last tokens are decoded
    together, and an end that may still change is held back.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._window: list[int] = []
        """Tokens since a point at which the text ended with a whole character."""
        self._clean = 0
        """Number of tokens of the window up to the latest such point."""
        self._sent = 0
        """Number of characters of the window's text that were returned."""

    def push(self, token_id: int) -> str:
        """Add a token and return the text that became certain."""
        self._window.append(token_id)
        text = self._vocabulary.decode(self._window)
        certain = len(text)
        while certain and len(text) - certain < HELD_BACK and text[certain - 1] == REPLACEMENT:
            certain -= 1
        chunk, self._sent = text[self._sent : certain], max(self._sent, certain)
        if certain == len(text) or len(self._window) > LONGEST_WINDOW:
            self._move_window()
        return chunk

    def flush(self) -> str:
        """Return the text held back, when no token follows."""
        return self._vocabulary.decode(self._window)[self._sent :]

    def _move_window(self) -> None:
        """Start the window at the previous whole character, so that it keeps some context but stays short."""
        if len(self._window) <= WINDOW:
            return
        if self._clean:
            self._window = self._window[self._clean :]
            self._sent = len(self._vocabulary.decode(self._window))
        self._clean = len(self._window)
