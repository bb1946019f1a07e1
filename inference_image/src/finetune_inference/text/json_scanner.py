"""The end of a JSON value in a text that is still growing."""

import re

_STOPS = {quotes: re.compile(rf"[{quotes}{{}}\[\]()]") for quotes in ('"', "\"'")}
_IN_STRING = {quote: re.compile(rf"[\\{quote}]") for quote in "\"'"}
_OPENING, _CLOSING = "{[(", "}])"


class NotJsonError(ValueError):
    """A text that does not begin with an object or a list."""


class JsonScanner:
    """Finds the end of an object or a list; each character is read once, however often the text grows."""

    def __init__(self, start: int, *, quotes: str = '"') -> None:
        self._position = start
        self._quotes = quotes
        self._depth = 0
        self._string: str | None = None
        """Quote that ends the current string; None outside strings."""

    def scan(self, text: str) -> int | None:
        """Return the end of the value, or None if `text` does not hold it. Raises NotJsonError.

        `text` is that of the previous call with more text appended.
        """
        if not self._depth and not self._begin(text):
            return None
        while self._position < len(text):
            if self._string:
                if not self._leave_string(text, self._string):
                    return None
            elif self._step(text):
                return self._position
        return None

    def _begin(self, text: str) -> bool:
        while self._position < len(text) and text[self._position].isspace():
            self._position += 1
        if self._position >= len(text):
            return False
        if text[self._position] not in _OPENING:
            raise NotJsonError("no object or list")
        return True

    def _step(self, text: str) -> bool:
        """Advance to the next bracket or quote; return whether the value ended there."""
        found = _STOPS[self._quotes].search(text, self._position)
        self._position = found.end() if found else len(text)
        if found and found[0] in _OPENING:
            self._depth += 1
        elif found and found[0] in _CLOSING:
            self._depth -= 1
            return self._depth == 0
        elif found:
            self._string = found[0]
        return False

    def _leave_string(self, text: str, quote: str) -> bool:
        """Advance behind the string; return False if it does not end in `text`."""
        while found := _IN_STRING[quote].search(text, self._position):
            if found[0] == quote:
                self._position, self._string = found.end(), None
                return True
            if found.end() >= len(text):
                # The escaped character is still to come.
                self._position = found.start()
                return False
            self._position = found.end() + 1
        self._position = len(text)
        return False
