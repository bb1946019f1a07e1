"""The LoRA configuration, checked against the model before anything is trained."""

from typing import Any, Final

from finetune_api.reasons import Reason
from finetune_api.v1alpha1.finetune_job import Lora
from finetune_trainer.errors import TrainingError

ALL_LINEAR: Final = "all-linear"
"""Every linear layer but the head; peft's own word."""
ADAPTABLE: Final = ("Linear", "Conv1D", "Embedding")
"""Classes of modules that peft can put a LoRA beside."""


def build_lora_config(lora: Lora, model: Any, *, base_name: str, base_revision: str) -> Any:
    """Peft's LoraConfig. Raises TrainingError (TargetModulesNotFound) that lists what the model has."""
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
    """Parameters of the adapter, as peft would make it, without peft, which takes seconds to import.

    Raises TrainingError (TargetModulesNotFound) that lists what the model has.
    """
    targets = _checked_targets(lora.target_modules, model)
    return sum(
        _adapter_size(module, lora) for name, module in _adaptable(model) if _is_target(name, module, targets, model)
    )


def available_modules(model: Any) -> list[str]:
    """Last name parts of the modules that can get an adapter, for example q_proj."""
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


def _adapter_size(module: Any, lora: Lora) -> int:
    """Two matrices of `rank` rows or columns; DoRA adds a magnitude for each output."""
    first, second = (int(size) for size in module.weight.shape)
    outputs = first if type(module).__name__ == "Linear" else second
    return lora.rank * (first + second) + (outputs if lora.use_dora else 0)


def _adaptable(model: Any) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if type(module).__name__ in ADAPTABLE]
