"""Faster linear layers on a CPU: layers that read the same input are fused into one product, from packed weights.

A trial pass shows which layers read the same input, so that no names are needed. A layer keeps its place, its hooks and its
weight (which becomes a view of its group's), so nothing outside changes but the speed. Packed weights are a second copy, in the
order in which the CPU reads them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

LEAST_PACKED_ROWS = {torch.float32: 3, torch.bfloat16: 1}
"""Fewest rows of input for which packed weights are faster (measured with AVX512 and AMX: 1.6 times at 16 rows, 1.3 times at 64,
1.15 times at 256). With fewer rows a product only streams the weights."""
PACKED_FOR = 32
"""Number of rows for which oneDNN chooses the order of packed weights."""


@dataclass(frozen=True)
class Packing:
    """Result of packing the weights."""

    packable_bytes: int
    """Size of the packed copy; 0 if this CPU, build or dtype has no product from packed weights."""
    is_packed: bool


@torch.inference_mode()
def shared_inputs(model: nn.Module) -> list[list[str]]:
    """Return groups of paths of linear layers that read the same input, in order of execution; a group may have one layer."""
    calls: list[tuple[str, torch.Tensor]] = []
    hooks = []
    for path, module in model.named_modules():
        if type(module) is nn.Linear:
            # Inputs are kept until the end, so that no tensor reuses the memory, and with it the identity, of another one.
            record: Any = lambda _, arguments, path=path: calls.append((path, arguments[0]))  # noqa: E731
            hooks.append(module.register_forward_pre_hook(record))
    try:
        model(input_ids=torch.tensor([[0, 1]], device=next(model.parameters()).device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    groups: list[list[str]] = []
    previous: torch.Tensor | None = None
    for path, inputs in calls:
        if inputs is previous:
            groups[-1].append(path)
        else:
            groups.append([path])
        previous = inputs
    paths = [path for path, _ in calls]
    return [group for group in groups if all(paths.count(path) == 1 for path in group)]


def fuse_and_pack_linear(model: nn.Module, groups: Sequence[Sequence[str]], spare_bytes: int) -> Packing:
    """Fuse each group of layers, and pack the weights if the copy takes at most `spare_bytes`."""
    fused = [_Group([model.get_submodule(path) for path in group]) for group in groups if _can_fuse(model, group)]
    packable = [group for group in fused if _can_pack(group.weight.dtype)]
    needed = sum(group.weight.nbytes for group in packable)
    packing = Packing(needed, is_packed=0 < needed <= spare_bytes)
    if packing.is_packed:
        for group in packable:
            group.pack()
    return packing


class _Group:
    """Fused linear layers that read the same input, one after the other."""

    def __init__(self, layers: Sequence[Any]) -> None:
        sizes = [layer.weight.shape[0] for layer in layers]
        self._sizes = sizes
        self._last = len(layers) - 1
        self.weight = layers[0].weight.data if self._last == 0 else torch.cat([layer.weight.data for layer in layers])
        self._bias = None if layers[0].bias is None else torch.cat([layer.bias.data for layer in layers])
        self._packed: torch.Tensor | None = None
        self._inputs: torch.Tensor | None = None
        self._outputs: Sequence[torch.Tensor] = ()
        for place, (layer, part) in enumerate(zip(layers, torch.split(self.weight, sizes), strict=True)):
            if self._last:
                layer.weight = nn.Parameter(part, requires_grad=False)
            layer.forward = self._forward_of(place, layer)

    def pack(self) -> None:
        """Make the packed copy."""
        self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, PACKED_FOR)  # noqa: SLF001 - its only name

    def _forward_of(self, place: int, layer: nn.Linear) -> Any:
        def forward(inputs: torch.Tensor) -> torch.Tensor:
            if place == 0:
                self._inputs, self._outputs = inputs, torch.split(self._product(inputs), self._sizes, dim=-1)
            elif inputs is not self._inputs:
                # Another order of execution than in the trial pass: compute the layer alone.
                return F.linear(inputs, layer.weight, layer.bias)
            output = self._outputs[place]
            if place == self._last:
                self._inputs, self._outputs = None, ()
            return output

        return forward

    def _product(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.numel() // inputs.shape[-1]
        if self._packed is None or rows < LEAST_PACKED_ROWS[self.weight.dtype]:
            return F.linear(inputs, self.weight, self._bias)
        flat = inputs.reshape(rows, -1)
        padding = padded_rows(rows) - rows
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001 - its only name
            F.pad(flat, (0, 0, 0, padding)) if padding else flat, self._packed, self._bias, "none", [], ""
        )
        return product[:rows].view(*inputs.shape[:-1], -1)


def padded_rows(rows: int) -> int:
    """Round the rows of a product from packed weights up to one of eight sizes between two powers of two.

    oneDNN compiles a kernel for each number of rows and each shape of weight, and caches it in 0.67 MiB, for any shape
    (measured with 3.13). Under a mixed load new numbers keep coming, and the server grows as if it leaked: with five shapes by
    200 MiB in float32, and by 480 MiB in bfloat16, where oneDNN starts to evict kernels. With these sizes it grows by 100 and
    160 MiB, most of it early. Up to 16 rows nothing is added; above, at most an eighth.
    """
    step = 1 << max(0, (rows - 1).bit_length() - 4)
    return math.ceil(rows / step) * step


def _can_fuse(model: nn.Module, group: Sequence[str]) -> bool:
    layers: list[Any] = [model.get_submodule(path) for path in group]
    same_kind = len({(layer.weight.dtype, layer.bias is None) for layer in layers}) == 1
    return same_kind and layers[0].weight.dtype in LEAST_PACKED_ROWS


def _can_pack(dtype: torch.dtype) -> bool:
    """Return whether this CPU and this build of torch have the product from packed weights."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    # Without AVX512 oneDNN raises for bfloat16, where torch's own product is merely slow.
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - its only name
