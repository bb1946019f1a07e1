"""Attention mask of a packed sequence as blocks, and the buckets that process blocks of similar size in one kernel call."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

SHORT_KEYS: Final = 256
"""Most keys of a block whose scores a CPU materializes; torch's fused kernel is slower there (ten times for bfloat16 backward)."""


SMALL_AREA: Final = 1 << 16
"""Scores per head below which padding costs nothing measurable."""


Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """Consecutive tokens that attend causally to each other, and to all of their context."""

    queries: Ids
    """Flat positions of the tokens."""
    context: Ids
    """Flat positions of the tokens before the block."""


@dataclass
class Bucket:
    """n blocks padded to one size: L queries and S = C + L keys each."""

    queries: Any
    """[n * L] flat positions; padding repeats position 0, and its results are discarded."""
    keys: Any
    """[n * S] flat positions: context padded on the left, own tokens on the right."""
    count: int
    length: int
    """L"""
    mask: Any | None
    """[1, 1, L, S], true where a query sees a key; None for a causal mask."""
    contexts: list[tuple[Any, Any]]
    """For each distinct context: its flat positions [C], and the indices of the blocks that attend to it."""
    cache: dict[Any, Any] = field(default_factory=dict)
    """Tensors that `short_attention` derives once for all layers."""

    @property
    def seen(self) -> int:
        """S, the keys of each block."""
        return len(self.keys) // self.count

    def bias(self, like: Any) -> Any:
        """Return the additive mask [L, S]: 0 where a query sees a key, minus infinity elsewhere."""
        import torch

        bias = torch.zeros(self.length, self.seen, dtype=like.dtype, device=like.device)
        seen = torch.ones_like(bias, dtype=torch.bool).tril() if self.mask is None else self.mask[0, 0]
        return bias.masked_fill_(~seen, -math.inf)


@dataclass
class Part:
    """Blocks that cover P tokens of a flat sequence."""

    buckets: list[Bucket]
    positions: Any
    """[P] flat positions, ascending."""
    restore: Any
    """[P] row of each position in the concatenated results of all buckets."""
    short: bool
    """True for blocks of at most `SHORT_KEYS` keys."""
    cache: dict[Any, Any] = field(default_factory=dict)
    """Tensors that `short_attention` derives once for all layers."""

    @classmethod
    def of(cls, blocks: Sequence[Block], *, short: bool) -> "Part":
        """Lay out disjoint blocks."""
        import torch

        buckets, places = [], []
        offset = 0
        for group in _similar_size(blocks):
            bucket = _bucket(group)
            buckets.append(bucket)
            for i, block in enumerate(group):
                rows = offset + i * bucket.length + np.arange(len(block.queries))
                places.append(np.stack([block.queries, rows]))
            offset += bucket.count * bucket.length
        positions, rows = np.concatenate(places, axis=1)
        order = np.argsort(positions)
        return cls(buckets, torch.from_numpy(positions[order]), torch.from_numpy(rows[order]), short)

    def to(self, device: Any, **options: Any) -> "Part":
        """Return a copy on another device."""
        buckets = [
            Bucket(
                bucket.queries.to(device, **options),
                bucket.keys.to(device, **options),
                bucket.count,
                bucket.length,
                None if bucket.mask is None else bucket.mask.to(device, **options),
                [
                    (positions.to(device, **options), blocks.to(device, **options))
                    for positions, blocks in bucket.contexts
                ],
            )
            for bucket in self.buckets
        ]
        return Part(buckets, self.positions.to(device, **options), self.restore.to(device, **options), self.short)


@dataclass
class AttentionLayout:
    """Attention mask of one flat sequence, as blocks in buckets."""

    parts: list[Part]
    """Blocks with few keys, then those with many; together they cover every position once."""
    restore: Any
    """[T] row of each flat position in the concatenated results of all parts."""
    row_tokens: int
    """Tokens of all rows; a shared token counts once per row."""

    @classmethod
    def of(cls, blocks: Sequence[Block], row_tokens: int) -> "AttentionLayout":
        """Lay out blocks that together cover every position of the flat sequence once."""
        import torch

        divided: dict[bool, list[Block]] = {True: [], False: []}
        for block in blocks:
            divided[len(block.context) + len(block.queries) <= SHORT_KEYS].append(block)
        parts = [Part.of(some, short=short) for short, some in divided.items() if some]
        return cls(parts, torch.cat([part.positions for part in parts]).argsort(), row_tokens)

    def to(self, device: Any, **options: Any) -> "AttentionLayout":
        """Return a copy on another device; accelerate calls this as for every tensor of a batch."""
        parts = [part.to(device, **options) for part in self.parts]
        return AttentionLayout(parts, self.restore.to(device, **options), self.row_tokens)


def _similar_size(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Group blocks so that padding costs little: equal context lengths, own lengths within a factor of 1.25 or small."""
    group: list[Block] = []
    for block in sorted(blocks, key=lambda b: (len(b.context), -len(b.queries), int(b.queries[0]))):
        if group and not _fits(group, block):
            yield group
            group = []
        group.append(block)
    if group:
        yield group


def _fits(group: Sequence[Block], block: Block) -> bool:
    longest, context = len(group[0].queries), len(group[0].context)
    if len(block.context) != context:
        return False
    return len(block.queries) * 1.25 >= longest or (len(group) + 1) * longest * (context + longest) <= SMALL_AREA


def _bucket(blocks: Sequence[Block]) -> Bucket:
    import torch

    count, context = len(blocks), len(blocks[0].context)
    length = max(len(block.queries) for block in blocks)
    queries = np.zeros((count, length), np.int64)
    for i, block in enumerate(blocks):
        queries[i, : len(block.queries)] = block.queries
    keys = np.concatenate([np.stack([block.context for block in blocks]), queries], axis=1)
    mask = None
    if context:
        own = torch.ones(length, length, dtype=torch.bool).tril()
        mask = torch.cat([torch.ones(length, context, dtype=torch.bool), own], dim=1)[None, None]
    return Bucket(
        torch.from_numpy(queries.ravel()),
        torch.from_numpy(keys.ravel()),
        count,
        length,
        mask,
        _contexts(blocks) if context else [],
    )


def _contexts(blocks: Sequence[Block]) -> list[tuple[Any, Any]]:
    import torch

    seers: dict[bytes, list[int]] = {}
    for i, block in enumerate(blocks):
        seers.setdefault(block.context.tobytes(), []).append(i)
    return [(torch.from_numpy(blocks[found[0]].context), torch.tensor(found)) for found in seers.values()]
