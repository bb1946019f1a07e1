"""The interface between the engine and its two model runners, batched and sequential."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from finetune_inference.backends.common.lora_weights import LoadedLora


@dataclass(frozen=True)
class Chunk:
    """The next tokens of one sequence: a part of its prompt, or the latest token of its answer."""

    key: int
    ids: Sequence[int]
    start: int
    """Number of tokens of the sequence that the model has computed already."""
    lora: LoadedLora | None
    """None is the base model."""
    wanted: int
    """Number of positions, counted from the end, whose logits are wanted."""


class ModelRunner(Protocol):
    """A model with the KV cache of the running sequences."""

    @property
    def reserved(self) -> int:
        """Tokens reserved in the KV cache, of all sequences together. Any thread may read it."""

    def reserve(self, key: int, tokens: int) -> bool:
        """Reserve cache for `tokens` tokens of a sequence in total. Returns False if the budget does not allow it now."""

    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Return logits [wanted positions of all chunks, vocabulary], in the order of the chunks; each was reserved."""

    def release(self, key: int) -> None:
        """Free the cache of a sequence; does nothing if there is none."""

    def clear(self) -> None:
        """Free the cache of all sequences."""
