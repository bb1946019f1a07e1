"""Token ids to text, streamed: a character is given out once no later token can change it."""

from finetune_inference.text.vocabulary import REPLACEMENT, Vocabulary

HELD_BACK = 3
"""Replacement characters at the end that may still become one real character: all but the last byte of four."""
WINDOW = 16
"""Tokens that are decoded again with each new one, at least; more until the text ends with a whole character."""
LONGEST_WINDOW = 64
"""Tokens after which a stream of broken characters is taken as it is."""


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
