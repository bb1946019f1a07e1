"""Attention over the flat sequence of `packing`: every block of tokens sees its own context and nothing else.

It is plugged into transformers' `AttentionInterface`, so every model that uses that interface trains on packed rows without
a change. Blocks of like size are padded together for the attention alone, where padding is cheap: it is a few percent of the
work for rows of a few hundred tokens, while all linear layers see no padding at all.
"""

import contextlib
import inspect
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

IMPLEMENTATION: Final = "finetune_packed"
"""Name under which transformers knows this attention."""
SHORT_KEYS: Final = 256
"""Keys up to which a CPU keeps the scores: torch's fused kernel is slower there (backward in bfloat16: ten times)."""
OTHER_ATTENTION: Final = ("softcap", "s_aux", "sliding_window")
"""Arguments by which a model asks for another attention than this one: capped scores, sinks, windows."""
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


def attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: AttentionLayout,
    **options: Any,
) -> tuple[Any, None]:
    """An attention function of transformers: query [1, H, T, D], key and value [1, G, T, D], result [1, T, H, D].

    G divides H: H / G queries share a key. `attention_mask` is None, as the layout says who sees whom.
    """
    import torch

    if attention_mask is not None:
        raise ValueError("packed rows have a mask of their own, and this model brought another")
    if unknown := [name for name in OTHER_ATTENTION if options.get(name) is not None]:
        raise ValueError(f"this model's attention wants {', '.join(unknown)}, which packed rows do not have")
    scaling = scaling if scaling is not None else query.shape[-1] ** -0.5
    # Tokens first: that is how they lie in memory, so that a token is gathered as one piece.
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    results = [_attend_part(part, query, key, value, scaling, dropout) for part in layout.parts]
    result = results[0] if len(results) == 1 else torch.cat(results).index_select(0, layout.restore)
    return result[None], None


def _attend_part(part: Part, query: Any, key: Any, value: Any, scaling: float, dropout: float) -> Any:
    """[P, H, D] results of the tokens of a part, in their order."""
    import torch

    if part.short and query.device.type == "cpu" and not dropout:
        from finetune_trainer.short_attention import ShortAttention

        return ShortAttention.apply(query, key, value, part, scaling)
    results = []
    for bucket in part.buckets:
        queries, keys, values = (
            states.index_select(0, positions).unflatten(0, (bucket.count, -1))
            for states, positions in ((query, bucket.queries), (key, bucket.keys), (value, bucket.keys))
        )
        results.append(_fused(queries, keys, values, bucket, scaling, dropout).flatten(0, 1))
    result = results[0] if len(results) == 1 else torch.cat(results)
    return result.index_select(0, part.restore)


def _fused(query: Any, key: Any, value: Any, bucket: Bucket, scaling: float, dropout: float) -> Any:
    """Attention by torch's kernel: query [n, L, H, D], key and value [n, S, G, D], result like query."""
    from torch.nn.functional import scaled_dot_product_attention

    if bucket.mask is not None:
        # An accelerator's memory-efficient kernel takes a mask or grouped queries, not both.
        repeats = query.shape[2] // key.shape[2]
        key, value = key.repeat_interleave(repeats, 2), value.repeat_interleave(repeats, 2)
    return scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=bucket.mask,
        dropout_p=dropout,
        is_causal=bucket.mask is None,
        scale=scaling,
        enable_gqa=bucket.mask is None,
    ).transpose(1, 2)


def supports_packing(model: Any) -> bool:
    """Whether every layer of the model is full attention behind transformers' interface, and its loss the usual one.

    It is a claim of the model's class; `passes.choose_passes` puts it to the proof.
    """
    from transformers.loss.loss_utils import ForCausalLMLoss

    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    full = set(kinds) == {"full_attention"} if kinds else not getattr(config, "sliding_window", None)
    return (
        getattr(model, "_supports_attention_backend", False)
        and full
        and "logits_to_keep" in inspect.signature(model.forward).parameters
        and getattr(model, "loss_function", None) is ForCausalLMLoss
    )


@contextlib.contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Within this context the model takes batches of `PackedCollator`, and no others."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, attend)
    before = model.config._attn_implementation  # noqa: SLF001 - there is a setter in public, and no getter
    model.set_attn_implementation(IMPLEMENTATION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
