"""A loaded base model."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_model.base_digest import digest_of_weights

logger = logging.getLogger(__name__)


@dataclass
class BaseModel:
    """A loaded base model."""

    model: Any
    tokenizer: Any
    folder: Path
    revision: str
    """Commit of a hub model, digest of a local one."""
    dtype: str
    """dtype of the weights, for example float32; of quantized layers, that of their products."""

    @property
    def digest(self) -> str:
        """Digest of configuration and weights, which servers compare; of a hub model too, because it may be served from a copy."""
        return digest_of_weights(self.folder)

    @property
    def on_gpu(self) -> bool:
        """True if the model will train on an accelerator."""
        import torch

        return bool(torch.cuda.is_available())

    @property
    def pad_token_id(self) -> int:
        """Padding token id; padding is masked, so that any token with an embedding serves for a tokenizer without one."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        embeddings = self.model.get_input_embeddings().weight.shape[0]
        return next(int(i) for i in ids if i is not None and i < embeddings)
