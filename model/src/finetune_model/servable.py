"""Rules by which an adapter is served: the only judge of `validate`, `adopt`, training and the server's loader.

`lora_arguments` reads the configuration that peft saved; `adapter_layout` builds the adapter on the base model without storage
(device meta) and returns what it consists of; `adapter_tensors` compares a file with that. What cannot be applied to the rows of
a batch, each with its own adapter, raises NotServableError before anything is trained or loaded.

torch and peft are imported where they are used, because the rules of a configuration need neither.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

ADAPTER_CONFIG_FILE: Final = "adapter_config.json"
"""Shape of an adapter (rank, alpha, modules), as peft names the file."""
ALL_LINEAR: Final = "all-linear"
"""Every linear layer except the head; peft's own keyword."""
PREFIX: Final = "base_model.model."
"""Prefix that peft puts before the base model's names."""
NAMED: Final = 3
"""Most names in a message; the others are counted."""

LORA_KEYS: Final = frozenset(
    {
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "exclude_modules",
        "fan_in_fan_out",
        "use_rslora",
        "use_dora",
        "lora_bias",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
    }
)
"""Keys of adapter_config.json that describe a plain LoRA adapter; passed to peft unchanged."""
IGNORED_KEYS: Final = frozenset(
    {
        "task_type",
        "peft_type",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "megatron_core",
        "qalora_group_size",
        "runtime_config",
    }
)
"""Keys of an adapter's origin, or without effect unless a refused key is set."""
CHECKED_KEYS: Final = frozenset({"bias", "init_lora_weights"})
"""Keys that must have a harmless value, and are then not passed on."""
HARMLESS_INITIALIZATIONS: Final = (True, False, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that do not change the base model. PiSSA, OLoRA, CorDA and LoftQ rewrite its weights: an adapter
trained with them would be wrong on the plain base model, and loading it would change the base model for all requests."""
REMEDIES: Final = {
    "target_parameters": "it tunes parameters of fused experts, which are not applied per request; tune attention layers, or merge it into its model",
    "trainable_token_indices": "train whole embeddings with modules_to_save instead, or merge it into its model",
    "ensure_weight_tying": "list both embeddings and head in modules_to_save instead",
}
"""Reason and remedy by key, for keys that training programs commonly set."""

_NAMES_KEYS = (
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
)
_MODULE_NAME = re.compile(r"^[A-Za-z0-9_.-]+$")
_SLOT = "adapter"


class NotServableError(ValueError):
    """An adapter that no server applies; the message gives the reason."""


class UnservableModulesError(NotServableError):
    """Modules that an adapter tunes, and that a server cannot tune per request."""

    def __init__(self, found: str, usable: Iterable[str]) -> None:
        super().__init__(found)
        self.usable = sorted(usable)
        """Last parts of the names of the layers that can be tuned and served."""


@dataclass(frozen=True)
class AdapterLayout:
    """Layout that peft creates for one adapter configuration on one base model."""

    tensors: dict[str, tuple[int, ...]]
    """Shapes by the names that peft saves."""
    scalings: dict[str, float]
    """By path of each module that gets low-rank matrices."""
    idle: frozenset[str] = frozenset()
    """Paths among them that a text does not pass (a vision tower, or weights read without calling their layer)."""

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(math.prod(shape) for shape in self.tensors.values())


def lora_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return LoraConfig's arguments from adapter_config.json. Raises NotServableError for anything but plain LoRA.

    peft acts on this file: it imports modules named there (`auto_mapping`, `megatron_core`) and rewrites the base model
    (`layer_replication`, `bias`, some `init_lora_weights`), and each release adds such keys. So only listed keys are passed
    on, and any other key must be unset.
    """
    if config.get("peft_type") != "LORA":
        raise NotServableError(
            f"{ADAPTER_CONFIG_FILE} has peft_type {config.get('peft_type')!r}; only LORA is supported"
        )
    if config.get("bias", "none") != "none":
        raise NotServableError(
            f"{ADAPTER_CONFIG_FILE} has bias {config['bias']!r}, which would change the base model's own biases; train with bias none"
        )
    if config.get("init_lora_weights", True) not in HARMLESS_INITIALIZATIONS:
        raise NotServableError(
            f"{ADAPTER_CONFIG_FILE} has init_lora_weights {config['init_lora_weights']!r}, which would change the base model's "
            "weights; convert it to plain LoRA when saving"
        )
    _check_names(config)
    refused = sorted(k for k, v in config.items() if v and k not in LORA_KEYS | IGNORED_KEYS | CHECKED_KEYS)
    if refused:
        remedies = [f"{key}: {REMEDIES[key]}" for key in refused if key in REMEDIES]
        raise NotServableError(
            "; ".join([f"{ADAPTER_CONFIG_FILE} sets {', '.join(refused)}", "only plain LoRA is supported", *remedies])
        )
    return {key: config[key] for key in LORA_KEYS if config.get(key) is not None}


def adapter_layout(lora: Mapping[str, Any], base_config: Any) -> AdapterLayout:
    """Return names, shapes and scalings of the tensors that peft creates for `lora` (LoraConfig's arguments) on a base model.

    `base_config`: transformers' configuration. Raises NotServableError if peft refuses the arguments, and
    UnservableModulesError if a server cannot tune a selected module.
    """
    built = _build(lora, base_config)
    shapes = {name: tuple(tensor.shape) for name, tensor in built.state.items()}
    scalings = {path: float(layer.scaling[_SLOT]) for path, layer in built.layers.items()}
    layout = AdapterLayout(shapes, scalings, built.idle & scalings.keys())
    _check_tuned(layout, built.own, built.usable)
    # For models with experts peft rewrites the configuration, and saves what it wrote.
    lora_arguments(built.saved)
    return layout


def without_patterns(config: Mapping[str, Any], base_config: Any) -> dict[str, Any]:
    """Return adapter_config.json with every module, rank and alpha by the module's path instead of by regular expressions.

    Some training programs save such expressions. peft resolves them here, once and by hand; a server never runs one. Raises
    NotServableError if peft refuses the arguments.
    """
    built = _build({key: config[key] for key in LORA_KEYS if config.get(key) is not None}, base_config)
    ranks = {path: int(layer.r[_SLOT]) for path, layer in built.layers.items()}
    alphas = {path: layer.lora_alpha[_SLOT] for path, layer in built.layers.items()}
    cleared = dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
    return {
        **config,
        **cleared,
        "target_modules": sorted(built.layers),
        "rank_pattern": {path: rank for path, rank in ranks.items() if rank != config.get("r")},
        "alpha_pattern": {path: alpha for path, alpha in alphas.items() if alpha != config.get("lora_alpha")},
    }


def usable_names(model: Any) -> set[str]:
    """Return the last parts of the names of all layers that can be tuned and served, except embeddings and head."""
    import torch

    head = model.get_output_embeddings()
    return {
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if module is not head and not isinstance(module, torch.nn.Embedding) and obstacle(module) is None
    }


def obstacle(module: Any) -> str | None:
    """Return why a module's output plus a low-rank product is not what peft computes; None if it is.

    Every row of the module's input must be one token, so that each token can have the adapter of its own request. `module` may
    be on any device.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    kind = type(module).__name__
    if isinstance(module, torch.nn.Embedding):
        # peft applies the same factor to the low-rank product.
        is_plain = type(module) is torch.nn.Embedding or hasattr(module, "embed_scale")
        return None if is_plain else f"{kind} does more than look up rows"
    if type(module) is torch.nn.Linear or isinstance(module, Conv1D):
        return None
    if not isinstance(module, torch.nn.Linear):
        return f"{kind} is neither a linear layer nor an embedding"
    return _oddity_of_linear(module)


def listed(names: Iterable[str]) -> str:
    """Return the first names in alphabetical order, and the number of the others."""
    every = sorted(names)
    shown = ", ".join(every[:NAMED])
    return shown if len(every) <= NAMED else f"{shown} and {len(every) - NAMED} more"


@dataclass(frozen=True)
class _Built:
    """A base model on the device meta, with the adapter that peft put on it."""

    own: dict[str, Any]
    """The base model's modules by path."""
    usable: set[str]
    idle: frozenset[str]
    layers: dict[str, Any]
    """peft's layers by path of the module that each wraps."""
    state: dict[str, Any]
    """Tensors by the names that peft saves."""
    saved: dict[str, Any]
    """The configuration that peft saves."""


def _build(lora: Mapping[str, Any], base_config: Any) -> _Built:
    """Build an adapter without storage. Raises NotServableError if peft refuses the arguments."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            empty: Any = AutoModelForCausalLM.from_config(base_config)
        own, usable, idle = dict(empty.named_modules()), usable_names(empty), _idle_layers(empty)
        config = LoraConfig(task_type="CAUSAL_LM", inference_mode=True, **lora)
        wrapped = PeftModel(empty, config, _SLOT, low_cpu_mem_usage=True)
        layers = {
            path.removeprefix(PREFIX): module
            for path, module in wrapped.named_modules()
            if isinstance(module, LoraLayer)
        }
        # Not "auto", which would request from the model hub whether the vocabulary was extended.
        state = get_peft_model_state_dict(wrapped, adapter_name=_SLOT, save_embedding_layers=False)
        return _Built(own, usable, idle, layers, state, _as_saved(wrapped.peft_config[_SLOT]))
    except Exception as error:
        # For a configuration that peft cannot apply it raises anything from KeyError to ValueError.
        raise NotServableError(f"peft cannot apply it to this base model: {error}") from None


def _check_tuned(layout: AdapterLayout, own: Mapping[str, Any], usable: Iterable[str]) -> None:
    """Raise UnservableModulesError unless every tuned or replaced module of the base model (`own`, by path) can be served."""
    import torch

    # Of a fused group of experts peft wraps one parameter after the other, each time with a name of its own.
    reasons = {path.removesuffix(".base_layer"): _obstacle_at(path, own) for path in layout.scalings}
    if odd := {path: reason for path, reason in reasons.items() if reason}:
        kinds = "; ".join(sorted({reason for reason in odd.values() if reason}))
        raise UnservableModulesError(
            f"the adapter tunes {listed(odd)}; only linear layers and embeddings are supported ({kinds})", usable
        )
    replaced = {name.removeprefix(PREFIX).rpartition(".")[0] for name in layout.tensors if ".lora_" not in name}
    kinds_of_replaced = (torch.nn.Linear, torch.nn.Embedding)
    if other := [path for path in replaced if type(own.get(path)) not in kinds_of_replaced]:
        raise UnservableModulesError(
            f"the adapter replaces {listed(other)} (modules_to_save); only linear layers and embeddings can be replaced",
            usable,
        )


def _obstacle_at(path: str, own: Mapping[str, Any]) -> str | None:
    module = own.get(path)
    if module is None:
        container = own.get(path.removesuffix(".base_layer"))
        return (
            f"{type(container).__name__} has parameters of its own"
            if container is not None
            else "it has no such module"
        )
    return obstacle(module)


def _oddity_of_linear(module: Any) -> str | None:
    """Return how a subclass of Linear differs from it in what it takes and returns, by a call on the device meta."""
    import copy

    import torch

    kind = type(module).__name__
    try:
        inputs = torch.empty(2, 3, module.in_features, device="meta", dtype=module.weight.dtype)
        output = copy.deepcopy(module).to("meta")(inputs)
    except Exception as error:
        return f"{kind} cannot be called like a linear layer: {type(error).__name__}"
    if not isinstance(output, torch.Tensor) or tuple(output.shape) != (2, 3, module.out_features):
        return f"{kind} does not return one output per token"
    return None


def _idle_layers(model: Any) -> frozenset[str]:
    """Return the paths of linear layers that a text does not pass; none if the model cannot run on the device meta."""
    import torch

    called: set[str] = set()
    layers = {path: module for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    hooks = [
        module.register_forward_pre_hook(lambda _module, _inputs, path=path: called.add(path))
        for path, module in layers.items()
    ]
    try:
        with torch.inference_mode():
            model(input_ids=torch.zeros(1, 4, dtype=torch.long, device="meta"), use_cache=False)
    except Exception:  # a router reads the values of its scores, which do not exist on this device
        return frozenset()
    finally:
        for hook in hooks:
            hook.remove()
    return frozenset(layers) - called


def _as_saved(config: Any) -> dict[str, Any]:
    """Return peft's configuration as JSON holds it."""
    saved = {key: list(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    return {**saved, "peft_type": getattr(config.peft_type, "value", config.peft_type)}


def _check_names(config: Mapping[str, Any]) -> None:
    """Accept plain module names only, because peft matches strings as regular expressions, which can run for hours."""
    for key in _NAMES_KEYS:
        value = config.get(key) or []
        names = [value] if isinstance(value, str) else list(value) if isinstance(value, list | dict) else [None]
        for name in names:
            if not isinstance(name, str) or (name != ALL_LINEAR and not _MODULE_NAME.match(name)):
                raise NotServableError(
                    f"{ADAPTER_CONFIG_FILE} has {key} {name!r}; use plain module names, for example q_proj"
                )
