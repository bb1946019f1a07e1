"""Adapters inside the model: does an adapter fit, and loading it beside the others. The only module that knows peft.

peft loads what it can: keys it does not recognise are dropped, missing ones keep their initial zeros, and the result is an
adapter that "works" and does nothing. So names and shapes are compared first, against what peft itself would make for
this base model. That comparison runs on a copy of the model without storage, so a misfit never touches the real one.
"""

import json
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from finetune_inference.adapters import AdapterRefusedError, VerifiedAdapter
from finetune_inference.engine import ModelLoadError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What adapters are stored as; peft would take a tensor of any other type, and fail half-way or at the first request."""
NAMED = 3
"""Tensors named in a message; the rest is counted."""


class LoraModel:
    """A base model and the adapters on it, of which at most one is active at a time."""

    def __init__(self, base: Any) -> None:
        self.model = base
        """The callable model: the base itself, or peft's wrapper once there is an adapter."""
        self._base = base
        self._slots: dict[str, str] = {}
        self._active: str | None = None
        self._expected: dict[str, dict[str, tuple[int, ...]]] = {}
        """Shapes by configuration: adapters of one kind are many, and finding out takes as long as loading."""

    def load(self, adapter: VerifiedAdapter) -> None:
        """Load one adapter. Raises AdapterRefusedError, and then the model is as it was; else ModelLoadError."""
        tensors = _read_tensors(adapter)
        _check_fit(adapter, self._shapes_for(adapter), tensors)
        # A name of our own: peft takes it for a key of an nn.ModuleDict and cuts it out of parameter names by text.
        slot = f"slot{len(self._slots)}"
        try:
            self._insert(slot, adapter, tensors)
        except Exception as error:
            # Half an adapter may be on the model, and would be in everybody's answers.
            raise ModelLoadError(f"adapter {adapter.name} could not be put on the base model: {error}") from error
        self._slots[adapter.name] = slot
        self.model.base_model.disable_adapter_layers()
        self._active = None

    def activate(self, name: str | None) -> None:
        """Make the model answer as this adapter, or as the base model (None)."""
        if name == self._active:
            return
        if name is None:
            self.model.base_model.disable_adapter_layers()
        else:
            if self._active is None:
                self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(self._slots[name], inference_mode=True)
        self._active = name

    def _shapes_for(self, adapter: VerifiedAdapter) -> dict[str, tuple[int, ...]]:
        key = json.dumps(adapter.lora, sort_keys=True)
        if key not in self._expected:
            self._expected[key] = _expected_shapes(adapter, self._base.config)
        return self._expected[key]

    def _insert(self, slot: str, adapter: VerifiedAdapter, tensors: dict[str, torch.Tensor]) -> None:
        from peft import PeftModel, set_peft_model_state_dict

        if self.model is self._base:
            # PeftModel changes the base in place; an adapter that fits its empty copy fits here as well.
            self.model = PeftModel(self._base, _lora_config(adapter), slot, low_cpu_mem_usage=True)
        else:
            self.model.add_adapter(slot, _lora_config(adapter), low_cpu_mem_usage=True)
        set_peft_model_state_dict(self.model, tensors, adapter_name=slot, low_cpu_mem_usage=True)
        self.model.eval()


def _lora_config(adapter: VerifiedAdapter) -> Any:
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", inference_mode=True, **adapter.lora)


def _read_tensors(adapter: VerifiedAdapter) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load_file(adapter.weights)
    except Exception as error:
        # safetensors raises types of its own, without a common base; whatever it is, the file is no use.
        raise AdapterRefusedError(f"{adapter.weights} is not a safetensors file: {error}") from None
    broken = [name for name, tensor in tensors.items() if tensor.dtype not in DTYPES or not tensor.isfinite().all()]
    if broken:
        raise AdapterRefusedError(f"{adapter.weights} has values that are not finite floats in {_listed(broken)}")
    return tensors


def _check_fit(
    adapter: VerifiedAdapter, expected: dict[str, tuple[int, ...]], tensors: dict[str, torch.Tensor]
) -> None:
    """Raise AdapterRefusedError unless the file has exactly the expected tensors, by name and shape."""
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    if missing or unexpected:
        parts = [f"lacks {_listed(missing)}"] if missing else []
        parts += [f"has the unexpected {_listed(unexpected)}"] if unexpected else []
        raise AdapterRefusedError(
            f"{adapter.weights} {' and '.join(parts)}; it was made for another model or its tensors were renamed"
        )
    for name, shape in expected.items():
        if (found := tuple(tensors[name].shape)) != shape:
            raise AdapterRefusedError(
                f"{adapter.weights} has {name} with shape {found}; this base model needs {shape}, "
                "so the adapter was made for another one"
            )


def _expected_shapes(adapter: VerifiedAdapter, base_config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that peft would save for this adapter on this base."""
    from peft import PeftModel, get_peft_model_state_dict

    try:
        with torch.device("meta"):
            empty: nn.Module = AutoModelForCausalLM.from_config(base_config)
        wrapped = PeftModel(empty, _lora_config(adapter), low_cpu_mem_usage=True)
        # Without the "auto" for embeddings, which asks the model hub whether the vocabulary grew.
        state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    except Exception as error:
        # What peft raises for a configuration it cannot apply is anything from KeyError to ValueError.
        raise AdapterRefusedError(f"{adapter.directory} cannot be applied to this base model: {error}") from None
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _listed(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"
