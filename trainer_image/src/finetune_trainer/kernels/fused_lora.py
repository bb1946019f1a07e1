"""LoRA layers in one autograd function: the same products as peft's, without its passes over whole activations.

peft adds `scaling * B(A(x))` to the base layer's result by separate operations, each of which reads and writes an
activation of full width, forward and backward, and keeps adapters in float32 even if everything else is bfloat16. Here the
low-rank product is accumulated into the result in place, and runs in the dtype of the activations; the adapter's own
weights and gradients stay as they are. Layers that a model calls one after the other on the same activations (`SIBLINGS`)
multiply them with all of their A's at once and add up their gradients in place.

A gated MLP as a whole is one function as well. Of its four activations of intermediate width, which are most of what a
training step keeps, two are made anew in the backward pass: they cost no product, only a pass over memory.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from peft.tuners.lora.layer import Linear as PeftLinear

SIBLINGS: Final = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers that most models call on the same activations; elsewhere each is computed by itself."""

GATED: Final = ("gate_proj", "up_proj", "down_proj")
"""Names of the layers of a gated MLP, whose activation is `act_fn`."""
LARGE: Final = 1e4
"""Probe input, 10,000 times a typical activation: reveals models that clamp the gate or up projection."""


class Adapted(NamedTuple):
    """The weights of one layer: W [O, I] and bias [O] or None, which are frozen, A [R, I] and B [O, R]."""

    weight: Any
    bias: Any
    a: Any
    b: Any


def products(x: Any, layers: Sequence[Adapted], scalings: Sequence[float]) -> tuple[list[Any], Any]:
    """Return x W' + bias + scaling * x A' B' [T, O] of each layer for x [T, I], and x times all A' [T, sum of R].

    LoRA: Hu et al., arXiv 2106.09685.
    """
    inner = x @ _joined([layer.a for layer in layers]).to(x.dtype).T
    results = []
    for layer, scaling, part in zip(layers, scalings, _parts(inner, layers), strict=True):
        product = x @ layer.weight.T if layer.bias is None else torch.addmm(layer.bias, x, layer.weight.T)
        results.append(product.addmm_(part, layer.b.to(x.dtype).T, alpha=scaling))
    return results, inner


def gradients(
    x: Any, inner: Any, layers: Sequence[Adapted], scalings: Sequence[float], grads: Sequence[Any], *, of_x: bool
) -> tuple[Any, list[Any]]:
    """Return the gradients of x (if needed) and of each layer's weight, bias, A and B."""
    narrow_a = _joined([layer.a for layer in layers]).to(x.dtype)
    inner_grad = torch.empty_like(inner)
    for layer, scaling, grad, part in zip(layers, scalings, grads, _parts(inner_grad, layers), strict=True):
        torch.mm(grad, layer.b.to(x.dtype), out=part).mul_(scaling)
    a_grads = (inner_grad.T @ x).split([len(layer.a) for layer in layers])
    found = []
    for layer, scaling, grad, part, a_grad in zip(layers, scalings, grads, _parts(inner, layers), a_grads, strict=True):
        # The narrow matrix stands on the left: the other way round the same product takes twice as long on a CPU.
        b_grad = (part.T @ grad).mul_(scaling).T
        found += [None, None, a_grad.to(layer.a.dtype), b_grad.to(layer.b.dtype)]
    x_grad = None
    if of_x:
        x_grad = grads[0] @ layers[0].weight
        for layer, grad in zip(layers[1:], grads[1:], strict=True):
            x_grad.addmm_(grad, layer.weight)
        x_grad.addmm_(inner_grad, narrow_a)
    return x_grad, found


class LoraLinears(torch.autograd.Function):
    """Layers of the same x [T, I], each with a result [T, O]; weights are passed in the order of `Adapted`."""

    @staticmethod
    def forward(ctx: Any, x: Any, scalings: tuple[float, ...], *weights: Any) -> Any:
        """See `products`."""
        layers = _layers(weights)
        results, inner = products(x, layers, scalings)
        ctx.save_for_backward(x, inner, *weights)
        ctx.scalings = scalings
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """See `gradients`; the gradient of x is skipped for the lowest layer, because its input needs none."""
        x, inner, *weights = ctx.saved_tensors
        x_grad, found = gradients(x, inner, _layers(weights), ctx.scalings, grads, of_x=ctx.needs_input_grad[0])
        return x_grad, None, *found


class GatedMlp(torch.autograd.Function):
    """down(activation(gate(x)) * up(x)) of x [T, H]; the weights are those of gate, up and down."""

    @staticmethod
    def forward(ctx: Any, x: Any, activation: Callable[[Any], Any], scalings: tuple[float, ...], *weights: Any) -> Any:
        """Keep the outputs of gate and up, and recompute their product."""
        gate_up, down = _layers(weights[:8]), _layers(weights[8:])
        (gate, up), inner = products(x, gate_up, scalings[:2])
        (result,), inner_down = products(activation(gate) * up, down, scalings[2:])
        ctx.save_for_backward(x, gate, up, inner, inner_down, *weights)
        ctx.activation, ctx.scalings = activation, scalings
        return result

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        """Return the gradients of down, then of the product, then of gate and up."""
        x, gate, up, inner, inner_down, *weights = ctx.saved_tensors
        gate_up, down = _layers(weights[:8]), _layers(weights[8:])
        with torch.enable_grad():
            gate, up = gate.detach().requires_grad_(), up.detach().requires_grad_()
            product = ctx.activation(gate) * up
        product_grad, of_down = gradients(product.detach(), inner_down, down, ctx.scalings[2:], [grad], of_x=True)
        grads = torch.autograd.grad(product, (gate, up), product_grad)
        del product, product_grad
        x_grad, of_gate_up = gradients(x, inner, gate_up, ctx.scalings[:2], grads, of_x=ctx.needs_input_grad[0])
        return x_grad, None, None, *of_gate_up, *of_down


def _layers(weights: Sequence[Any]) -> list[Adapted]:
    return [Adapted(*weights[start : start + 4]) for start in range(0, len(weights), 4)]


def _joined(tensors: list[Any]) -> Any:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _parts(inner: Any, layers: Sequence[Adapted]) -> Any:
    return inner.split([len(layer.a) for layer in layers], dim=1)


class Siblings:
    """Layers that a model calls in turn on the same input: the first call computes all of them."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = layers
        self._x: Any = None
        self._waiting: dict[int, Any] = {}

    def forward(self, number: int, x: Any, *_args: Any, **_kwargs: Any) -> Any:
        """Return the result of one of the layers."""
        layer = self._layers[number]
        if layer.disable_adapters:
            return layer.base_layer(x)
        if x is not self._x or number not in self._waiting:
            self._x, self._waiting = x, dict(enumerate(_apply(self._layers, x)))
        result = self._waiting.pop(number)
        if not self._waiting:
            # x holds its whole autograd graph: after a failed pass the graph would stay in memory for the next one.
            self._x = None
        return result


@contextlib.contextmanager
def fused_lora(model: Any) -> Iterator[int]:
    """Compute every plain LoRA layer of a peft model by this module within this context; yield their number."""
    plain = [module for module in model.modules() if _is_plain(module)]
    changed = list(plain)
    for layer in plain:
        layer.forward = partial(Siblings([layer]).forward, 0)
    for module in model.modules():
        for names in SIBLINGS:
            group: list[Any] = [layer for name in names if (layer := getattr(module, name, None)) in plain]
            siblings = Siblings(group)
            for number, layer in enumerate(group):
                layer.forward = partial(siblings.forward, number)
    proven: dict[type, bool] = {}
    for module in model.modules():
        if _looks_gated(module) and all(getattr(module, name) in plain for name in GATED):
            if type(module) not in proven:
                proven[type(module)] = agrees(module, partial(_gated_forward, module), module.gate_proj.in_features)
            if proven[type(module)]:
                module.forward = partial(_gated_forward, module)
                changed.append(module)
    try:
        yield len(plain)
    finally:
        for module in changed:
            del module.forward


def agrees(module: Any, forward: Callable[[Any], Any], size: int) -> bool:
    """Return whether `forward` equals the module's own forward on two tokens of `size` numbers, typical and large ones."""
    like = next(module.parameters())
    x = torch.linspace(-1, 1, 2 * size, dtype=like.dtype, device=like.device).view(1, 2, size)
    tolerance = 8 * torch.finfo(like.dtype).eps
    for given in (x, LARGE * x):
        with torch.no_grad():
            expected, found = module(given), forward(given)
        if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())):
            return False
    return True


def _is_plain(module: Any) -> bool:
    """Return whether a module is peft's LoRA around an unquantized Linear without variation (DoRA, dropout, bias, mixtures)."""
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


def _looks_gated(module: Any) -> bool:
    return {name for name, _ in module.named_children()} == {*GATED, "act_fn"}


def _gated_forward(module: Any, x: Any) -> Any:
    layers = [getattr(module, name) for name in GATED]
    if any(layer.disable_adapters for layer in layers):
        return type(module).forward(module, x)
    flat, scalings, weights = _arguments(layers, x)
    return GatedMlp.apply(flat, module.act_fn, scalings, *weights).view(*x.shape[:-1], -1)


def _apply(layers: Sequence[Any], x: Any) -> list[Any]:
    flat, scalings, weights = _arguments(layers, x)
    return [result.view(*x.shape[:-1], -1) for result in LoraLinears.apply(flat, scalings, *weights)]


def _arguments(layers: Sequence[Any], x: Any) -> tuple[Any, tuple[float, ...], list[Any]]:
    """Return x as [T, I], and the scalings and weights of peft's layers."""
    scalings, weights = [], []
    for layer in layers:
        name = layer.active_adapters[0]
        scalings.append(layer.scaling[name])
        weights += [
            layer.base_layer.weight,
            layer.base_layer.bias,
            layer.lora_A[name].weight,
            layer.lora_B[name].weight,
        ]
    # Under autocast a LayerNorm returns float32: an ordinary matrix product casts it down, an in-place one does not.
    flat = x.to(layers[0].base_layer.weight.dtype).reshape(-1, x.shape[-1])
    return flat, tuple(scalings), weights
