"""QLoRA: frozen layers in four bits during training, and as they are served for the fingerprint.

Dettmers et al. 2023, arXiv 2305.14314; transformers and bitsandbytes do the work. A server loads the unquantized model from
disk, so the adapter's fingerprint is taken with those weights (`served_weights`).
"""

import contextlib
import importlib.util
import itertools
import tempfile
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import Quantization
from finetune_model.model_files import quantization_of
from finetune_trainer.errors import TrainingError

if TYPE_CHECKING:
    from finetune_trainer.model.loaded import BaseModel

PACKAGE: Final = "bitsandbytes"
"""Python package for quantization; the extra `qlora` of finetune-trainer."""
NF4_BYTES: Final = 0.52
"""Bytes per weight: four bits, plus eight bits per 64 weights, plus a negligible second level."""


def check_quantization(quantization: Quantization, model_config: Any) -> None:
    """Raise TrainingError (SpecInvalid) if the checkpoint is quantized already, or bitsandbytes is not installed."""
    if quantization == "none":
        return
    if (found := quantization_of(model_config)) is not None:
        raise TrainingError(
            Reason.SPEC_INVALID,
            f"method.lora.quantization is {quantization}, but the model is quantized already "
            f"({found}); remove method.lora.quantization",
        )
    if importlib.util.find_spec(PACKAGE) is None:
        raise TrainingError(
            Reason.SPEC_INVALID,
            f"method.lora.quantization: {quantization} needs the Python package {PACKAGE}, which is not installed here; "
            "remove method.lora.quantization, or use a trainer image that has it (finetune-trainer[qlora])",
        )


def quantized_bytes_saved(quantization: Quantization, model: Any, bytes_per_weight: int) -> int:
    """Return the bytes that quantization saves on the weights of `model`, which may be on the meta device."""
    import torch

    if quantization == "none":
        return 0
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not model.get_output_embeddings()]
    return int(sum(layer.weight.numel() for layer in layers) * (bytes_per_weight - NF4_BYTES))


def loading_arguments(dtype: Any, *, on_gpu: bool) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for a model in four bits that computes in `dtype`."""
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": _device(on_gpu=on_gpu)}}


def keep_differentiable(model: Any) -> None:
    """Keep gradients correct after an evaluation.

    With AVX512-BF16, bitsandbytes packs a layer permanently at its first evaluation, for a product without a gradient: all
    layers below would silently learn nothing.
    """
    for layer in _quantized(model).values():
        layer.support_avx512bf16_for_cpu = False


@contextlib.contextmanager
def served_weights(base: "BaseModel") -> Iterator[None]:
    """Compute with the unquantized weights on disk within this context; nothing changes without quantized layers.

    Each layer is read when it is called and freed afterwards, because the whole model need not fit where four bits of it did.
    """
    layers = _quantized(base.model)
    if not layers:
        yield
        return
    import torch
    from transformers import AutoModelForCausalLM

    names = {name: name.removesuffix(".base_layer") for name in layers}
    with tempfile.TemporaryDirectory() as converted, warnings.catch_warnings():
        # accelerate warns about a parameter in the device map but accepts it; some modules have parameters beside quantized layers.
        warnings.simplefilter("ignore")
        plain = AutoModelForCausalLM.from_pretrained(
            base.folder,
            dtype=getattr(torch, base.dtype),
            trust_remote_code=False,
            use_safetensors=True,
            device_map=_placement(base, set(names.values())),
            # Only for weights that transformers converts while loading.
            offload_folder=converted,
        ).eval()
        for name, plain_name in names.items():
            base.model.set_submodule(name, plain.get_submodule(plain_name))
        try:
            yield
        finally:
            for name, layer in layers.items():
                base.model.set_submodule(name, layer)


def _quantized(model: Any) -> dict[str, Any]:
    """Return the quantized layers by name."""
    if not getattr(model, "is_loaded_in_4bit", False):
        return {}
    from bitsandbytes.nn.modules import Linear4bit

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def _placement(base: "BaseModel", on_disk: set[str]) -> dict[str, int | str]:
    """Return the device map by which transformers places layers and other tensors of the unquantized model."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(base.model.config, trust_remote_code=False)
    # Includes both names of a tensor that two modules share, as embeddings and head of many models do.
    named = itertools.chain(shape.named_parameters(remove_duplicate=False), shape.named_buffers(remove_duplicate=False))
    tensors = (name for name, _ in named)
    others = [name for name in tensors if name.rpartition(".")[0] not in on_disk]
    return {**dict.fromkeys(others, _device(on_gpu=base.on_gpu)), **dict.fromkeys(on_disk, "disk")}


def _device(*, on_gpu: bool) -> int | str:
    return 0 if on_gpu else "cpu"
