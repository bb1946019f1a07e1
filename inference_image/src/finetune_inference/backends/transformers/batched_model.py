"""One forward pass for many sequences: a transformers model, with attention and cache of our own.

The tokens of all sequences lie in one row, `[1, tokens]`, without padding: every layer but attention treats tokens alike.
Attention is registered with transformers' `AttentionInterface` and knows which tokens belong together. Whether a model can
be served like this is not guessed from its name but tried, see `model_check`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakMethod

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from finetune_inference.backends.transformers.kv_cache import KVCache, Pool
from finetune_inference.backends.transformers.lora_batch import LoraBatch
from finetune_inference.backends.transformers.model_runner import Chunk

UNSUPPORTED = ("softcap", "s_aux", "position_bias", "attention_mask")
"""What some models hand to attention that this one does not compute."""


@dataclass
class _Decode:
    """Sequences of one pool that add one token each; their tokens are neighbors."""

    pool: Pool
    tokens: slice
    rows: torch.Tensor
    """[n] rows of the pool."""
    view: slice | None
    """The same rows as a slice, if they are neighbors too; None makes attention copy."""
    positions: torch.Tensor
    """[n] where each token goes."""
    longest: int
    """Tokens of the longest of these sequences, the new one included."""


@dataclass
class _Prefill:
    """Several tokens of one sequence."""

    pool: Pool
    tokens: slice
    row: int
    start: int


@dataclass
class _Plan:
    """Which tokens of a pass belong together."""

    decodes: list[_Decode] = field(default_factory=list)
    prefills: list[_Prefill] = field(default_factory=list)
    masks: dict[tuple[int, int | None], torch.Tensor] = field(default_factory=dict)
    """By group and sliding window; all layers share them."""


class BatchedModelRunner:
    """Runs pieces of many sequences in one forward pass."""

    def __init__(self, model: Any, lora: LoraBatch, cache: KVCache, *, takes_logits_to_keep: bool) -> None:
        self._model = model
        self._lora = lora
        self._cache = cache
        self._takes_logits_to_keep = takes_logits_to_keep
        self._device = model.device
        self.bytes_per_token = 0
        """Of keys and values in all layers; known after the first pass."""
        self._plan = _Plan()
        self._adapter = _CacheAdapter()
        name = f"finetune_batched_{id(self)}"
        # The registry lasts as long as the process, the model only as long as somebody uses it.
        own = WeakMethod(self._attend)
        AttentionInterface.register(name, lambda *arguments, **options: own()(*arguments, **options))  # type: ignore[misc]
        model.set_attn_implementation(name)

    def forward(self, pieces: Sequence[Chunk]) -> torch.Tensor:
        """Logits [wanted positions of all pieces, vocabulary], in the order of the pieces; there is room for each."""
        ordered = sorted(pieces, key=lambda piece: (len(piece.ids) > 1, *self._place(piece)))
        self._plan = self._planned(ordered)
        ids = [token for piece in ordered for token in piece.ids]
        positions = [piece.start + i for piece in ordered for i in range(len(piece.ids))]
        kept = _kept(pieces, ordered)
        owners = [piece.lora for piece in ordered for _ in piece.ids]
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
        for piece in pieces:
            self._cache.advance(piece.key, len(piece.ids))
        self.bytes_per_token = self.bytes_per_token or self._cache.bytes_per_token(pieces[0].key)
        return logits

    @property
    def reserved(self) -> int:
        """Tokens that there is room taken for, of all sequences together. Any thread may ask."""
        return self._cache.used

    def reserve(self, key: int, tokens: int) -> bool:
        """Make room for a sequence of `tokens` in all; False if there is none at the moment."""
        return self._cache.reserve(key, tokens)

    def release(self, key: int) -> None:
        """Forget a sequence."""
        self._cache.release(key)

    def clear(self) -> None:
        """Forget all sequences."""
        self._cache.clear()

    def _place(self, piece: Chunk) -> tuple[int, int]:
        pool, row = self._cache.place(piece.key)
        return pool.capacity, row

    def _planned(self, ordered: Sequence[Chunk]) -> _Plan:
        plan = _Plan()
        begin = 0
        singles: dict[int, list[Chunk]] = {}
        for piece in ordered:
            if len(piece.ids) == 1:
                singles.setdefault(self._cache.place(piece.key)[0].capacity, []).append(piece)
        for group in singles.values():
            plan.decodes.append(self._decode(group, begin))
            begin += len(group)
        for piece in ordered:
            if len(piece.ids) > 1:
                pool, row = self._cache.place(piece.key)
                plan.prefills.append(_Prefill(pool, slice(begin, begin + len(piece.ids)), row, piece.start))
                begin += len(piece.ids)
        return plan

    def _decode(self, group: Sequence[Chunk], begin: int) -> _Decode:
        pool = self._cache.place(group[0].key)[0]
        rows = [self._cache.place(piece.key)[1] for piece in group]
        neighbors = rows[-1] - rows[0] + 1 == len(rows)
        return _Decode(
            pool,
            slice(begin, begin + len(group)),
            torch.tensor(rows, device=self._device),
            slice(rows[0], rows[-1] + 1) if neighbors else None,
            torch.tensor([piece.start for piece in group], device=self._device),
            max(piece.start for piece in group) + 1,
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
        """Attention for transformers. query, key, value: [1, heads, tokens, size]; returns [1, tokens, heads, size]."""
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
        """[n, 1, 1, longest] to be added to scores."""
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
        """[tokens, start + tokens], True where attention looks; None if that is plain causal attention."""
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
    """What transformers takes for its cache: passes new keys and values on to attention, which stores them."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The new keys and values as they came."""
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Nothing that models could count on; positions are given to them."""
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
    """Store and attend for one token of each sequence; query, key, value: [heads, tokens, size] -> [n, heads, size].

    Query heads that share a key-value head stand where several query tokens would: nothing has to be repeated.
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
    """Store and attend for the next tokens of one sequence -> [tokens, heads, size]."""
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


def _kept(pieces: Sequence[Chunk], ordered: Sequence[Chunk]) -> list[int]:
    """Positions in the row of tokens (as `ordered` has it) at which logits are wanted, in the order of `pieces`."""
    ends: dict[int, int] = {}
    end = 0
    for piece in ordered:
        end += len(piece.ids)
        ends[piece.key] = end
    return [position for piece in pieces for position in range(ends[piece.key] - piece.wanted, ends[piece.key])]
