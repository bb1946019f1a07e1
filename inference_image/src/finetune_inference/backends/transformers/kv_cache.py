"""Keys and values of all sequences in work, in tensors that attention reads without copying.

A sequence occupies one row of a pool; a pool's rows have the same capacity, a power of two of tokens. So one call attends
for all sequences of a pool, with little padding. A sequence that outgrows its pool moves to the next one; rows are kept
dense by moving the last one into a gap. Only the engine's thread works with it.
"""

import math
from dataclasses import dataclass, field

import torch

from finetune_model.process import release_free_memory

SMALLEST_CAPACITY = 64
"""Tokens; below this, copying from pool to pool costs more than the padding."""
FEWEST_ROWS = 4
"""Rows that a pool begins with, if the budget has room for them."""
GROWTH = 1.5
"""Rows that are made for each that is needed; copying all of them for every new one would cost more."""
MAX_GROWTH = 2
"""How many times as many rows as would be made now a pool keeps at most."""
LARGE_BYTES = 1 << 28
"""Bytes of a pool that the machine would miss. The C library alone keeps some of them in pieces, differently in each run."""


@dataclass
class Layer:
    """Keys and values of one layer in one pool: [rows, key-value heads, capacity, head size]."""

    keys: torch.Tensor
    values: torch.Tensor

    def move(self, source: int, target: int) -> None:
        """Copy a row to another one, its padding as well: that of the target may hold what is not a number."""
        self.keys[target] = self.keys[source]
        self.values[target] = self.values[source]

    def wipe(self, row: int) -> None:
        """Fill a row with zeros, if there is one yet."""
        self.keys[row : row + 1] = 0
        self.values[row : row + 1] = 0


@dataclass
class Pool:
    """Sequences with room for the same number of tokens."""

    capacity: int
    most: int
    """Rows that the budget has room for; no more are made ahead of their use."""
    owners: list[int] = field(default_factory=list)
    """Key of the sequence in each row."""
    layers: dict[int, Layer] = field(default_factory=dict)
    """By layer index; made when the layer is first written, because only then its shapes are known."""

    def layer(self, index: int, keys: torch.Tensor, values: torch.Tensor) -> Layer:
        """The tensors of a layer with room for all owners. keys, values: [heads, tokens, head size], for their shapes."""
        layer = self.layers.get(index)
        if layer is None or layer.keys.shape[0] < len(self.owners):
            ahead = max(FEWEST_ROWS, math.ceil(len(self.owners) * GROWTH))
            rows = max(len(self.owners), min(ahead, self.most))
            grown = Layer(self._empty(rows, keys), self._empty(rows, values))
            if layer is not None:
                grown.keys[: layer.keys.shape[0]] = layer.keys
                grown.values[: layer.values.shape[0]] = layer.values
            layer = self.layers[index] = grown
        return layer

    def take_row(self, key: int) -> None:
        """Give a row to a sequence. Padding is masked, but a masked NaN would still be one, so the row begins with zeros."""
        for layer in self.layers.values():
            layer.wipe(len(self.owners))
        self.owners.append(key)

    def shrink(self) -> None:
        """Give memory back that a crowd left behind: all pools together may hold what only the budget of each one bounds."""
        rows = max(FEWEST_ROWS, math.ceil(len(self.owners) * GROWTH))
        for layer in self.layers.values():
            if layer.keys.shape[0] >= MAX_GROWTH * rows:
                layer.keys, layer.values = layer.keys[:rows].clone(), layer.values[:rows].clone()

    def free(self) -> None:
        """Give all memory back."""
        size = sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers.values())
        self.layers.clear()
        if size >= LARGE_BYTES:
            release_free_memory()

    def _empty(self, rows: int, like: torch.Tensor) -> torch.Tensor:
        """Zeros, as in `take_row`."""
        heads, _, size = like.shape
        return torch.zeros(rows, heads, self.capacity, size, dtype=like.dtype, device=like.device)


class KVCache:
    """Rows for sequences, within a budget of tokens."""

    def __init__(self, longest: int, budget: int) -> None:
        """`longest`: tokens that one sequence can have. `budget`: tokens that there is room for, at least `longest`."""
        self._longest = longest
        self._budget = max(longest, budget)
        self._pools: dict[int, Pool] = {}
        self._lengths: dict[int, int] = {}
        self._homes: dict[int, Pool] = {}

    @property
    def used(self) -> int:
        """Tokens of the budget that are given away."""
        # A copy, because others ask while the engine's thread works.
        return sum(pool.capacity for pool in list(self._homes.values()))

    def set_budget(self, tokens: int) -> None:
        """Change the budget; what is given away stays."""
        self._budget = max(self._longest, tokens)

    def length(self, key: int) -> int:
        """Tokens of a sequence that are in the cache."""
        return self._lengths.get(key, 0)

    def reserve(self, key: int, tokens: int) -> bool:
        """Make room for a sequence of `tokens` in all; False if the budget does not allow it, and nothing has changed."""
        home = self._homes.get(key)
        if home is not None and tokens <= home.capacity:
            return True
        capacity = self._capacity_for(tokens)
        if self.used - (home.capacity if home else 0) + capacity > self._budget:
            return False
        target = self._pools.setdefault(capacity, Pool(capacity, self._budget // capacity))
        target.take_row(key)
        if home is not None:
            if self.length(key):
                self._copy(key, home, target)
            self._leave(key, home)
        self._homes[key] = target
        return True

    def place(self, key: int) -> tuple[Pool, int]:
        """Pool and row of a sequence for which there is room."""
        pool = self._homes[key]
        return pool, pool.owners.index(key)

    def bytes_per_token(self, key: int) -> int:
        """Bytes that a token of a sequence takes in all layers together, once some were written."""
        layers = self._homes[key].layers.values()
        return sum(t.shape[1] * t.shape[3] * t.element_size() for layer in layers for t in (layer.keys, layer.values))

    def advance(self, key: int, tokens: int) -> None:
        """Take note that so many tokens were written for every layer."""
        self._lengths[key] = self.length(key) + tokens

    def release(self, key: int) -> None:
        """Forget a sequence; nothing happens if it has no room here."""
        home = self._homes.pop(key, None)
        self._lengths.pop(key, None)
        if home is not None:
            self._leave(key, home)

    def clear(self) -> None:
        """Forget all sequences and give the memory back."""
        self._homes.clear()
        self._lengths.clear()
        for pool in self._pools.values():
            pool.free()
        self._pools.clear()

    def _capacity_for(self, tokens: int) -> int:
        return min(self._longest, max(SMALLEST_CAPACITY, 1 << (tokens - 1).bit_length()))

    def _copy(self, key: int, source: Pool, target: Pool) -> None:
        row, length = source.owners.index(key), self.length(key)
        for index, layer in source.layers.items():
            moved = target.layer(index, layer.keys[row], layer.values[row])
            moved.keys[len(target.owners) - 1, :, :length] = layer.keys[row, :, :length]
            moved.values[len(target.owners) - 1, :, :length] = layer.values[row, :, :length]

    def _leave(self, key: int, pool: Pool) -> None:
        """Take a row out of a pool; the last row moves into its place."""
        row, last = pool.owners.index(key), len(pool.owners) - 1
        if row != last:
            moved = pool.owners[last]
            # Where nothing was written yet, the tensors may not even have the row.
            for layer in pool.layers.values() if self.length(moved) else ():
                layer.move(last, row)
            pool.owners[row] = moved
        pool.owners.pop()
        if pool.owners:
            pool.shrink()
        else:
            self._pools.pop(pool.capacity).free()
