"""Keys of rows that say nothing to the training, counted, so that nothing of a row is lost without a word."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

MAX_KEYS: Final = 100
"""Keys that are counted one by one. An object whose keys are values has a new key in every row."""
SHOWN_KEYS: Final = 8
"""Keys that a message names; the others are counted."""
_OTHERS: Final = "…"


@dataclass(frozen=True)
class CountedKey:
    """Key with the number of rows that have it."""

    path: str
    """Path in a row, such as `messages[].name`."""
    rows: int
    """Number of rows; 0 for a setting that concerns no row."""
    first: str
    """Place of the first such row, or what is wrong with the setting."""


class KeyCounter:
    """Counter of keys by path; a row counts once, however often it has the key."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._first: dict[str, str] = {}
        self._last: dict[str, str] = {}

    def add(self, where: str, path: str) -> None:
        """Count a key of the row at `where`; positions in lists do not matter."""
        path = re.sub(r"\[\d+\]", "[]", path)
        if path not in self._rows and len(self._rows) >= MAX_KEYS:
            path = _OTHERS
        if self._last.get(path) == where:
            return
        self._last[path] = where
        self._first.setdefault(path, where)
        self._rows[path] = self._rows.get(path, 0) + 1

    def add_setting(self, path: str, problem: str) -> None:
        """Add a setting that has no effect on any row."""
        self._rows[path], self._first[path] = 0, problem

    def counts(self) -> tuple[CountedKey, ...]:
        """Return the counts in the order in which keys were found."""
        return tuple(CountedKey(path, rows, self._first[path]) for path, rows in self._rows.items())


def added(parts: Sequence[Sequence[CountedKey]]) -> tuple[CountedKey, ...]:
    """Return the counts of several sets of rows together."""
    total: dict[str, CountedKey] = {}
    for key in (key for part in parts for key in part):
        known = total.get(key.path)
        total[key.path] = replace(known, rows=known.rows + key.rows) if known else key
    return tuple(total.values())


def in_words(keys: Sequence[CountedKey] | Iterable[CountedKey], noun: str = "row") -> str:
    """Join keys with their counts, for example `id (20 rows), messages[].name (1 row, line 3)`."""
    shown = [f"{key.path} ({_rows(key, noun)})" for key in keys]
    rest = len(shown) - SHOWN_KEYS
    return ", ".join(shown[:SHOWN_KEYS]) + (f" and {rest} more keys" if rest > 0 else "")


def _rows(key: CountedKey, noun: str) -> str:
    if not key.rows:
        return key.first
    return f"1 {noun}, {key.first}" if key.rows == 1 else f"{key.rows} {noun}s, the first in {key.first}"
