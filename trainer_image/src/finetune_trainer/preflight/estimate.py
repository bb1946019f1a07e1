"""How much memory and disk a training will take, from the shape of its model and rows."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from finetune_api.training import TrainingConfig
from finetune_trainer.batching import choose_micro_batch_size
from finetune_trainer.dataset import PreparedDataset
from finetune_trainer.quantization import quantized_bytes_saved

GIB: Final = 1 << 30
BYTES: Final = {"float32": 4, "bfloat16": 2}
ADAPTER_BYTES: Final = 16
"""Per trainable parameter: weight, gradient and two moments of AdamW, each in float32."""
CHECKPOINT_BYTES: Final = 12
"""Per trainable parameter on disk: weight and two moments."""
RUNTIME_BYTES: Final = GIB
"""Python with torch and transformers, before any model: 0.8 GiB, rounded up."""
ACTIVATIONS_PER_TOKEN: Final = 16
"""Numbers of size `hidden_size` that a layer keeps per token for its backward pass."""
MLP_ACTIVATIONS_PER_TOKEN: Final = 4
"""Numbers of size `intermediate_size` that a layer keeps per token."""
LOGIT_BYTES: Final = 12
"""Per logit: the output, its float32 copy and its gradient."""
MEMORY_LIMITS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container finds its memory limit, in bytes or `max`: cgroup v2 and v1."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by purpose."""

    weights: int
    adapter: int
    activations: int
    logits: int
    runtime: int

    @property
    def least(self) -> int:
        """What no setting but another model or rank lowers, and no system does without: libraries can be paged in again."""
        return self.weights + self.adapter

    @property
    def total(self) -> int:
        """The expected peak."""
        return self.least + self.activations + self.logits + self.runtime

    def __str__(self) -> str:
        parts = ("weights", "adapter", "activations", "logits", "runtime")
        return f"{gib(self.total)} ({', '.join(f'{part} {gib(getattr(self, part))}' for part in parts)})"


def estimate_memory(
    config: TrainingConfig, model: Any, trainable: int, dtype: str, dataset: PreparedDataset, *, on_gpu: bool
) -> MemoryEstimate:
    """Peak while training `model`, which may be on the meta device, with the longest rows in one pass."""
    lengths = dataset.training.rows.lengths
    hyper = config.hyperparameters
    # Packed rows, which cost their length each: padded ones are fewer in a pass, as long as the longest of them.
    rows = choose_micro_batch_size(lengths.mean(), hyper.batch_size, hyper.micro_batch_size, on_gpu=on_gpu)
    tokens = int(np.sort(lengths)[-rows:].sum())
    learnt = tokens * dataset.training.loss_tokens // dataset.training.tokens
    text = model.config.get_text_config()
    hidden = text.hidden_size
    wide = getattr(text, "intermediate_size", None) or 4 * hidden
    per_layer = ACTIVATIONS_PER_TOKEN * hidden + MLP_ACTIVATIONS_PER_TOKEN * wide
    return MemoryEstimate(
        weights=sum(p.numel() for p in model.parameters()) * BYTES[dtype]
        - quantized_bytes_saved(config.lora.quantization, model, BYTES[dtype]),
        adapter=trainable * ADAPTER_BYTES,
        activations=tokens * text.num_hidden_layers * per_layer * BYTES[dtype],
        logits=learnt * text.vocab_size * LOGIT_BYTES,
        runtime=RUNTIME_BYTES,
    )


def estimate_disk(config: TrainingConfig, trainable: int, tokenizer_folder: Path, dataset: PreparedDataset) -> int:
    """Bytes on the output volume: adapter, checkpoints, and tokens for another attempt."""
    checkpoints = (config.checkpoint.keep + 1) * trainable * CHECKPOINT_BYTES
    tokenizer = sum(f.stat().st_size for f in tokenizer_folder.glob("tokenizer*"))
    tokens = dataset.training.tokens + (dataset.evaluation.tokens if dataset.evaluation else 0)
    return trainable * BYTES["float32"] + checkpoints + tokenizer + 5 * tokens


def available_memory() -> int:
    """Bytes that this process may use: the machine's memory, or its container's limit."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(machine, container_limit() or machine)


def container_limit() -> int | None:
    """Bytes at which the kernel kills this container; None without a limit."""
    found = []
    for name in MEMORY_LIMITS:
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            found.append(int(text))
    return min(found, default=None)


def gib(size: int) -> str:
    """Bytes as people say them."""
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{size / (1 << 20):.1f} MiB"
