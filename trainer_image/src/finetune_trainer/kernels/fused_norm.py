"""RMSNorm in one autograd function over chunks of rows, so that intermediates never leave the processor's cache.

transformers needs eight operations over whole float32 activations, and a dozen for the gradient. This function reads and
writes an activation once. It keeps for the backward pass one number per token and the input, which the residual stream
keeps anyway.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import torch

from finetune_trainer.kernels.fused_lora import agrees

CHUNK: Final = 1 << 16
"""Numbers per chunk: 256 KiB in float32, so that several chunks fit into a core's cache."""


class RmsNorm(torch.autograd.Function):
    """x [T, H] divided by its root mean square, times a frozen weight [H]; computed in float32.

    RMSNorm: Zhang and Sennrich, arXiv 1910.07467.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, epsilon: float) -> Any:
        """Round the quotient to x's dtype before the product with the weight, as transformers does."""
        result, inverse = torch.empty_like(x), x.new_empty(len(x), 1, dtype=torch.float32)
        for part, into, scale in _chunks(x, result, inverse):
            wide = part.float()
            torch.linalg.vector_norm(wide, dim=-1, keepdim=True, out=scale)
            scale.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
            torch.mul((wide * scale).to(x.dtype), weight, out=into)
        ctx.save_for_backward(x, weight, inverse)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        """Return inverse * (g - y * mean(g * y)) with y = x * inverse and g the gradient of y."""
        x, weight, inverse = ctx.saved_tensors
        result = torch.empty_like(x)
        for part, incoming, into, scale in _chunks(x, grad, result, inverse):
            normal = part.float() * scale
            wide = incoming.float() * weight
            share = (wide * normal).mean(-1, keepdim=True)
            into.copy_(wide.addcmul_(normal, share, value=-1).mul_(scale))
        return result, None, None


@contextlib.contextmanager
def fused_norm(model: Any) -> Iterator[int]:
    """Compute every frozen RMSNorm of a model by `RmsNorm` within this context; yield their number."""
    norms = [module for module in model.modules() if _looks_like_one(module)]
    proven = {type(norm): agrees(norm, partial(_forward, norm), len(norm.weight)) for norm in norms}
    norms = [norm for norm in norms if proven[type(norm)]]
    for norm in norms:
        norm.forward = partial(_forward, norm)
    try:
        yield len(norms)
    finally:
        for norm in norms:
            del norm.forward


def _looks_like_one(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__.endswith("RMSNorm")
        and weight is not None
        and weight.ndim == 1
        and not weight.requires_grad
        and hasattr(module, "variance_epsilon")
    )


def _forward(norm: Any, x: Any) -> Any:
    return RmsNorm.apply(x.reshape(-1, x.shape[-1]), norm.weight, norm.variance_epsilon).view_as(x)


def _chunks(x: Any, *others: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the same tokens of each tensor; all at once on an accelerator, where launches count and the cache does not."""
    tokens = max(1, CHUNK // x.shape[-1]) if x.device.type == "cpu" else len(x)
    yield from zip(*(tensor.split(tokens) for tensor in (x, *others)), strict=True)
