"""Attention over a packed flat sequence: every block of tokens attends to its own context and to nothing else.

It is plugged into transformers' `AttentionInterface`, so every model that uses that interface trains on packed rows without
a change. Blocks of similar size are padded together for the attention alone, because there padding is cheap: a few percent of the
work for rows of a few hundred tokens, while the linear layers process no padding at all.
"""

import contextlib
import inspect
import logging
from collections.abc import Iterator
from typing import Any, Final

from finetune_trainer.kernels.attention_layout import AttentionLayout, Bucket, Part

logger = logging.getLogger(__name__)

IMPLEMENTATION: Final = "finetune_packed"
"""Name of this attention in transformers' `AttentionInterface`."""
OTHER_ATTENTION: Final = ("softcap", "s_aux", "sliding_window")
"""Arguments of attention variants that this kernel does not implement: capped scores, sinks, windows."""


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
    """Compute attention as transformers calls it: query [1, H, T, D], key and value [1, G, T, D], result [1, T, H, D].

    G divides H: H / G query heads share a key head. `attention_mask` is None because `layout` defines the mask.
    Raises ValueError for another mask or an attention variant.
    """
    import torch

    if attention_mask is not None:
        raise ValueError("packed rows define their own attention mask, but the model passed another")
    if unknown := [name for name in OTHER_ATTENTION if options.get(name) is not None]:
        raise ValueError(f"packed rows do not support {', '.join(unknown)}, which this model's attention uses")
    scaling = scaling if scaling is not None else query.shape[-1] ** -0.5
    # Tokens first, as in memory, so that each token is gathered as one contiguous piece.
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    results = [_attend_part(part, query, key, value, scaling, dropout) for part in layout.parts]
    result = results[0] if len(results) == 1 else torch.cat(results).index_select(0, layout.restore)
    return result[None], None


def _attend_part(part: Part, query: Any, key: Any, value: Any, scaling: float, dropout: float) -> Any:
    """Return the results [P, H, D] of a part's tokens, in their order."""
    import torch

    if part.short and query.device.type == "cpu" and not dropout:
        from finetune_trainer.kernels.short_attention import ShortAttention

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
    """Call torch's fused kernel: query [n, L, H, D], key and value [n, S, G, D], result like query."""
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
    """Return whether all layers use full attention through transformers' interface, and the loss is the standard one.

    The model's class only claims it; `batches.layout.choose_layout` verifies it on real rows.
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
    """Make the model accept batches of `PackedCollator`, and only those, within this context."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, attend)
    before = model.config._attn_implementation  # noqa: SLF001 - there is a setter in public, and no getter
    model.set_attn_implementation(IMPLEMENTATION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
