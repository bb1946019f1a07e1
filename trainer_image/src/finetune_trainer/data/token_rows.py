"""Token ids and labels of many rows in five bytes per token; a Python list of ints takes eight to forty."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, overload

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.data.unused import CountedKey

IGNORED: Final = -100
"""Label of a token without loss, which torch's cross entropy ignores."""

Ids = NDArray[np.int32] | Sequence[int]
"""Token ids of one row."""


@dataclass(frozen=True, eq=False)
class TokenRow:
    """One training row."""

    input_ids: Ids
    labels: Ids
    """Token ids where they carry loss, `IGNORED` elsewhere."""

    @property
    def loss_tokens(self) -> int:
        """Number of tokens that are predicted and carry loss; the first token of a row is never predicted."""
        return int(np.count_nonzero(np.asarray(self.labels)[1:] != IGNORED))


class TokenRows(Sequence[TokenRow]):
    """Rows in three flat arrays; a row object is created on access."""

    def __init__(self, input_ids: NDArray[np.int32], learnt: NDArray[np.bool_], offsets: NDArray[np.int64]) -> None:
        """Hold rows: `learnt` marks tokens that carry loss; row i spans `offsets[i]` to `offsets[i + 1]`."""
        self.input_ids = input_ids
        self.learnt = learnt
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...

    @overload
    def __getitem__(self, index: slice) -> list[TokenRow]: ...

    def __getitem__(self, index: int | slice) -> TokenRow | list[TokenRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        ids, learnt = self._slices(row)
        return TokenRow(ids, np.where(learnt, ids, np.int32(IGNORED)))

    def __iter__(self) -> Iterator[TokenRow]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.offsets)

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return len(self.input_ids)

    @property
    def loss_tokens(self) -> int:
        """Number of predicted tokens with loss in all rows."""
        return int(np.count_nonzero(self.learnt) - np.count_nonzero(self.learnt[self.offsets[:-1]]))

    def contents(self) -> Iterator[bytes]:
        """Bytes of each row, equal for two rows if and only if they train alike."""
        for row in range(len(self)):
            ids, learnt = self._slices(row)
            yield ids.tobytes() + learnt.tobytes()

    def _slices(self, row: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        part = slice(self.offsets[row], self.offsets[row + 1])
        return self.input_ids[part], self.learnt[part]


class TokenRowsBuilder:
    """Builder of rows with buffers that grow in place: a million small arrays would take more memory than their content."""

    def __init__(self) -> None:
        self._ids = array("i")
        self._learnt = bytearray()
        self._offsets = array("q", [0])

    def add(self, ids: NDArray[np.int32], learnt: NDArray[np.bool_]) -> None:
        """Append a row."""
        self._ids.frombytes(ids.tobytes())
        self._learnt += learnt.tobytes()
        self._offsets.append(len(self._ids))

    def build(self) -> TokenRows:
        """Return all rows without copying them; the builder must not be used afterwards."""
        return TokenRows(
            np.frombuffer(self._ids, dtype=np.int32) if self._ids else np.zeros(0, np.int32),
            np.frombuffer(self._learnt, dtype=np.bool_) if self._learnt else np.zeros(0, np.bool_),
            np.frombuffer(self._offsets, dtype=np.int64),
        )


@dataclass(frozen=True)
class EndToken:
    """A token that ends learnt answers."""

    id: int
    text: str
    answers: int
    """Number of answers that it ends."""


@dataclass(frozen=True)
class TurnCounts:
    """How the learnt answers of rows end, and how rows were rendered."""

    ends: tuple[EndToken, ...] = ()
    """End tokens, the most frequent first."""
    unended: int = 0
    """Number of answers that end without such a token."""
    split_rows: int = 0
    """Number of rows that became several sequences, because no single one holds every answer as it will be asked."""
    raw_rows: int = 0
    """Number of rows of prompt and completion that hold the template's tokens already, and were not rendered again."""


@dataclass(frozen=True)
class Tokenized:
    """Rows ready for training, with the counts of truncated and dropped ones."""

    rows: TokenRows
    truncated: int
    """Rows that were longer than maxLength."""
    dropped: int
    """Rows that had no token with loss left after truncation."""
    truncated_places: tuple[str, ...] = ()
    """Places of the first truncated rows, for example `line 3`."""
    dropped_places: tuple[str, ...] = ()
    """Places of the first dropped rows."""
    turns: TurnCounts = TurnCounts()
    unrendered: tuple[CountedKey, ...] = ()
    """Texts of rows that the chat template leaves out, by their paths."""

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return self.rows.tokens

    @property
    def loss_tokens(self) -> int:
        """Tokens with loss of all rows."""
        return self.rows.loss_tokens


def as_ids(ids: Any) -> NDArray[np.int32]:
    """Return a list of token ids as an array."""
    return np.asarray(ids, dtype=np.int32)
