"""Continuing from an earlier adapter: compatibility checks, and the weights to start from.

Only the weights are taken over; optimizer, schedule and order of rows start anew. Base model and LoRA settings must equal
those of the earlier run, or the weights would mean something else. All of that is read from the adapter's folder, without torch.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safetensors import SafetensorError, safe_open

from finetune_api.artifacts import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, ArtifactError, Manifest, read_verified
from finetune_api.reasons import Reason
from finetune_api.training import InitialAdapterConfig, TrainingConfig
from finetune_api.v1alpha1 import Lora
from finetune_trainer.errors import TrainingError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

LORA_TENSOR: Final = ".lora_"
"""Part of the name of every LoRA tensor; peft also saves unchanged embeddings beside them."""
MUST_MATCH_FIELDS: Final = {"rank": "r", "alpha": "lora_alpha", "useRslora": "use_rslora", "useDora": "use_dora"}
"""Fields of method.lora that scale or shape the update, and peft's names for them."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each tensor of an adapter, by peft's names."""


def continue_from_earlier(config: TrainingConfig, model: Any, base_revision: str) -> TrainingConfig:
    """Load the weights of the initial adapter, if the configuration names one, into a peft model.

    Returns the configuration with the digest of the weights used, even if it did not request one.
    """
    if config.initial_adapter is None:
        return config
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    tensors = get_peft_model_state_dict(model)
    expected = {name: tuple(tensor.shape) for name, tensor in tensors.items() if LORA_TENSOR in name}
    adapter = read_initial_adapter(config.initial_adapter, config.lora, base_revision, expected)
    set_peft_model_state_dict(model, load_tensors(adapter))
    logger.info("training continues from=%s digest=%s", shown(adapter), adapter.digest)
    return config.model_copy(update={"initial_adapter": adapter})


def load_tensors(adapter: InitialAdapterConfig) -> "dict[str, torch.Tensor]":
    """Load the LoRA tensors of an adapter by peft's names."""
    from safetensors.torch import load_file

    tensors = load_file(Path(adapter.path) / ADAPTER_WEIGHTS_FILE)
    return {name: tensor for name, tensor in tensors.items() if LORA_TENSOR in name}


def read_initial_adapter(
    wanted: InitialAdapterConfig, lora: Lora, base_revision: str, expected: Shapes
) -> InitialAdapterConfig:
    """Check the adapter to continue from, and return it with its digest.

    `expected` are the tensors that the run would train. Raises TrainingError (AdapterNotFound, AdapterIncompatible, SpecInvalid).
    """
    name, folder = shown(wanted), Path(wanted.path)
    try:
        manifest, digest = read_verified(folder)
    except ArtifactError as error:
        raise TrainingError(
            Reason.ADAPTER_NOT_FOUND, f"continueFrom: there is no whole adapter at {name}: {error}"
        ) from None
    if wanted.digest not in (None, digest):
        problem = f"has digest {digest}, expected {wanted.digest}: it was replaced. Start a new job to continue from it"
        raise _incompatible(name, problem)
    _check_origin(manifest, name, base_revision)
    try:
        settings = json.loads((folder / ADAPTER_CONFIG_FILE).read_bytes())
        found = _shapes(folder / ADAPTER_WEIGHTS_FILE)
        _check_settings(settings, lora, name)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _incompatible(
            name, f"has no {ADAPTER_CONFIG_FILE} and {ADAPTER_WEIGHTS_FILE} of a LoRA: {error!r}"
        ) from None
    _check_tensors(found, expected, name)
    return wanted.model_copy(update={"digest": digest})


def shown(adapter: InitialAdapterConfig) -> str:
    """Return the name by which people know an adapter: its source, or its path."""
    return adapter.source or adapter.path


def _check_origin(manifest: Manifest, name: str, base_revision: str) -> None:
    if manifest.kind != "adapter":
        raise _incompatible(name, f"is a {manifest.kind}; name the folder of an adapter")
    if manifest.base_revision != base_revision:
        raise _incompatible(
            name,
            f"is for base model {manifest.base_model} of revision {manifest.base_revision}, model.source has revision "
            f"{base_revision}. Name the model that the adapter was trained on",
        )


def _check_settings(settings: dict[str, Any], lora: Lora, name: str) -> None:
    for field, key in MUST_MATCH_FIELDS.items():
        found, asked = settings[key], lora.to_dict()[field]
        if found != asked:
            raise _contradiction(field, name, json.dumps(found), json.dumps(asked))


def _check_tensors(found: Shapes, expected: Shapes, name: str) -> None:
    if differing := sorted(found.keys() ^ expected.keys()):
        where = differing[0].split(LORA_TENSOR)[0].removeprefix("base_model.model.")
        raise _contradiction("targetModules", name, _modules(found), f"{_modules(expected)} (they differ at {where})")
    for tensor, shape in expected.items():
        if found[tensor] != shape:
            problem = f"has {tensor} of shape {list(found[tensor])}, expected is {list(shape)}"
            raise _incompatible(name, f"{problem}. Name the model that the adapter was trained on")


def _modules(shapes: Shapes) -> str:
    """Return the modules that have tensors, as targetModules names them."""
    return ", ".join(sorted({tensor.split(LORA_TENSOR)[0].rsplit(".", 1)[-1] for tensor in shapes}))


def _shapes(file: Path) -> Shapes:
    with safe_open(file, framework="np") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys() if LORA_TENSOR in name}  # noqa: SIM118


def _contradiction(field: str, name: str, found: str, asked: str) -> TrainingError:
    return TrainingError(
        Reason.SPEC_INVALID,
        f"method.lora.{field}: the adapter at {name} has {found}, this run requests {asked}. A run keeps the LoRA settings of "
        "the adapter it starts from; set the field to the adapter's value",
    )


def _incompatible(name: str, problem: str) -> TrainingError:
    return TrainingError(Reason.ADAPTER_INCOMPATIBLE, f"continueFrom: the adapter at {name} {problem}")
