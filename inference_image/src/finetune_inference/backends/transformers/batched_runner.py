"""One forward pass for many sequences: a transformers model with our own attention and KV cache.

The tokens of all sequences form one row, `[1, tokens]`, without padding, because every layer but attention treats tokens
independently. Our attention is registered with transformers' `AttentionInterface` and knows the sequence of each token.
`model_check` tests by trial whether a model computes correctly this way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakMethod

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from finetune_inference.backends.common.lora_batch import LoraBatch
from finetune_inference.backends.transformers.kv_cache import KVCache, Pool
from finetune_inference.backends.transformers.model_runner import Chunk

UNSUPPORTED = ("softcap", "s_aux", "position_bias", "attention_mask")
"""Arguments of some models' attention that ours does not implement."""


@dataclass
class _Decode:
    """Sequences of one pool in decode, one token each; their tokens are contiguous."""

    pool: Pool
    tokens: slice
    rows: torch.Tensor
    """[n] rows of the pool."""
    view: slice | None
    """The same rows as a slice if they are contiguous too; None makes attention copy them."""
    positions: torch.Tensor
    """[n] position of each token."""
    longest: int
    """Tokens of the longest of these sequences, the new token included."""


@dataclass
class _Prefill:
    """Several tokens of one sequence in prefill."""

    pool: Pool
    tokens: slice
    row: int
    start: int


@dataclass
class _Plan:
    """Tokens of one forward pass by sequence."""

    decodes: list[_Decode] = field(default_factory=list)
    prefills: list[_Prefill] = field(default_factory=list)
    masks: dict[tuple[int, int | None], torch.Tensor] = field(default_factory=dict)
    """By group and sliding window, shared by all layers."""


class BatchedModelRunner:
    """Model runner that computes the chunks of many sequences in one forward pass."""

    def __init__(self, model: Any, lora: LoraBatch, cache: KVCache, *, takes_logits_to_keep: bool) -> None:
        self._model = model
        self._lora = lora
        self._cache = cache
        self._takes_logits_to_keep = takes_logits_to_keep
        self._device = model.device
        self.bytes_per_token = 0
        """Bytes of keys and values in all layers; known after the first pass."""
        self._plan = _Plan()
        self._adapter = _CacheAdapter()
        name = f"finetune_batched_{id(self)}"
        # A weak reference, because the registry lasts as long as the process and must not keep the model alive.
        own = WeakMethod(self._attend)
        AttentionInterface.register(name, lambda *arguments, **options: own()(*arguments, **options))  # type: ignore[misc]
        model.set_attn_implementation(name)

    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Return logits [wanted positions of all chunks, vocabulary], in the order of the chunks; each was reserved."""
        ordered = sorted(chunks, key=lambda chunk: (len(chunk.ids) > 1, *self._place(chunk)))
        self._plan = self._make_plan(ordered)
        ids = [token for chunk in ordered for token in chunk.ids]
        positions = [chunk.start + i for chunk in ordered for i in range(len(chunk.ids))]
        kept = _kept(chunks, ordered)
        owners = [chunk.lora for chunk in ordered for _ in chunk.ids]
        with self._lora.applied(owners, [owners[i] for i in kept] if self._takes_logits_to_keep else owners):
            index = torch.tensor(kept, dtype=torch.long, device=self._device)
            output = self._model(
                input_ids=torch.tensor([ids], device=self._device),
                position_ids=torch.tensor([positions], device=self._device),
                past_key_values=self._adapter,
                use_cache=True,
                **({"logits_to_keep": index} if self._takes_logits_to_keep else {}),
            )
        logits: torch.Tensor = output.logits[0]
        if not self._takes_logits_to_keep:
            logits = logits[index]
        for chunk in chunks:
            self._cache.advance(chunk.key, len(chunk.ids))
        self.bytes_per_token = self.bytes_per_token or self._cache.bytes_per_token(chunks[0].key)
        return logits

    @property
    def reserved(self) -> int:
        """Tokens reserved in the KV cache, of all sequences together. Any thread may read it."""
        return self._cache.used

    def reserve(self, key: int, tokens: int) -> bool:
        """Reserve cache for `tokens` tokens of a sequence in total. Returns False if the budget does not allow it now."""
        return self._cache.reserve(key, tokens)

    def release(self, key: int) -> None:
        """Free the cache of a sequence."""
        self._cache.release(key)

    def clear(self) -> None:
        """Free the cache of all sequences."""
        self._cache.clear()

    def _place(self, chunk: Chunk) -> tuple[int, int]:
        pool, row = self._cache.place(chunk.key)
        return pool.capacity, row

    def _make_plan(self, ordered: Sequence[Chunk]) -> _Plan:
        plan = _Plan()
        begin = 0
        singles: dict[int, list[Chunk]] = {}
        for chunk in ordered:
            if len(chunk.ids) == 1:
                singles.setdefault(self._cache.place(chunk.key)[0].capacity, []).append(chunk)
        for group in singles.values():
            plan.decodes.append(self._decode(group, begin))
            begin += len(group)
        for chunk in ordered:
            if len(chunk.ids) > 1:
                pool, row = self._cache.place(chunk.key)
                plan.prefills.append(_Prefill(pool, slice(begin, begin + len(chunk.ids)), row, chunk.start))
                begin += len(chunk.ids)
        return plan

    def _decode(self, group: Sequence[Chunk], begin: int) -> _Decode:
        pool = self._cache.place(group[0].key)[0]
        rows = [self._cache.place(chunk.key)[1] for chunk in group]
        neighbors = rows[-1] - rows[0] + 1 == len(rows)
        return _Decode(
            pool,
            slice(begin, begin + len(group)),
            torch.tensor(rows, device=self._device),
            slice(rows[0], rows[-1] + 1) if neighbors else None,
            torch.tensor([chunk.start for chunk in group], device=self._device),
            max(chunk.start for chunk in group) + 1,
        )

    def _attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """Compute attention for transformers. query, key, value: [1, heads, tokens, size]; returns [1, tokens, heads, size]."""
        unsupported = [name for name in UNSUPPORTED if options.get(name) is not None]
        if unsupported or attention_mask is not None:
            raise NotImplementedError(f"attention with {', '.join(unsupported) or 'a mask'}")
        layer: Any = module.layer_idx
        output = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
        for decode in self._plan.decodes:
            mask = self._decode_mask(decode, sliding_window, query.dtype)
            output[decode.tokens] = _attend_decode(decode, layer, query[0], key[0], value[0], mask, scaling)
        for prefill in self._plan.prefills:
            seen = self._prefill_mask(prefill, sliding_window)
            output[prefill.tokens] = _attend_prefill(prefill, layer, query[0], key[0], value[0], seen, scaling)
        return output[None], None

    def _decode_mask(self, decode: _Decode, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Return the mask [n, 1, 1, longest] that is added to attention scores."""
        known = self._plan.masks.get((id(decode), window))
        if known is not None:
            return known
        columns = torch.arange(decode.longest, device=self._device)[None]
        hidden = columns > decode.positions[:, None]
        if window is not None:
            hidden |= columns <= decode.positions[:, None] - window
        mask = torch.zeros(hidden.shape, dtype=dtype, device=self._device).masked_fill_(hidden, -torch.inf)
        return self._plan.masks.setdefault((id(decode), window), mask[:, None, None])

    def _prefill_mask(self, prefill: _Prefill, window: int | None) -> torch.Tensor | None:
        """Return [tokens, start + tokens], True where attention is allowed; None for plain causal attention."""
        tokens = prefill.tokens.stop - prefill.tokens.start
        if window is not None and prefill.start + tokens <= window:
            window = None
        if prefill.start == 0 and window is None:
            return None
        known = self._plan.masks.get((id(prefill), window))
        if known is not None:
            return known
        rows = torch.arange(prefill.start, prefill.start + tokens, device=self._device)[:, None]
        columns = torch.arange(prefill.start + tokens, device=self._device)[None]
        mask = columns <= rows
        if window is not None:
            mask &= columns > rows - window
        return self._plan.masks.setdefault((id(prefill), window), mask)


class _CacheAdapter(Cache):  # type: ignore[misc]  # transformers has no types
    """Cache object for transformers. It passes new keys and values on to our attention, which stores them."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the new keys and values unchanged."""
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: models get their positions as an argument."""
        return 0


def _attend_decode(
    decode: _Decode,
    layer_index: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """Store and attend for one token of each sequence. query, key, value: [heads, tokens, size] -> [n, heads, size].

    Query heads that share a key-value head take the place of query tokens, so that no key-value head is repeated.
    """
    key, value = key[:, decode.tokens], value[:, decode.tokens]
    layer = decode.pool.layer(layer_index, key, value)
    layer.keys[decode.rows, :, decode.positions] = key.transpose(0, 1)
    layer.values[decode.rows, :, decode.positions] = value.transpose(0, 1)
    rows: Any = decode.rows if decode.view is None else decode.view
    keys, values = layer.keys[rows, :, : decode.longest], layer.values[rows, :, : decode.longest]
    heads, count, size = query.shape[0], keys.shape[0], query.shape[2]
    queries = query[:, decode.tokens].transpose(0, 1).reshape(count, keys.shape[1], heads // keys.shape[1], size)
    result = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scaling)
    return result.reshape(count, heads, values.shape[3])


def _attend_prefill(
    prefill: _Prefill,
    layer_index: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """Store and attend for the next tokens of one sequence; returns [tokens, heads, size]."""
    key, value = key[:, prefill.tokens], value[:, prefill.tokens]
    layer = prefill.pool.layer(layer_index, key, value)
    end = prefill.start + key.shape[1]
    layer.keys[prefill.row, :, prefill.start : end] = key
    layer.values[prefill.row, :, prefill.start : end] = value
    result = F.scaled_dot_product_attention(
        query[None, :, prefill.tokens],
        layer.keys[prefill.row, None, :, :end],
        layer.values[prefill.row, None, :, :end],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[0] != key.shape[0],
    )
    return result[0].transpose(0, 1)


def _kept(chunks: Sequence[Chunk], ordered: Sequence[Chunk]) -> list[int]:
    """Return the positions, in the row of tokens by `ordered`, whose logits are wanted, in the order of `chunks`."""
    ends: dict[int, int] = {}
    end = 0
    for chunk in ordered:
        end += len(chunk.ids)
        ends[chunk.key] = end
    return [position for chunk in chunks for position in range(ends[chunk.key] - chunk.wanted, ends[chunk.key])]
