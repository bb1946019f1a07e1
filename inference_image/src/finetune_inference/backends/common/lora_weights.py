"""The weights of one adapter as the engines hold them in memory."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, eq=False)
class LoraDelta:
    """Low-rank change of one module by one adapter."""

    a: torch.Tensor
    """[rank, in], or [rank, vocabulary] for an embedding."""
    b: torch.Tensor
    """[out, rank]"""
    scaling: float
    bias: torch.Tensor | None = None
    """[out] added after the second product and scaled like it (`lora_bias`)."""
    magnitude: torch.Tensor | None = None
    """[out] DoRA's factor on base plus delta: learned magnitude divided by the norm of the tuned weight."""
    embedding: bool = False
    """True for an embedding, where `a` is looked up instead of multiplied."""

    @property
    def is_plain(self) -> bool:
        """True if the delta can be stacked with those of other adapters."""
        return self.bias is None and self.magnitude is None and not self.embedding


@dataclass(frozen=True, eq=False)
class Replacement:
    """Complete module of an adapter, which replaces the base model's (`modules_to_save`)."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class LoadedLora:
    """One version of an adapter in memory. It stays usable while it is referenced, even if its name means another version."""

    name: str
    digest: str
    deltas: dict[str, LoraDelta]
    """By module path."""
    replacements: dict[str, Replacement] = field(default_factory=dict)
    """By module path."""

    @property
    def size_bytes(self) -> int:
        """Memory of the tensors, in bytes."""
        tensors = [t for d in self.deltas.values() for t in (d.a, d.b, d.bias, d.magnitude) if t is not None]
        tensors += [t for r in self.replacements.values() for t in (r.weight, r.bias) if t is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def paths(self) -> set[str]:
        """Paths of the modules that the adapter changes."""
        return self.deltas.keys() | self.replacements.keys()
