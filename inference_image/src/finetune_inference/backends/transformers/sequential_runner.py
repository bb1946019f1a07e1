"""One forward pass per sequence, with the model's own attention and cache: slow, and right for every causal model."""

from collections.abc import Sequence
from typing import Any

import torch

from finetune_inference.backends.transformers.lora_batch import LoraBatch
from finetune_inference.backends.transformers.model_runner import Chunk


class SequentialModelRunner:
    """Runs pieces one after the other."""

    def __init__(self, model: Any, lora: LoraBatch, *, budget: int, takes_logits_to_keep: bool) -> None:
        """`budget`: tokens of all sequences together that there is room for."""
        self._model = model
        self._lora = lora
        self._budget = budget
        self._takes_logits_to_keep = takes_logits_to_keep
        self._reserved: dict[int, int] = {}
        """Tokens by sequence."""
        self._caches: dict[int, Any] = {}
        """The model's own cache objects by sequence; absent before the first pass."""

    @property
    def reserved(self) -> int:
        """Tokens that there is room taken for, of all sequences together. Any thread may ask."""
        return sum(list(self._reserved.values()))

    def reserve(self, key: int, tokens: int) -> bool:
        """Make room for a sequence of `tokens` in all; False if there is none at the moment."""
        others = sum(reserved for other, reserved in self._reserved.items() if other != key)
        if others + tokens > self._budget:
            return False
        self._reserved[key] = tokens
        return True

    def forward(self, pieces: Sequence[Chunk]) -> torch.Tensor:
        """Logits [wanted positions of all pieces, vocabulary]."""
        return torch.cat([self._forward_one(piece) for piece in pieces])

    def release(self, key: int) -> None:
        """Forget a sequence."""
        self._caches.pop(key, None)
        self._reserved.pop(key, None)

    def clear(self) -> None:
        """Forget all sequences."""
        self._caches.clear()
        self._reserved.clear()

    def _forward_one(self, piece: Chunk) -> torch.Tensor:
        # `logits_to_keep=0` keeps all.
        kept = {"logits_to_keep": max(1, piece.wanted)} if self._takes_logits_to_keep else {}
        with self._lora.applied([piece.lora]):
            output = self._model(
                input_ids=torch.tensor([list(piece.ids)], device=self._model.device),
                past_key_values=self._caches.get(piece.key),
                use_cache=True,
                **kept,
            )
        self._caches[piece.key] = output.past_key_values
        logits: torch.Tensor = output.logits[0]
        return logits[logits.shape[0] - piece.wanted :]
