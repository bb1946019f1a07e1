"""Reading an adapter's tensors, and checking that they fit the base model.

peft itself drops keys that it does not recognize and leaves missing ones at their initial zeros; the result is an adapter that
loads and does nothing. So names and shapes are first compared with those that peft would create for this base model, by the
rules that the trainer applies before training (`finetune_model.servable`); the real model is never changed.
"""

import hashlib
import importlib
import json
import threading
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load
from torch import nn

from finetune_inference.adapters.verification import AdapterRefusedError
from finetune_inference.backends.common.lora_weights import LoadedLora, LoraDelta, Replacement
from finetune_inference.engine.interface import VerifiedAdapter
from finetune_model.adapter_tensors import own_tensors, tensor_problem
from finetune_model.model_files import quantization_of
from finetune_model.servable import (
    PREFIX,
    AdapterLayout,
    NotServableError,
    adapter_layout,
    listed,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Accepted types of an adapter's tensors."""


class LoraLoader:
    """Reader of adapters for one base model, which stays unchanged. Any thread may use it, one at a time."""

    def __init__(self, base: Any) -> None:
        self._base = base
        self._modules: dict[str, nn.Module] = dict(base.named_modules())
        self._known: dict[str, AdapterLayout] = {}
        """Cache by configuration, because many adapters share one and computing the layout takes as long as loading."""
        # Importing peft takes seconds, for which the first adapter of a running server would wait.
        threading.Thread(target=importlib.import_module, args=["peft"], name="import-peft", daemon=True).start()

    def load(self, adapter: VerifiedAdapter) -> LoadedLora:
        """Read one adapter into memory. Raises AdapterRefusedError."""
        scalings, tensors = self.read(adapter)
        tensors = {name.removeprefix(PREFIX): t.to(self._base.device, self._base.dtype) for name, t in tensors.items()}
        deltas = {path: self._delta(path, scaling, tensors) for path, scaling in scalings.items()}
        return LoadedLora(adapter.name, adapter.digest, deltas, _replacements(deltas, tensors))

    def read(self, adapter: VerifiedAdapter) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        """Return scalings by module path, and the tensors as saved, after all checks. Raises AdapterRefusedError.

        Needs only names, types and shapes of the base model, which may be on the device meta.
        """
        tensors = _read_tensors(adapter)
        layout = self._layout_for(adapter)
        try:
            tensors = own_tensors(tensors, layout, self._modules)
        except NotServableError as error:
            raise AdapterRefusedError(f"{adapter.weights} cannot be served: {error}") from None
        if problem := tensor_problem(layout.tensors, {name: tuple(tensor.shape) for name, tensor in tensors.items()}):
            raise AdapterRefusedError(f"{adapter.weights} {problem}")
        _check_range(adapter, layout.scalings, tensors, self._base.dtype)
        return layout.scalings, tensors

    def _layout_for(self, adapter: VerifiedAdapter) -> AdapterLayout:
        key = json.dumps(adapter.lora, sort_keys=True)
        if key not in self._known:
            try:
                self._known[key] = adapter_layout(adapter.lora, self._base.config)
            except NotServableError as error:
                raise AdapterRefusedError(
                    f"{adapter.directory} cannot be applied to this base model: {error}"
                ) from None
        return self._known[key]

    @torch.inference_mode()
    def _delta(self, path: str, scaling: float, tensors: dict[str, torch.Tensor]) -> LoraDelta:
        is_embedding = f"{path}.lora_embedding_A" in tensors
        a, b = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A.weight", "lora_B.weight")
        delta = LoraDelta(
            tensors[f"{path}.{a}"],
            tensors[f"{path}.{b}"],
            scaling,
            tensors.get(f"{path}.lora_B.bias"),
            embedding=is_embedding,
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


def _replacements(deltas: dict[str, LoraDelta], tensors: dict[str, torch.Tensor]) -> dict[str, Replacement]:
    left = {n for n in tensors if not any(n.startswith(f"{path}.lora_") for path in deltas)}
    paths = sorted({name.rpartition(".")[0] for name in left})
    return {path: Replacement(tensors[f"{path}.weight"], tensors.get(f"{path}.bias")) for path in paths}


def _weight(module: nn.Module) -> torch.Tensor:
    """Return the weight as [out, in]; embeddings and transformers' Conv1D store the transpose."""
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
        raise AdapterRefusedError(f"{adapter.weights} has values that are not finite floats in {listed(broken)}")
    return tensors


def _check_range(
    adapter: VerifiedAdapter, scalings: dict[str, float], tensors: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    """Raise AdapterRefusedError unless all values are finite in the type in which the base model computes."""
    wild = [path for path, scaling in scalings.items() if not torch.tensor(scaling, dtype=dtype).isfinite()]
    if wild:
        raise AdapterRefusedError(
            f"{adapter.directory} scales {listed(wild)} by a factor that is not finite as {dtype}"
        )
    broken = [name.removeprefix(PREFIX) for name, tensor in tensors.items() if not tensor.to(dtype).isfinite().all()]
    if broken:
        raise AdapterRefusedError(f"{adapter.weights} has values that are not finite as {dtype} in {listed(broken)}")
