"""Which tokens of a packed row attend to which, and how blocks are bucketed for one kernel call."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

SHORT_KEYS: Final = 256
"""Keys up to which a CPU keeps the scores: torch's fused kernel is slower there (backward in bfloat16: ten times)."""


SMALL_AREA: Final = 1 << 16
"""Scores per head that are too few for their padding to matter."""


Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """Tokens that attend to themselves, causally, and to all of their context."""

    queries: Ids
    """Flat positions of the tokens."""
    context: Ids
    """Flat positions of the tokens before them."""


@dataclass
class Bucket:
    """Blocks that are padded together: n of them, with L queries and S = C + L keys each."""

    queries: Any
    """[n * L] flat positions; a padded one repeats position 0, and its result is not used."""
    keys: Any
    """[n * S] flat positions: context padded on the left, own tokens on the right."""
    count: int
    length: int
    """L"""
    mask: Any | None
    """[1, 1, L, S], true where a query sees a key; None for a causal mask."""
    contexts: list[tuple[Any, Any]]
    """For each context in it its flat positions [C], and the numbers of the blocks that see it."""
    cache: dict[Any, Any] = field(default_factory=dict)
    """What `short_attention` makes of it, once for all layers."""

    @property
    def seen(self) -> int:
        """Keys of a block, S."""
        return len(self.keys) // self.count

    def bias(self, like: Any) -> Any:
        """[L, S] what is added to scores: 0 where a query sees a key, minus infinity elsewhere."""
        import torch

        bias = torch.zeros(self.length, self.seen, dtype=like.dtype, device=like.device)
        seen = torch.ones_like(bias, dtype=torch.bool).tril() if self.mask is None else self.mask[0, 0]
        return bias.masked_fill_(~seen, -math.inf)


@dataclass
class Part:
    """The blocks of some tokens of a flat sequence, P of them."""

    buckets: list[Bucket]
    positions: Any
    """[P] flat positions, ascending."""
    restore: Any
    """[P] for each of them the row of the concatenated results of all buckets."""
    short: bool
    """Whether these blocks have at most `SHORT_KEYS` keys, and the other part's more."""
    cache: dict[Any, Any] = field(default_factory=dict)
    """What `short_attention` makes of it, once for all layers."""

    @classmethod
    def of(cls, blocks: Sequence[Block], *, short: bool) -> "Part":
        """Lay out blocks none of whose tokens is in two of them."""
        import torch

        buckets, places = [], []
        offset = 0
        for group in _alike(blocks):
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
        """The same on another device."""
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
    """Who sees whom in one flat sequence."""

    parts: list[Part]
    """Blocks with few keys, and those with many; together they cover every position once."""
    restore: Any
    """[T] for each flat position the row of the concatenated results of all parts."""
    row_tokens: int
    """Tokens of all rows, shared ones counted in each of them."""

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
        """The same on another device; accelerate calls this with the rest of a batch."""
        parts = [part.to(device, **options) for part in self.parts]
        return AttentionLayout(parts, self.restore.to(device, **options), self.row_tokens)


def _alike(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Groups in which padding costs little: contexts of one length, own lengths within a factor of 1.25 or small."""
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
