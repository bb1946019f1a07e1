"""Attention over few keys on a CPU: two batched products per bucket, in one autograd function over all buckets.

torch's fused kernel is made for long rows; on short ones it spends most of its time around the products. This function
gathers the tokens of a head in the order of multiplication. It keeps only its inputs for the backward pass: recomputing the
attention weights takes 1 % of a step and saves a tenth of the kept memory. It gathers gradients where autograd would scatter
them, which is several times slower.
"""

from dataclasses import dataclass
from typing import Any

import torch

from finetune_trainer.kernels.attention_layout import Bucket, Part


@dataclass
class HeadIndex:
    """Positions of the heads of a part's tokens: H query heads, G key heads, and R = H / G query heads per key head."""

    queries: list[Any]
    """Per bucket [n * G * R * L] rows of the queries [T * H]."""
    keys: list[Any]
    """Per bucket [n * G * S] rows of keys and values [T * G]."""
    results: Any
    """[P * H] rows of the concatenated queries of all buckets, without padding."""
    padded: list[Any]
    """Per bucket [n * G * R * L] rows of the results [P * H + 1]; the last one stands for padding."""
    query_grads: Any
    """[T * H] rows of the queries of all buckets; one extra row stands for tokens outside of them."""
    key_grads: Any
    """[T * G] rows of the keys of all buckets, where a token is among the bucket's own."""

    @classmethod
    def of(cls, part: Part, tokens: int, heads: int, groups: int) -> "HeadIndex":
        """Index a part of a sequence of `tokens` tokens."""
        head, group = torch.arange(heads), torch.arange(groups)
        queries, keys, results, own = [], [], [], []
        query_rows = key_rows = 0
        for bucket in part.buckets:
            n, length, seen = bucket.count, bucket.length, len(bucket.keys) // bucket.count
            queries.append((bucket.queries.view(n, 1, length) * heads + head[:, None]).flatten())
            keys.append((bucket.keys.view(n, 1, seen) * groups + group[:, None]).flatten())
            rows = query_rows + torch.arange(n * heads * length).view(n, heads, length)
            results.append(rows.transpose(1, 2).reshape(-1, heads))
            rows = key_rows + torch.arange(n * groups * seen).view(n, groups, seen)[:, :, seen - length :]
            own.append(rows.transpose(1, 2).reshape(-1, groups))
            query_rows += n * heads * length
            key_rows += n * groups * seen
        result = torch.cat(results)[part.restore]
        query_grads = torch.full((tokens, heads), query_rows)
        query_grads[part.positions] = result
        key_grads = torch.full((tokens, groups), key_rows)
        key_grads[part.positions] = torch.cat(own)[part.restore]
        padded = torch.full((query_rows,), result.numel())
        padded[result.flatten()] = torch.arange(result.numel())
        sizes = [len(rows) for rows in queries]
        return cls(
            queries,
            keys,
            result.flatten(),
            list(torch.split(padded, sizes)),
            query_grads.flatten(),
            key_grads.flatten(),
        )


class ShortAttention(torch.autograd.Function):
    """Attention of query [T, H, D] over key and value [T, G, D]: results [P, H, D] of a part's tokens, in their order."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, part: Part, scaling: float) -> Any:
        """Compute scores, softmax and weighted values, bucket by bucket."""
        index = _index(part, query, key)
        results = []
        # Keep the dtypes of the states: autocast would change them.
        with torch.autocast(query.device.type, enabled=False):
            for bucket, queries, keys in zip(part.buckets, index.queries, index.keys, strict=True):
                rows, seen, values = _gathered(bucket, query, key, value, queries, keys)
                weights = _weights(_bias(bucket, query, key), rows, seen, scaling)
                results.append(torch.bmm(weights, values).view(-1, value.shape[-1]))
        ctx.save_for_backward(query, key, value)
        ctx.part, ctx.scaling = part, scaling
        return _joined(results).index_select(0, index.results).view(-1, query.shape[1], value.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        """Return the gradients; a shared context sums those of all blocks that attend to it."""
        query, key, value = ctx.saved_tensors
        part: Part = ctx.part
        index = _index(part, query, key)
        grad = grad.reshape(-1, grad.shape[-1])
        grad = torch.cat([grad, grad.new_zeros(1, grad.shape[-1])])
        query_grads, key_grads, value_grads = [], [], []
        for i, bucket in enumerate(part.buckets):
            rows, seen, values = _gathered(bucket, query, key, value, index.queries[i], index.keys[i])
            result_grad = grad.index_select(0, index.padded[i]).view(*rows.shape[:2], -1)
            weights = _weights(_bias(bucket, query, key), rows, seen, ctx.scaling)
            value_grads.append(torch.bmm(weights.mT, result_grad))
            weight_grad = torch.bmm(result_grad, values.mT)
            score_grad = torch._softmax_backward_data(weight_grad, weights, -1, query.dtype).mul_(ctx.scaling)  # noqa: SLF001
            query_grads.append(torch.bmm(score_grad, seen))
            key_grads.append(torch.bmm(score_grad.mT, rows))
        return (
            _back(query_grads, index.query_grads, query),
            _add_contexts(_back(key_grads, index.key_grads, key), part, key_grads),
            _add_contexts(_back(value_grads, index.key_grads, value), part, value_grads),
            None,
            None,
        )


def _index(part: Part, query: Any, key: Any) -> HeadIndex:
    """Return the index, made once for all layers with the same numbers of heads."""
    shape = (len(query), query.shape[1], key.shape[1])
    if shape not in part.cache:
        part.cache[shape] = HeadIndex.of(part, *shape)
    found: HeadIndex = part.cache[shape]
    return found


def _bias(bucket: Bucket, query: Any, key: Any) -> Any:
    """Return the additive mask [R * L, S] of a bucket, made once like the index."""
    shape = (query.shape[1] // key.shape[1], query.dtype)
    if shape not in bucket.cache:
        bucket.cache[shape] = bucket.bias(query).repeat(shape[0], 1)
    return bucket.cache[shape]


def _weights(bias: Any, rows: Any, seen: Any, scaling: float) -> Any:
    return torch.baddbmm(bias, rows, seen.mT, alpha=scaling).softmax(-1)


def _gathered(bucket: Bucket, query: Any, key: Any, value: Any, queries: Any, keys: Any) -> tuple[Any, Any, Any]:
    """Gather queries [n * G, R * L, D], keys and values [n * G, S, D]; query heads of one key head share a product."""
    batch = bucket.count * key.shape[1]
    rows = query.flatten(0, 1).index_select(0, queries).view(batch, -1, query.shape[-1])
    seen, values = (
        states.flatten(0, 1).index_select(0, keys).view(batch, -1, states.shape[-1]) for states in (key, value)
    )
    return rows, seen, values


def _joined(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _back(grads: list[Any], rows: Any, like: Any) -> Any:
    """Return the gradients of bucket rows as gradients of all tokens' heads; zero for a token in no bucket."""
    size = like.shape[-1]
    nothing = grads[0].new_zeros(1, size)
    return torch.cat([*(grad.reshape(-1, size) for grad in grads), nothing]).index_select(0, rows).view_as(like)


def _add_contexts(total: Any, part: Part, grads: list[Any]) -> Any:
    """Add to `total` [T, G, D] the gradients of the contexts in those of each bucket's keys, [n * G, S, D]."""
    for bucket, grad in zip(part.buckets, grads, strict=True):
        by_block = grad.view(bucket.count, -1, *grad.shape[1:])
        for positions, blocks in bucket.contexts:
            shared = by_block[blocks, :, : len(positions)].sum(0, dtype=torch.float32)
            total[positions] += shared.transpose(0, 1).to(total.dtype)
    return total
