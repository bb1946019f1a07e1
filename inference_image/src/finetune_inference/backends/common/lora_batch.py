"""Adapters of many sequences in one forward pass, as hooks on the base model's modules.

A hook adds the deltas of the batch's adapters to a module's output. The low-rank matrices of all adapters in the batch are
stacked, for all modules that read the same input. So a group of modules costs one matrix product, and each of its modules one
more, for any number of adapters; a mask restricts each token to the columns of its own adapter. The base model itself stays
unchanged: without an adapter in the batch it computes its own output.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn
from torch.utils.hooks import RemovableHandle

from finetune_inference.backends.common.lora_weights import LoadedLora, LoraDelta, Replacement

Rows = torch.Tensor | slice
"""Rows of a module's output; a slice selects all of them."""


@dataclass(eq=False)
class _Stack:
    """Concatenated matrices of all adapters, for modules that read the same input."""

    a: torch.Tensor
    """[in, sum of ranks]"""
    b: dict[str, tuple[slice, torch.Tensor]]
    """By module path: its slice of the ranks, and [ranks of the slice, out]."""
    layout: tuple[tuple[int, int, float], ...]
    """Index of the adapter in the batch, rank and scaling, for each adapter of each module."""


@dataclass
class _Assignment:
    """Adapter of each row of a module's output."""

    places: torch.Tensor
    """[rows, 1] index of each row's adapter; -1 is the base model. A single row stands for all rows."""
    masks: dict[tuple[tuple[int, int, float], ...], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    rows: dict[int, Rows] = field(default_factory=dict)
    """Rows by adapter index; only adapters of this batch."""
    latest: tuple[_Stack, torch.Tensor, torch.Tensor] | None = None
    """The latest first product with its stack and input, because the modules of a group run one after the other."""


class LoraBatch:
    """Adapters of the current batch. `applied` assigns an adapter to each row."""

    def __init__(self, model: Any, groups: Sequence[Sequence[str]] = ()) -> None:
        """Prepare a model for adapters. `groups`: paths of modules that read the same input."""
        self._modules: dict[str, nn.Module] = dict(model.named_modules())
        self._groups = {path: tuple(group) for group in groups for path in group}
        self._device = model.device
        self._head = _path_of(self._modules, model.get_output_embeddings())
        self._hooks: dict[str, RemovableHandle] = {}
        """By module path."""
        self._stacked: tuple[LoadedLora, ...] = ()
        self._stacks: dict[str, _Stack] = {}
        self._special: dict[str, list[tuple[int, LoraDelta | Replacement]]] = {}
        self._tokens: _Assignment | None = None
        self._logits: _Assignment | None = None

    @contextmanager
    def applied(
        self, tokens: Sequence[LoadedLora | None], logits: Sequence[LoadedLora | None] | None = None
    ) -> Iterator[None]:
        """Apply to each row its adapter within the block.

        `tokens`: adapter of each token, or one for all. `logits`: the same for the rows of the head, if those are others.
        """
        wanted = list(dict.fromkeys(lora for lora in tokens if lora is not None))
        if wanted:
            self._stack(wanted)
            self._tokens = self._assigned(tokens)
            self._logits = self._assigned(logits) if logits is not None else self._tokens
        try:
            yield
        finally:
            self._tokens = self._logits = None

    def remove_hooks(self) -> None:
        """Remove everything from the model, after which no adapter is applied any more."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()

    def _stack(self, wanted: list[LoadedLora]) -> None:
        """Make the stacks hold the wanted adapters. Others stay as long as they are at most half of the stacks."""
        present = set(self._stacked)
        if present.issuperset(wanted) and len(self._stacked) <= 2 * len(wanted):
            return
        # After a failure half way (out of memory) the next call must not mistake the incomplete stacks for complete ones.
        self._stacked = ()
        self._stacks.clear()
        self._special.clear()
        for path in sorted(set().union(*(lora.paths for lora in wanted))):
            self._hook(path)
            parts = [(i, lora.deltas[path]) for i, lora in enumerate(wanted) if path in lora.deltas]
            if path not in self._stacks and any(not delta.embedding for _, delta in parts):
                self._stack_group(self._groups.get(path, (path,)), wanted)
            special: list[tuple[int, LoraDelta | Replacement]] = [
                (i, delta) for i, delta in parts if not delta.is_plain
            ]
            special += [(i, lora.replacements[path]) for i, lora in enumerate(wanted) if path in lora.replacements]
            if special:
                self._special[path] = special
        self._stacked = tuple(wanted)

    def _stack_group(self, group: Sequence[str], wanted: list[LoadedLora]) -> None:
        """Build the stack of modules that read the same input."""
        deltas = [
            (path, i, lora.deltas[path]) for path in group for i, lora in enumerate(wanted) if path in lora.deltas
        ]
        flat = [(path, place, delta) for path, place, delta in deltas if not delta.embedding]
        layout = tuple((place, delta.a.shape[0], delta.scaling) for _, place, delta in flat)
        stack = _Stack(torch.cat([delta.a for _, _, delta in flat]).t().contiguous(), {}, layout)
        begin = 0
        for path in dict.fromkeys(path for path, _, _ in flat):
            b = torch.cat([delta.b for owner, _, delta in flat if owner == path], dim=1).t().contiguous()
            stack.b[path] = slice(begin, begin + b.shape[0]), b
            begin += b.shape[0]
            self._stacks[path] = stack

    def _hook(self, path: str) -> None:
        if path in self._hooks:
            return

        def add(module: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
            assignment = self._logits if path == self._head else self._tokens
            if assignment is None or not (path in self._stacks or path in self._special):
                return None
            return self._add(path, module, arguments[0], output, assignment)

        self._hooks[path] = self._modules[path].register_forward_hook(add)

    def _add(
        self, path: str, module: nn.Module, inputs: torch.Tensor, output: torch.Tensor, assignment: _Assignment
    ) -> torch.Tensor:
        """Add the adapters' deltas to the output, in place, and return it. inputs: [..., in] or ids [...]; output: [..., out]."""
        flat = output.view(-1, output.shape[-1])
        if assignment.places.shape[0] not in (1, flat.shape[0]):
            raise RuntimeError(f"{path} computes {flat.shape[0]} rows for {assignment.places.shape[0]} tokens")
        stack = self._stacks.get(path)
        if stack is not None:
            columns, b = stack.b[path]
            flat.addmm_(_inner(stack, inputs, assignment)[:, columns], b)
        for place, part in self._special.get(path, ()):
            rows = assignment.rows.get(place)
            if rows is not None:
                flat[rows] = _special(part, module, inputs, flat, rows)
        return output

    def _assigned(self, owners: Sequence[LoadedLora | None]) -> _Assignment:
        numbers = {lora: place for place, lora in enumerate(self._stacked)}
        places = [-1 if lora is None else numbers[lora] for lora in owners]
        if len(set(places)) == 1:
            return _Assignment(torch.tensor(places[:1], device=self._device)[:, None], rows={places[0]: slice(None)})
        column = torch.tensor(places, device=self._device)
        rows: dict[int, Rows] = {}
        if self._special:
            rows = {place: (column == place).nonzero()[:, 0] for place in set(places) - {-1}}
        return _Assignment(column[:, None], rows=rows)


def _inner(stack: _Stack, inputs: torch.Tensor, assignment: _Assignment) -> torch.Tensor:
    """Return [rows, sum of ranks] the scaled first product; zero in the columns of other adapters."""
    if assignment.latest is not None and assignment.latest[0] is stack and assignment.latest[1] is inputs:
        return assignment.latest[2]
    inner = inputs.reshape(-1, inputs.shape[-1]) @ stack.a
    mask = assignment.masks.get(stack.layout)
    if mask is None:
        mask = assignment.masks[stack.layout] = _mask(assignment.places, stack.layout, inner.dtype)
    scalings, foreign = mask
    # Filled instead of multiplied by zero, because the product with another adapter may be infinite.
    inner.mul_(scalings).masked_fill_(foreign, 0)
    assignment.latest = stack, inputs, inner
    return inner


def _mask(
    places: torch.Tensor, layout: tuple[tuple[int, int, float], ...], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [sum of ranks] the scaling of each column, and [rows, sum of ranks] True in the columns of other adapters."""
    owners = [place for place, rank, _ in layout for _ in range(rank)]
    scalings = [scaling for _, rank, scaling in layout for _ in range(rank)]
    foreign = places != torch.tensor(owners, device=places.device)
    return torch.tensor(scalings, dtype=dtype, device=places.device), foreign


def _special(
    part: LoraDelta | Replacement, module: nn.Module, inputs: torch.Tensor, output: torch.Tensor, rows: Rows
) -> torch.Tensor:
    """Return [rows, out] the output with a part that cannot be stacked. output: [all rows, out], stacked parts included."""
    if isinstance(part, Replacement):
        if isinstance(module, nn.Embedding):
            return F.embedding(inputs.reshape(-1)[rows], part.weight)
        return F.linear(inputs.reshape(-1, inputs.shape[-1])[rows], part.weight, part.bias)
    result = output[rows]
    if part.embedding:
        looked_up = F.embedding(inputs.reshape(-1)[rows], part.a.t())
        # Some embeddings (Gemma's) multiply what they look up by a factor, which applies to the change as well.
        result = result + (looked_up @ part.b.t()) * part.scaling * getattr(module, "embed_scale", 1)
    if part.bias is not None:
        result = result + part.bias * part.scaling
    if part.magnitude is not None:
        own_bias = getattr(module, "bias", None)
        shift = 0 if own_bias is None else own_bias
        result = (result - shift) * part.magnitude + shift
    return result


def _path_of(modules: dict[str, nn.Module], wanted: nn.Module | None) -> str | None:
    return next((path for path, module in modules.items() if module is wanted), None)
