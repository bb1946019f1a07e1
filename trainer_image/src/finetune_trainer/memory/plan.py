"""Memory plan of a training: whether activations are kept or recomputed, given the memory available."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_api.reasons import Reason
from finetune_api.training import TrainingConfig
from finetune_model.process import memory_capacity
from finetune_trainer.dataset import PreparedDataset
from finetune_trainer.errors import TrainingError
from finetune_trainer.memory.estimate import (
    LargestPass,
    MemoryEstimate,
    estimate_memory,
    gib,
    largest_pass,
)
from finetune_trainer.model.loaded import BaseModel
from finetune_trainer.runtime import distributed

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryPlan:
    """Expected memory of a training, and its choice between keeping and recomputing activations."""

    estimate: MemoryEstimate
    limit: int | None
    """Bytes available; None if unknown."""
    gradient_checkpointing: bool
    """True if activations are recomputed."""
    explanation: str
    """Reason for that choice, with the figures that decided it."""


def plan_for_device(
    config: TrainingConfig,
    model: "PeftModel",
    base: BaseModel,
    dataset: PreparedDataset,
    micro_batch_size: int,
    *,
    packed: bool,
) -> MemoryPlan:
    """Plan memory for the device of this process, and log the plan."""
    import torch

    largest = largest_pass(config, dataset, micro_batch_size, packed=packed, on_gpu=base.on_gpu)
    trainable, _ = model.get_nb_trainable_parameters()
    limit = torch.cuda.mem_get_info()[1] if base.on_gpu else memory_capacity() // distributed.world_size()
    plan = plan_memory(config, base.model, trainable, base.dtype, largest, limit)
    logger.info("memory planned gradient_checkpointing=%s why=%s", plan.gradient_checkpointing, plan.explanation)
    return plan


def plan_memory(
    config: TrainingConfig,
    model: "PreTrainedModel",
    trainable: int,
    dtype: str,
    largest: LargestPass,
    limit: int | None,
) -> MemoryPlan:
    """Decide about gradient checkpointing; `model`, with or without its adapter, may be on the meta device.

    Raises TrainingError (SpecInvalid) if it is enabled for a model that does not support it.
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
        return MemoryPlan(kept, limit, False, "decided where training runs, once its memory is known")
    figures = f"needs about {gib(kept.total)} without, {gib(recomputed.total)} with it; {gib(limit)} available"
    # When in doubt, keep activations: recomputing slows down every step, and a run that does not fit loses one step only.
    surely_too_large = kept.lowest > limit
    return MemoryPlan(recomputed if surely_too_large else kept, limit, surely_too_large, figures)
