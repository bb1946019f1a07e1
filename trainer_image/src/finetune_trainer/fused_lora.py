"""A LoRA layer in one autograd function: the same products as peft's, without its passes over whole activations.

peft adds `scaling * B(A(x))` to the base layer's result by separate operations, each of which reads and writes an
activation of full width, forward and backward, and keeps adapters in float32 even if everything else is bfloat16. Here the
low-rank product is accumulated into the result in place, and runs in the dtype of the activations; the adapter's own
weights and gradients stay as they are.
"""

import contextlib
from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLinear


class LoraLinear(torch.autograd.Function):
    """x [T, I], weight [O, I], bias [O] or None, a [R, I], b [O, R]: x W' + bias + scaling * x A' B', [T, O].

    LoRA: Hu et al., arXiv 2106.09685. Weight and bias are frozen; there are gradients for x, a and b.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scaling: float) -> Any:
        """Base product, and the low-rank one added to it in place."""
        narrow_a, narrow_b = a.to(x.dtype), b.to(x.dtype)
        inner = x @ narrow_a.T
        result = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
        result.addmm_(inner, narrow_b.T, alpha=scaling)
        ctx.save_for_backward(x, inner, weight, narrow_a, narrow_b)
        ctx.scaling, ctx.dtype = scaling, a.dtype
        return result

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        """Gradients by the chain rule; the one of x is left out for the lowest layer, whose input needs none."""
        x, inner, weight, a, b = ctx.saved_tensors
        grad_inner = (grad @ b).mul_(ctx.scaling)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_inner, a)
        grad_a = (grad_inner.T @ x).to(ctx.dtype)
        # Narrow from the left: the other way round the same product takes twice as long on a CPU.
        grad_b = (inner.T @ grad).mul_(ctx.scaling).T.to(ctx.dtype)
        return grad_x, None, None, grad_a, grad_b, None


@contextlib.contextmanager
def fused_lora(model: Any) -> Iterator[int]:
    """Within this context every plain LoRA layer of a peft model is computed by `LoraLinear`; yields how many there are."""
    layers = [module for module in model.modules() if _is_plain(module)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward


def _is_plain(module: Any) -> bool:
    """Whether a module is peft's LoRA around an unquantised Linear with no variation (DoRA, dropout, bias, mixtures)."""
    if type(module) is not PeftLinear or type(module.base_layer) is not torch.nn.Linear:
        return False
    (name, *others) = module.active_adapters
    return not (
        others
        or name not in module.lora_A
        or module.merged
        or module.disable_adapters
        or module.lora_variant
        or module.lora_bias[name]
        or not isinstance(module.lora_dropout[name], torch.nn.Identity)
        or type(module.lora_A[name]) is not torch.nn.Linear
    )


def _forward(layer: Any, x: Any, *_args: Any, **_kwargs: Any) -> Any:
    if layer.disable_adapters:
        return layer.base_layer(x)
    name = layer.active_adapters[0]
    base = layer.base_layer
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    # Under autocast a LayerNorm hands over float32, which a product would narrow by itself and one in place would not.
    x = x.to(base.weight.dtype)
    result = LoraLinear.apply(x.reshape(-1, x.shape[-1]), base.weight, base.bias, a, b, layer.scaling[name])
    return result.view(*x.shape[:-1], -1)
