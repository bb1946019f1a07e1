"""What an engine asks of a model in one step, whichever way the model computes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from finetune_inference.backends.transformers.lora_batch import LoadedLora


@dataclass(frozen=True)
class Chunk:
    """The next tokens of one sequence."""

    key: int
    ids: Sequence[int]
    start: int
    """Tokens of the sequence that the model has seen already."""
    lora: LoadedLora | None
    """None is the base model."""
    wanted: int
    """At how many positions, counted from the end, logits are wanted."""


class ModelRunner(Protocol):
    """A model with a memory of the sequences in work."""

    @property
    def reserved(self) -> int:
        """Tokens that there is room taken for, of all sequences together. Any thread may ask."""

    def reserve(self, key: int, tokens: int) -> bool:
        """Make room for a sequence of `tokens` in all; False if there is none at the moment."""

    def forward(self, pieces: Sequence[Chunk]) -> torch.Tensor:
        """Logits [wanted positions of all pieces, vocabulary], in the order of the pieces; there is room for each."""

    def release(self, key: int) -> None:
        """Forget a sequence; nothing happens if it is not known."""

    def clear(self) -> None:
        """Forget all sequences."""
