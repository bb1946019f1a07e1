"""One forward pass per sequence, with the model's own attention and cache: slow, but correct for every causal model."""

from collections.abc import Sequence
from typing import Any

import torch

from finetune_inference.backends.common.lora_batch import LoraBatch
from finetune_inference.backends.transformers.model_runner import Chunk


class SequentialModelRunner:
    """Model runner that computes one chunk after the other."""

    def __init__(self, model: Any, lora: LoraBatch, *, budget: int, takes_logits_to_keep: bool) -> None:
        """Wrap a model. `budget`: tokens of all sequences together in the KV cache."""
        self._model = model
        self._lora = lora
        self._budget = budget
        self._takes_logits_to_keep = takes_logits_to_keep
        self._reserved: dict[int, int] = {}
        """Tokens by sequence."""
        self._caches: dict[int, Any] = {}
        """The model's own cache objects by sequence; none before the first pass."""

    @property
    def reserved(self) -> int:
        """Tokens reserved in the KV cache, of all sequences together. Any thread may read it."""
        return sum(list(self._reserved.values()))

    def reserve(self, key: int, tokens: int) -> bool:
        """Reserve cache for `tokens` tokens of a sequence in total. Returns False if the budget does not allow it now."""
        others = sum(reserved for other, reserved in self._reserved.items() if other != key)
        if others + tokens > self._budget:
            return False
        self._reserved[key] = tokens
        return True

    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Return logits [wanted positions of all chunks, vocabulary]."""
        return torch.cat([self._forward_one(chunk) for chunk in chunks])

    def release(self, key: int) -> None:
        """Free the cache of a sequence."""
        self._caches.pop(key, None)
        self._reserved.pop(key, None)

    def clear(self) -> None:
        """Free the cache of all sequences."""
        self._caches.clear()
        self._reserved.clear()

    def _forward_one(self, chunk: Chunk) -> torch.Tensor:
        # `logits_to_keep=0` keeps all.
        kept = {"logits_to_keep": max(1, chunk.wanted)} if self._takes_logits_to_keep else {}
        with self._lora.applied([chunk.lora]):
            output = self._model(
                input_ids=torch.tensor([list(chunk.ids)], device=self._model.device),
                past_key_values=self._caches.get(chunk.key),
                use_cache=True,
                **kept,
            )
        self._caches[chunk.key] = output.past_key_values
        logits: torch.Tensor = output.logits[0]
        return logits[logits.shape[0] - chunk.wanted :]
