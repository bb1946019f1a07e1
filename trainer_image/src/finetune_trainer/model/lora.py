"""The LoRA configuration, checked against the model before anything is trained."""

import math
from typing import Any, Final

from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import Lora
from finetune_trainer.errors import TrainingError

ALL_LINEAR: Final = "all-linear"
"""Every linear layer except the head; peft's own keyword."""
ADAPTABLE: Final = ("Linear", "Linear4bit", "Conv1D", "Embedding")
"""Module classes that peft can adapt."""


def build_lora_config(lora: Lora, model: Any, *, base_name: str, base_revision: str) -> Any:
    """Build peft's LoraConfig. Raises TrainingError (TargetModulesNotFound) that lists what the model has."""
    from peft import LoraConfig, TaskType

    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base_name,
        revision=base_revision,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        target_modules=_checked_targets(lora.target_modules, model),
    )


def count_trainable(lora: Lora, model: Any) -> int:
    """Count the parameters of the adapter. Raises TrainingError (TargetModulesNotFound) that lists what the model has."""
    return sum(math.prod(shape) for shape in adapter_shapes(lora, model).values())


def adapter_shapes(lora: Lora, model: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of each adapter tensor by peft's name for it, without importing peft, which takes seconds.

    Raises TrainingError (TargetModulesNotFound) that lists what the model has.
    """
    targets = _checked_targets(lora.target_modules, model)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in _adaptable(model):
        if _is_target(name, module, targets, model):
            shapes |= {f"base_model.model.{name}.{part}": shape for part, shape in _shapes_beside(module, lora).items()}
    return shapes


def available_modules(model: Any) -> list[str]:
    """Return the last name parts of all adaptable modules, for example q_proj."""
    return sorted({name.rsplit(".", 1)[-1] for name, _ in _adaptable(model)})


def _checked_targets(targets: list[str], model: Any) -> str | list[str]:
    if targets == [ALL_LINEAR]:
        return ALL_LINEAR
    names = [name for name, _ in _adaptable(model)]
    unknown = [t for t in targets if not any(_is_named(name, t) for name in names)]
    if unknown:
        hint = f" ({ALL_LINEAR} must stand alone)" if ALL_LINEAR in unknown else ""
        raise TrainingError(
            Reason.TARGET_MODULES_NOT_FOUND,
            f"method.lora.targetModules names {', '.join(unknown)}, which this model does not have{hint}; it has "
            f"{', '.join(available_modules(model))}, or use {ALL_LINEAR}",
        )
    return sorted(targets)


def _is_target(name: str, module: Any, targets: str | list[str], model: Any) -> bool:
    if targets == ALL_LINEAR:
        return type(module).__name__ != "Embedding" and module is not model.get_output_embeddings()
    return any(_is_named(name, target) for target in targets)


def _is_named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _shapes_beside(module: Any, lora: Lora) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the two matrices of `rank` rows or columns; DoRA adds a magnitude per output."""
    first, second = (int(size) for size in module.weight.shape)
    kind = type(module).__name__
    inputs, outputs = (second, first) if kind == "Linear" else (first, second)
    a, b = ("lora_embedding_A", "lora_embedding_B") if kind == "Embedding" else ("lora_A.weight", "lora_B.weight")
    magnitude = {"lora_magnitude_vector": (outputs,)} if lora.use_dora else {}
    return {a: (lora.rank, inputs), b: (outputs, lora.rank), **magnitude}


def _adaptable(model: Any) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if type(module).__name__ in ADAPTABLE]
