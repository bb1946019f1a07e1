"""The KV cache: keys and values of all running sequences, in tensors that attention reads without copying.

A sequence occupies one row of a pool; the rows of a pool have the same capacity, a power of two of tokens. So one attention
call serves all sequences of a pool, with little padding. A sequence that outgrows its pool moves to the next larger one. Rows
stay contiguous, because the last row moves into a gap. Only the engine's thread uses the cache.
"""

import math
from dataclasses import dataclass, field

import torch

from finetune_model.process import release_free_memory

SMALLEST_CAPACITY = 64
"""Smallest capacity of a row, in tokens. Below it, copying between pools costs more than padding."""
FEWEST_ROWS = 4
"""Rows of a new pool, if the budget allows them."""
GROWTH = 1.5
"""Rows to allocate per needed row, because growing by one row would copy all of them each time."""
MAX_GROWTH = 2
"""Shrink a pool when it holds this multiple of the rows that would be allocated now."""
LARGE_BYTES = 1 << 28
"""Bytes of a pool from which freed memory is returned to the system, because the C library alone keeps an unpredictable part."""


@dataclass
class Layer:
    """Keys and values of one layer in one pool: [rows, key-value heads, capacity, head size]."""

    keys: torch.Tensor
    values: torch.Tensor

    def move(self, source: int, target: int) -> None:
        """Copy a row to another one, padding included, because the target's padding may hold NaN."""
        self.keys[target] = self.keys[source]
        self.values[target] = self.values[source]

    def wipe(self, row: int) -> None:
        """Fill a row with zeros, if it exists."""
        self.keys[row : row + 1] = 0
        self.values[row : row + 1] = 0


@dataclass
class Pool:
    """Rows of one capacity, one per sequence."""

    capacity: int
    most: int
    """Rows that the budget allows; no more are allocated in advance."""
    owners: list[int] = field(default_factory=list)
    """Key of the sequence in each row."""
    layers: dict[int, Layer] = field(default_factory=dict)
    """By layer index; allocated at the layer's first write, which tells its shapes."""

    def layer(self, index: int, keys: torch.Tensor, values: torch.Tensor) -> Layer:
        """Return the tensors of a layer with a row for every owner. keys, values: [heads, tokens, head size], for their shapes."""
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

    def add_row(self, key: int) -> None:
        """Add a row for a sequence. It starts with zeros, because masking does not remove a NaN from padding."""
        for layer in self.layers.values():
            layer.wipe(len(self.owners))
        self.owners.append(key)

    def shrink(self) -> None:
        """Free the rows left over from a peak. The budget bounds each pool, not the sum of all pools."""
        rows = max(FEWEST_ROWS, math.ceil(len(self.owners) * GROWTH))
        for layer in self.layers.values():
            if layer.keys.shape[0] >= MAX_GROWTH * rows:
                layer.keys, layer.values = layer.keys[:rows].clone(), layer.values[:rows].clone()

    def free(self) -> None:
        """Free all memory."""
        size = sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers.values())
        self.layers.clear()
        if size >= LARGE_BYTES:
            release_free_memory()

    def _empty(self, rows: int, like: torch.Tensor) -> torch.Tensor:
        """Allocate zeros, for the reason in `add_row`."""
        heads, _, size = like.shape
        return torch.zeros(rows, heads, self.capacity, size, dtype=like.dtype, device=like.device)


class KVCache:
    """Rows of running sequences, within a budget of tokens."""

    def __init__(self, longest: int, budget: int) -> None:
        """Make an empty cache. `longest`: most tokens of one sequence. `budget`: tokens of all rows together, at least `longest`."""
        self._longest = longest
        self._budget = max(longest, budget)
        self._pools: dict[int, Pool] = {}
        self._lengths: dict[int, int] = {}
        self._homes: dict[int, Pool] = {}

    @property
    def used(self) -> int:
        """Reserved tokens of the budget."""
        # A copy, because other threads read while the engine's thread writes.
        return sum(pool.capacity for pool in list(self._homes.values()))

    def set_budget(self, tokens: int) -> None:
        """Change the budget; reserved rows stay."""
        self._budget = max(self._longest, tokens)

    def length(self, key: int) -> int:
        """Return the number of a sequence's tokens in the cache."""
        return self._lengths.get(key, 0)

    def reserve(self, key: int, tokens: int) -> bool:
        """Reserve a row for `tokens` tokens of a sequence in total. Returns False, without a change, if the budget is exceeded."""
        home = self._homes.get(key)
        if home is not None and tokens <= home.capacity:
            return True
        capacity = self._capacity_for(tokens)
        if self.used - (home.capacity if home else 0) + capacity > self._budget:
            return False
        target = self._pools.setdefault(capacity, Pool(capacity, self._budget // capacity))
        target.add_row(key)
        if home is not None:
            if self.length(key):
                self._copy(key, home, target)
            self._leave(key, home)
        self._homes[key] = target
        return True

    def place(self, key: int) -> tuple[Pool, int]:
        """Return pool and row of a sequence with a reserved row."""
        pool = self._homes[key]
        return pool, pool.owners.index(key)

    def bytes_per_token(self, key: int) -> int:
        """Return the bytes of one token in all layers together, after a first write for this sequence."""
        layers = self._homes[key].layers.values()
        return sum(t.shape[1] * t.shape[3] * t.element_size() for layer in layers for t in (layer.keys, layer.values))

    def advance(self, key: int, tokens: int) -> None:
        """Record that this many tokens were written to every layer."""
        self._lengths[key] = self.length(key) + tokens

    def release(self, key: int) -> None:
        """Free the row of a sequence; does nothing if there is none."""
        home = self._homes.pop(key, None)
        self._lengths.pop(key, None)
        if home is not None:
            self._leave(key, home)

    def clear(self) -> None:
        """Drop all sequences and free the memory."""
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
        """Remove a row from a pool; the last row moves into its place."""
        row, last = pool.owners.index(key), len(pool.owners) - 1
        if row != last:
            moved = pool.owners[last]
            # Before the first write the tensors may not have the row at all.
            for layer in pool.layers.values() if self.length(moved) else ():
                layer.move(last, row)
            pool.owners[row] = moved
        pool.owners.pop()
        if pool.owners:
            pool.shrink()
        else:
            self._pools.pop(pool.capacity).free()
