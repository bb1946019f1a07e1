"""The LoRA configuration, checked against the model and against the server's rules before anything is trained."""

from typing import Any

from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import Lora
from finetune_model.servable import (
    ALL_LINEAR,
    AdapterLayout,
    NotServableError,
    UnservableModulesError,
    adapter_layout,
    lora_arguments,
    usable_names,
)
from finetune_trainer.errors import TrainingError, one_line


def build_lora_config(lora: Lora, model: Any, *, base_name: str, base_revision: str) -> Any:
    """Build peft's LoraConfig. Raises TrainingError as `plan_adapter` does."""
    from peft import LoraConfig, TaskType

    plan_adapter(lora, model)
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base_name,
        revision=base_revision,
        **_arguments(lora),
    )


def plan_adapter(lora: Lora, model: Any) -> AdapterLayout:
    """Return names and shapes of the tensors that training will make, if a server can serve them.

    The adapter is built on a model without storage, from the configuration of `model`. Raises TrainingError
    (TargetModulesNotFound, SpecInvalid) that lists the modules to name instead.
    """
    _check_names(lora.target_modules, model)
    try:
        return adapter_layout(lora_arguments({**_arguments(lora), "peft_type": "LORA"}), model.config)
    except NotServableError as error:
        raise TrainingError(
            Reason.SPEC_INVALID,
            f"method.lora.targetModules is {', '.join(lora.target_modules)}, which no server could serve: "
            f"{one_line(error)}. Name some of {', '.join(_servable_names(lora, model, error))} instead",
        ) from None


def available_modules(model: Any) -> list[str]:
    """Return the last name parts of all modules that can be tuned and served, for example q_proj."""
    return sorted(usable_names(model) | {path.rsplit(".", 1)[-1] for path in _embeddings_and_head(model)})


def _arguments(lora: Lora) -> dict[str, Any]:
    targets: str | list[str] = ALL_LINEAR if lora.target_modules == [ALL_LINEAR] else sorted(lora.target_modules)
    return {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.use_rslora,
        "use_dora": lora.use_dora,
        "target_modules": targets,
    }


def _check_names(targets: list[str], model: Any) -> None:
    """Raise TrainingError (TargetModulesNotFound) for a name that no module or parameter of the model has."""
    if targets == [ALL_LINEAR]:
        return
    names = [name for name, _ in model.named_modules()] + [name for name, _ in model.named_parameters()]
    unknown = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in names)]
    if unknown:
        hint = f" ({ALL_LINEAR} must stand alone)" if ALL_LINEAR in unknown else ""
        raise TrainingError(
            Reason.TARGET_MODULES_NOT_FOUND,
            f"method.lora.targetModules names {', '.join(unknown)}, which this model does not have{hint}; it has "
            f"{', '.join(available_modules(model))}, or use {ALL_LINEAR}",
        )


def _servable_names(lora: Lora, model: Any, error: NotServableError) -> list[str]:
    """Return the names that pass every rule, each tried alone, because peft refuses some modules by architecture."""
    names = error.usable if isinstance(error, UnservableModulesError) else sorted(usable_names(model))
    return [name for name in names if _is_servable(lora.model_copy(update={"target_modules": [name]}), model)]


def _is_servable(lora: Lora, model: Any) -> bool:
    try:
        layout = adapter_layout(_arguments(lora), model.config)
    except NotServableError:
        return False
    return len(layout.idle) < len(layout.scalings)


def _embeddings_and_head(model: Any) -> list[str]:
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return [path for path, module in model.named_modules() if any(module is each for each in modules)]
