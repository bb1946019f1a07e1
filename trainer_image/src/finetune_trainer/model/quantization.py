"""QLoRA: the frozen layers in four bits while training runs, and in the weights that will be served when it is over.

Dettmers et al. 2023, arXiv 2305.14314; transformers and bitsandbytes do the work. The adapter belongs to the model as it is
on disk, which is what a server loads, so its fingerprint has to be taken there (`served_weights`).
"""

import contextlib
import importlib.util
import itertools
import tempfile
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from finetune_api.reasons import Reason
from finetune_api.v1alpha1.job.method import Quantization
from finetune_model.model_files import quantization_of
from finetune_trainer.errors import TrainingError

if TYPE_CHECKING:
    from finetune_trainer.model.loaded import BaseModel

PACKAGE: Final = "bitsandbytes"
"""Python package that quantizes; the extra `qlora` of finetune-trainer."""
NF4_BYTES: Final = 0.52
"""Per weight: four bits, eight more for each 64 weights, and next to nothing for each 256 of those."""


def check_quantization(quantization: Quantization, model_config: Any) -> None:
    """Raise TrainingError (SpecInvalid) if the model is quantized as it is, or what quantizes is not installed."""
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
    """What quantization takes off the weights of `model`, which may be on the meta device."""
    import torch

    if quantization == "none":
        return 0
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not model.get_output_embeddings()]
    return int(sum(layer.weight.numel() for layer in layers) * (bytes_per_weight - NF4_BYTES))


def loading_arguments(dtype: Any, *, on_gpu: bool) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a model in four bits, whose products are computed in `dtype`."""
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": _device(on_gpu=on_gpu)}}


def keep_differentiable(model: Any) -> None:
    """Keep gradients right after an evaluation.

    With AVX512-BF16 bitsandbytes packs a layer for good when it is first evaluated, for a product that has no gradient and
    gives none: all layers below would silently learn nothing.
    """
    for layer in _quantized(model).values():
        layer.support_avx512bf16_for_cpu = False


@contextlib.contextmanager
def served_weights(base: "BaseModel") -> Iterator[None]:
    """Within this context the model computes with the weights on disk; without quantized layers it does so anyway.

    Each layer is read when it is called and forgotten afterwards: the whole model need not fit where four bits of it did.
    """
    layers = _quantized(base.model)
    if not layers:
        yield
        return
    import torch
    from transformers import AutoModelForCausalLM

    names = {name: name.removesuffix(".base_layer") for name in layers}
    with tempfile.TemporaryDirectory() as converted, warnings.catch_warnings():
        # accelerate warns of a place for a parameter, and takes it: some modules have parameters beside quantized layers.
        warnings.simplefilter("ignore")
        plain = AutoModelForCausalLM.from_pretrained(
            base.folder,
            dtype=getattr(torch, base.dtype),
            trust_remote_code=False,
            use_safetensors=True,
            device_map=_placement(base, set(names.values())),
            # Only for weights that transformers does not take as they are in the model's files.
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
    """Layers by name."""
    if not getattr(model, "is_loaded_in_4bit", False):
        return {}
    from bitsandbytes.nn.modules import Linear4bit

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def _placement(base: "BaseModel", on_disk: set[str]) -> dict[str, int | str]:
    """Where transformers puts layers and all other tensors of the model that is not quantized."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(base.model.config, trust_remote_code=False)
    # With both names of a tensor that two modules share, as the embeddings and the head of many models do.
    named = itertools.chain(shape.named_parameters(remove_duplicate=False), shape.named_buffers(remove_duplicate=False))
    tensors = (name for name, _ in named)
    others = [name for name in tensors if name.rpartition(".")[0] not in on_disk]
    return {**dict.fromkeys(others, _device(on_gpu=base.on_gpu)), **dict.fromkeys(on_disk, "disk")}


def _device(*, on_gpu: bool) -> int | str:
    return 0 if on_gpu else "cpu"
