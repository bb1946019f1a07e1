"""Selection of rows: limits and weights. What is drawn depends on the seed and on the number of rows only.

The seed of Python's generator is a text, so that every draw of a run has its own.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Draw:
    """Rule by which some of several rows are taken: at random by the seed, or the first ones."""

    seed: int
    shuffled: bool
    """Rows are drawn at random."""

    def take(self, rows: Sequence[Item], count: int, purpose: str) -> list[Item]:
        """Return `count` of the rows in their order; different purposes draw different rows."""
        if count >= len(rows):
            return list(rows)
        if not self.shuffled:
            return list(rows[:count])
        drawn = random.Random(f"{purpose}-{self.seed}").sample(range(len(rows)), count)  # noqa: S311
        return [rows[i] for i in sorted(drawn)]


def limit_rows(rows: Sequence[Item], most: int | None, draw: Draw, purpose: str) -> list[Item]:
    """Return at most `most` rows."""
    return draw.take(rows, len(rows) if most is None else most, f"rows-{purpose}")


def weigh_rows(rows: Sequence[Item], weight: float, draw: Draw, purpose: str) -> list[Item]:
    """Return each row `weight` times: `weight * len(rows)` rows, rounded half up, and at least one.

    They are all rows as often as that many contain them, and the remaining number of them drawn without replacement.
    """
    times, rest = divmod(max(1, int(len(rows) * weight + 0.5)), len(rows))
    return [*list(rows) * times, *(draw.take(rows, rest, f"weight-{purpose}") if rest else ())]
