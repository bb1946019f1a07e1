"""How much memory and disk a training will take, from the shape of its model and rows."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from finetune_api.reasons import Reason
from finetune_api.training import TrainingConfig
from finetune_model.process import memory_limit
from finetune_trainer.batches.packing import GPU_MIN_SHARED_TOKENS, MIN_SHARED_TOKENS, PackedCollator
from finetune_trainer.dataset import PreparedDataset
from finetune_trainer.errors import TrainingError
from finetune_trainer.model.quantization import quantized_bytes_saved

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
DORA_ACTIVATIONS_PER_TOKEN: Final = 3
"""Numbers that DoRA keeps per token and output of a linear layer: the base's, the adapter's, and the scaled sum of both."""
LOGIT_BYTES: Final = 12
"""Per logit: the output, its float32 copy and its gradient."""
PREFERENCE_LOGIT_BYTES: Final = 16
"""Per logit of DPO, which picks those of learnt tokens out of the output and so has them once more."""
OVERESTIMATE: Final = 1.6
"""How many times what it takes the estimate of all that is no weight may be."""


@dataclass(frozen=True)
class LargestPass:
    """The pass that takes most memory: the longest rows in one."""

    tokens: int
    """Tokens that go through the layers: padding among them, and what several rows begin with once if it is shared."""
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
        """What no setting but another model or rank lowers, and no system does without: libraries can be paged in again."""
        return self.weights + self.adapter

    @property
    def lowest(self) -> int:
        """The peak if it is overestimated by as much as was ever measured."""
        return self.least + int((self.total - self.least) / OVERESTIMATE)

    @property
    def total(self) -> int:
        """The expected peak."""
        return self.least + self.activations + self.logits + self.runtime

    def __str__(self) -> str:
        parts = ("weights", "adapter", "activations", "logits", "runtime")
        return f"{gib(self.total)} ({', '.join(f'{part} {gib(getattr(self, part))}' for part in parts)})"


@dataclass(frozen=True)
class MemoryPlan:
    """What a training is expected to take, and whether it recomputes activations to do so."""

    estimate: MemoryEstimate
    limit: int | None
    """Bytes that there are, if it is known."""
    gradient_checkpointing: bool
    explanation: str
    """Why it does or does not, with the figures that decided."""


def plan_memory(
    config: TrainingConfig, model: Any, trainable: int, dtype: str, largest: LargestPass, limit: int | None
) -> MemoryPlan:
    """Decide about gradient checkpointing; `model`, with or without its adapter, may be on the meta device.

    Raises TrainingError (SpecInvalid) if it is enabled for a model that cannot do it.
    """
    setting = config.hyperparameters.gradient_checkpointing
    kept, recomputed = (
        estimate_memory(config, model, trainable, dtype, largest, gradient_checkpointing=value)
        for value in (False, True)
    )
    if not model.supports_gradient_checkpointing:
        if setting == "enabled":
            raise TrainingError(
                Reason.SPEC_INVALID,
                f"hyperparameters.gradientCheckpointing is enabled, which {type(model).__name__} does not support; use auto",
            )
        return MemoryPlan(kept, limit, False, f"{type(model).__name__} does not support it")
    if setting != "auto":
        return MemoryPlan(recomputed if setting == "enabled" else kept, limit, setting == "enabled", "as configured")
    if limit is None:
        return MemoryPlan(kept, limit, False, "how much memory there is will be known where training runs")
    found = f"without it about {gib(kept.total)}, with it about {gib(recomputed.total)}, of {gib(limit)} that there are"
    # Recomputing costs a run that fits time, and one that does not fit finds out in a step: the benefit of doubt is time's.
    beyond_doubt = kept.lowest > limit
    return MemoryPlan(recomputed if beyond_doubt else kept, limit, beyond_doubt, found)


def estimate_memory(
    config: TrainingConfig,
    model: Any,
    trainable: int,
    dtype: str,
    largest: LargestPass,
    *,
    gradient_checkpointing: bool,
) -> MemoryEstimate:
    """Peak while the largest pass is trained. DPO's reference pass keeps nothing but its few scores, and comes before."""
    text = model.config.get_text_config()
    hidden = text.hidden_size
    wide = getattr(text, "intermediate_size", None) or 4 * hidden
    in_layer = ACTIVATIONS_PER_TOKEN * hidden + MLP_ACTIVATIONS_PER_TOKEN * wide
    dora = DORA_ACTIVATIONS_PER_TOKEN * (4 * hidden + 2 * wide) if config.lora.use_dora else 0
    in_layer += dora
    layers = text.num_hidden_layers
    # Recomputed, every layer keeps its input, and one at a time has its activations and their gradients. DoRA's
    # are counted for all layers: how many of them stay differed from run to run.
    per_token = layers * (hidden + dora) + 2 * in_layer if gradient_checkpointing else layers * in_layer
    per_logit = PREFERENCE_LOGIT_BYTES if config.dpo else LOGIT_BYTES
    return MemoryEstimate(
        weights=_weights(config, model, dtype),
        adapter=trainable * ADAPTER_BYTES,
        activations=largest.tokens * per_token * BYTES[dtype],
        logits=largest.learnt * text.vocab_size * per_logit,
        runtime=RUNTIME_BYTES,
    )


def _weights(config: TrainingConfig, model: Any, dtype: str) -> int:
    """Bytes of all frozen parameters: as they are if the model is loaded, else as they will be."""
    if model.device.type != "meta":
        return sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    whole: int = sum(p.numel() for p in model.parameters()) * BYTES[dtype]
    return whole - quantized_bytes_saved(config.lora.quantization, model, BYTES[dtype])


def largest_pass(
    config: TrainingConfig, dataset: PreparedDataset, micro_batch_size: int, *, packed: bool, on_gpu: bool
) -> LargestPass:
    """The longest rows of the dataset together; the two rows of a preference pair stay together."""
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
    """Bytes on the output volume: adapter, checkpoints, and tokens for another attempt."""
    checkpoints = (config.checkpoint.keep + 1) * trainable * CHECKPOINT_BYTES
    tokenizer = sum(f.stat().st_size for f in tokenizer_folder.glob("tokenizer*"))
    tokens = dataset.training.tokens + (dataset.evaluation.tokens if dataset.evaluation else 0)
    return trainable * BYTES["float32"] + checkpoints + tokenizer + 5 * tokens


def available_memory() -> int:
    """Bytes that this process may use: the machine's memory, or its container's limit."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(machine, memory_limit() or machine)


def gib(size: int) -> str:
    """Bytes as people say them."""
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{size / (1 << 20):.1f} MiB"
