"""Estimate of the memory and disk that a training takes, from the shape of its model and rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from finetune_api.training import TrainingConfig
from finetune_trainer.batches.packing import GPU_MIN_SHARED_TOKENS, MIN_SHARED_TOKENS, PackedCollator
from finetune_trainer.dataset import PreparedDataset
from finetune_trainer.model.quantization import quantized_bytes_saved

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GIB: Final = 1 << 30
BYTES: Final = {"float32": 4, "bfloat16": 2}
"""Bytes per number."""
ADAPTER_BYTES: Final = 16
"""Bytes per trainable parameter: weight, gradient and two moments of AdamW, each in float32."""
CHECKPOINT_BYTES: Final = 12
"""Bytes per trainable parameter on disk: weight and two moments."""
RUNTIME_BYTES: Final = GIB
"""Python with torch and transformers, before any model: 0.8 GiB, rounded up."""
ACTIVATIONS_PER_TOKEN: Final = 16
"""Numbers of size `hidden_size` that a layer keeps per token for its backward pass."""
MLP_ACTIVATIONS_PER_TOKEN: Final = 4
"""Numbers of size `intermediate_size` that a layer keeps per token."""
DORA_ACTIVATIONS_PER_TOKEN: Final = 3
"""Numbers that DoRA keeps per token and output of a linear layer: the base's, the adapter's, and the scaled sum of both."""
LOGIT_BYTES: Final = 12
"""Bytes per logit: the output, its float32 copy and its gradient."""
PREFERENCE_LOGIT_BYTES: Final = 16
"""Bytes per logit of DPO, which copies the logits of learnt tokens out of the output."""
OVERESTIMATE: Final = 1.6
"""Largest measured ratio of estimate to use, for everything but weights."""


@dataclass(frozen=True)
class LargestPass:
    """Size of the forward pass that takes most memory: the longest rows in one micro-batch."""

    tokens: int
    """Tokens that go through the layers: with padding, or, packed, with shared prefixes counted once."""
    learnt: int
    """Tokens that logits are computed for."""


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
        """Bytes that only another model or rank lowers and that must stay resident; libraries can be paged in again."""
        return self.weights + self.adapter

    @property
    def lowest(self) -> int:
        """Peak in bytes if the estimate is too high by the largest ratio ever measured."""
        return self.least + int((self.total - self.least) / OVERESTIMATE)

    @property
    def total(self) -> int:
        """Expected peak in bytes."""
        return self.least + self.activations + self.logits + self.runtime

    def __str__(self) -> str:
        parts = ("weights", "adapter", "activations", "logits", "runtime")
        return f"{gib(self.total)} ({', '.join(f'{part} {gib(getattr(self, part))}' for part in parts)})"


def estimate_memory(
    config: TrainingConfig,
    model: "PreTrainedModel",
    trainable: int,
    dtype: str,
    largest: LargestPass,
    *,
    gradient_checkpointing: bool,
) -> MemoryEstimate:
    """Estimate the peak while the largest micro-batch is trained.

    DPO's reference pass is not counted: it runs before, and keeps only a few scores.
    """
    text = model.config.get_text_config()
    hidden = text.hidden_size
    wide = getattr(text, "intermediate_size", None) or 4 * hidden
    in_layer = ACTIVATIONS_PER_TOKEN * hidden + MLP_ACTIVATIONS_PER_TOKEN * wide
    dora = DORA_ACTIVATIONS_PER_TOKEN * (4 * hidden + 2 * wide) if config.lora.use_dora else 0
    in_layer += dora
    layers = text.num_hidden_layers
    # With recomputation every layer keeps its input, and one layer at a time its activations and their gradients. DoRA's
    # activations are counted for all layers, because the number of layers that keep them differed from run to run.
    per_token = layers * (hidden + dora) + 2 * in_layer if gradient_checkpointing else layers * in_layer
    per_logit = PREFERENCE_LOGIT_BYTES if config.dpo else LOGIT_BYTES
    return MemoryEstimate(
        weights=_weights(config, model, dtype),
        adapter=trainable * ADAPTER_BYTES,
        activations=largest.tokens * per_token * BYTES[dtype],
        logits=largest.learnt * text.vocab_size * per_logit,
        runtime=RUNTIME_BYTES,
    )


def _weights(config: TrainingConfig, model: "PreTrainedModel", dtype: str) -> int:
    """Count the bytes of all frozen parameters: as loaded, or, on the meta device, as they will be loaded."""
    if model.device.type != "meta":
        return sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    whole: int = sum(p.numel() for p in model.parameters()) * BYTES[dtype]
    return whole - quantized_bytes_saved(config.lora.quantization, model, BYTES[dtype])


def largest_pass(
    config: TrainingConfig, dataset: PreparedDataset, micro_batch_size: int, *, packed: bool, on_gpu: bool
) -> LargestPass:
    """Measure a micro-batch of the longest rows; the two rows of a preference pair stay together."""
    rows = dataset.training.rows
    answers = 2 if config.dpo else 1
    lengths = rows.lengths.reshape(-1, answers).sum(axis=1)
    longest = np.argsort(lengths, kind="stable")[-micro_batch_size:]
    group = [rows[int(index) * answers + k] for index in longest for k in range(answers)]
    learnt = sum(row.loss_tokens for row in group)
    if packed:
        collator = PackedCollator(GPU_MIN_SHARED_TOKENS if on_gpu else MIN_SHARED_TOKENS)
        return LargestPass(collator.count_tokens(group), learnt)
    return LargestPass(len(group) * max(len(row.input_ids) for row in group), learnt)


def estimate_disk(config: TrainingConfig, trainable: int, tokenizer_folder: Path, dataset: PreparedDataset) -> int:
    """Estimate the bytes on the output volume: adapter, checkpoints, and cached tokens for another attempt."""
    checkpoints = (config.checkpoint.keep + 1) * trainable * CHECKPOINT_BYTES
    tokenizer = sum(f.stat().st_size for f in tokenizer_folder.glob("tokenizer*"))
    tokens = dataset.training.tokens + (dataset.evaluation.tokens if dataset.evaluation else 0)
    return trainable * BYTES["float32"] + checkpoints + tokenizer + 5 * tokens


def gib(size: int) -> str:
    """Format bytes as GiB, or as MiB below a tenth of a GiB."""
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{size / (1 << 20):.1f} MiB"
