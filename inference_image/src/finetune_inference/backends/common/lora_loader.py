"""Reading an adapter's tensors, and checking that they fit the base model. The only module that knows peft.

peft itself drops keys that it does not recognize and leaves missing ones at their initial zeros; the result is an adapter that
loads and does nothing. So names and shapes are first compared with those that peft would create for this base model. The
comparison runs on a copy of the model without storage (device meta); the real model is never changed.
"""

import hashlib
import importlib
import json
import threading
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import load
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from finetune_inference.adapters.verification import AdapterRefusedError
from finetune_inference.backends.common.lora_weights import LoadedLora, LoraDelta, Replacement
from finetune_inference.engine.interface import VerifiedAdapter
from finetune_model.model_files import quantization_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Accepted types of an adapter's tensors."""
TUNABLE = (nn.Linear, nn.Embedding, Conv1D)
"""Modules that adapters may change. peft also wraps groups of experts, whose rows are not the rows of the batch."""
NAMED = 3
"""Most tensors named in a message; the others are counted."""
PREFIX = "base_model.model."
"""Prefix that peft puts before the base model's names."""
_SLOT = "adapter"


@dataclass(frozen=True)
class _Shape:
    """Layout that peft creates for one adapter configuration on this base model."""

    tensors: dict[str, tuple[int, ...]]
    """Shapes by the names that peft saves."""
    scalings: dict[str, float]
    """By path of each module that gets low-rank matrices."""


class LoraLoader:
    """Reader of adapters for one base model, which stays unchanged. Any thread may use it, one at a time."""

    def __init__(self, base: Any) -> None:
        self._base = base
        self._modules: dict[str, nn.Module] = dict(base.named_modules())
        self._known: dict[str, _Shape] = {}
        """Cache by configuration, because many adapters share one and computing the layout takes as long as loading."""
        # Importing peft takes seconds, for which the first adapter of a running server would wait.
        threading.Thread(target=importlib.import_module, args=["peft"], name="import-peft", daemon=True).start()

    def load(self, adapter: VerifiedAdapter) -> LoadedLora:
        """Read one adapter into memory. Raises AdapterRefusedError."""
        scalings, tensors = self.read(adapter)
        tensors = {name.removeprefix(PREFIX): t.to(self._base.device, self._base.dtype) for name, t in tensors.items()}
        deltas = {path: self._delta(path, scaling, tensors) for path, scaling in scalings.items()}
        return LoadedLora(adapter.name, adapter.digest, deltas, self._replacements(adapter, deltas, tensors))

    def read(self, adapter: VerifiedAdapter) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        """Return scalings by module path, and the tensors as saved, after all checks. Raises AdapterRefusedError.

        Needs only names, types and shapes of the base model, which may be on the device meta.
        """
        tensors = _read_tensors(adapter)
        shape = self._shape_for(adapter)
        _check_fit(adapter, shape.tensors, tensors)
        _check_range(adapter, shape.scalings, tensors, self._base.dtype)
        odd = [path for path in shape.scalings if not isinstance(self._modules.get(path), TUNABLE)]
        if odd:
            raise AdapterRefusedError(
                f"the adapter tunes {_listed(odd)}; only linear layers and embeddings are supported"
            )
        return shape.scalings, tensors

    def _shape_for(self, adapter: VerifiedAdapter) -> _Shape:
        key = json.dumps(adapter.lora, sort_keys=True)
        if key not in self._known:
            self._known[key] = _shape_of(adapter, self._base.config)
        return self._known[key]

    @torch.inference_mode()
    def _delta(self, path: str, scaling: float, tensors: dict[str, torch.Tensor]) -> LoraDelta:
        if f"{path}.lora_embedding_A" in tensors:
            a, b = tensors[f"{path}.lora_embedding_A"], tensors[f"{path}.lora_embedding_B"]
            if type(self._modules[path]) is not nn.Embedding:
                raise AdapterRefusedError(f"the adapter tunes {path}, an embedding of an unsupported type")
            return LoraDelta(a, b, scaling, embedding=True)
        delta = LoraDelta(
            tensors[f"{path}.lora_A.weight"],
            tensors[f"{path}.lora_B.weight"],
            scaling,
            tensors.get(f"{path}.lora_B.bias"),
        )
        magnitude = tensors.get(f"{path}.lora_magnitude_vector")
        if magnitude is None:
            return delta
        if method := quantization_of(self._base.config):
            raise AdapterRefusedError(
                f"the adapter was trained with DoRA, which needs the norms of the base model's weights; the weights are quantized ({method})"
            )
        weight = _weight(self._modules[path])
        tuned = weight + scaling * (delta.b @ delta.a)
        return replace(delta, magnitude=magnitude / torch.linalg.norm(tuned, dim=1))

    def _replacements(
        self, adapter: VerifiedAdapter, deltas: dict[str, LoraDelta], tensors: dict[str, torch.Tensor]
    ) -> dict[str, Replacement]:
        left = {n for n in tensors if not any(n.startswith(f"{path}.lora_") for path in deltas)}
        paths = sorted({name.rpartition(".")[0] for name in left})
        odd = [path for path in paths if type(self._modules.get(path)) not in (nn.Linear, nn.Embedding)]
        if odd:
            raise AdapterRefusedError(
                f"{adapter.directory} replaces {_listed(odd)} (modules_to_save); only linear layers and embeddings can be replaced"
            )
        return {path: Replacement(tensors[f"{path}.weight"], tensors.get(f"{path}.bias")) for path in paths}


def _weight(module: nn.Module) -> torch.Tensor:
    """Return the weight as [out, in]; transformers' Conv1D stores the transpose."""
    weight: Any = module.weight
    return weight if isinstance(module, nn.Linear) else weight.t()  # type: ignore[no-any-return]


def _read_tensors(adapter: VerifiedAdapter) -> dict[str, torch.Tensor]:
    """Read the tensors of the file into memory and verify their digest.

    A memory-mapped file would change when someone writes to it, and crash the process when it is truncated. So the file is
    read once, and the digest is computed from the bytes in memory.
    """
    try:
        content = adapter.weights.read_bytes()
    except OSError as error:
        raise AdapterRefusedError(f"{adapter.weights} cannot be read: {error}") from None
    if hashlib.sha256(content).hexdigest() != adapter.weights_sha256:
        raise AdapterRefusedError(f"{adapter.weights} changed while it was loaded")
    try:
        tensors: dict[str, torch.Tensor] = load(content)
    except Exception as error:
        # safetensors raises types without a common base class.
        raise AdapterRefusedError(f"{adapter.weights} is not a safetensors file: {error}") from None
    broken = [name for name, tensor in tensors.items() if tensor.dtype not in DTYPES or not tensor.isfinite().all()]
    if broken:
        raise AdapterRefusedError(f"{adapter.weights} has values that are not finite floats in {_listed(broken)}")
    return tensors


def _check_range(
    adapter: VerifiedAdapter, scalings: dict[str, float], tensors: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    """Raise AdapterRefusedError unless all values are finite in the type in which the base model computes."""
    wild = [path for path, scaling in scalings.items() if not torch.tensor(scaling, dtype=dtype).isfinite()]
    if wild:
        raise AdapterRefusedError(
            f"{adapter.directory} scales {_listed(wild)} by a factor that is not finite as {dtype}"
        )
    broken = [name.removeprefix(PREFIX) for name, tensor in tensors.items() if not tensor.to(dtype).isfinite().all()]
    if broken:
        raise AdapterRefusedError(f"{adapter.weights} has values that are not finite as {dtype} in {_listed(broken)}")


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
            f"{adapter.weights} {' and '.join(parts)}; the adapter was trained on another model, or its tensors were renamed"
        )
    for name, shape in expected.items():
        if (found := tuple(tensors[name].shape)) != shape:
            raise AdapterRefusedError(
                f"{adapter.weights} has {name} with shape {found}; this base model needs {shape}, "
                "so the adapter was trained on another model"
            )


def _shape_of(adapter: VerifiedAdapter, base_config: Any) -> _Shape:
    """Return names, shapes and scalings of the tensors that peft would create for this adapter on this base model."""
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    try:
        with torch.device("meta"):
            empty: nn.Module = AutoModelForCausalLM.from_config(base_config)
        config = LoraConfig(task_type="CAUSAL_LM", inference_mode=True, **adapter.lora)
        wrapped = PeftModel(empty, config, _SLOT, low_cpu_mem_usage=True)
        # Not "auto", which would ask the model hub whether the vocabulary was extended.
        state = get_peft_model_state_dict(wrapped, adapter_name=_SLOT, save_embedding_layers=False)
        scalings = {
            path.removeprefix(PREFIX): float(module.scaling[_SLOT])
            for path, module in wrapped.named_modules()
            if isinstance(module, LoraLayer)
        }
    except Exception as error:
        # For a configuration that peft cannot apply it raises anything from KeyError to ValueError.
        raise AdapterRefusedError(f"{adapter.directory} cannot be applied to this base model: {error}") from None
    return _Shape({name: tuple(tensor.shape) for name, tensor in state.items()}, scalings)


def _listed(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"
