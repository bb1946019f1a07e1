"""Loading a base model into vLLM: its shape, its arguments, and the adapters that vLLM reads from folders."""

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from vllm import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform

from finetune_api.artifacts import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from finetune_api.serving import ServingConfig
from finetune_inference.adapters.verification import AdapterRefusedError
from finetune_inference.backends.common.defaults import CACHE_SHARE
from finetune_inference.backends.common.lora_loader import LoraLoader
from finetune_inference.backends.common.lora_merge import merge_compared
from finetune_inference.backends.vllm.logits_processors import SeededSampling, WatchLogits
from finetune_inference.config import Settings
from finetune_inference.engine.interface import MAX_TOP_LOGPROBS, ModelLoadError, VerifiedAdapter
from finetune_model.model_files import context_length, resolve_precision, token_ids
from finetune_model.process import available_cpus, spare_memory
from finetune_model.servable import PREFIX

STEP_TOKENS = 256
"""Tokens per step on a CPU, of prompts and answers together; also bounds the logits of scored prompts."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts as the highest rank of an adapter."""


@dataclass(frozen=True)
class ModelSource:
    """A base model on disk or on the hub, read without its weights."""

    path: str
    revision: str | None
    config: Any
    """The transformers configuration."""
    shape: Any
    """The model on the device meta: names, types and shapes without storage, for comparing adapters."""
    head: str
    """Path of the module that computes logits."""
    device: str
    dtype: str

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.shape.parameters())

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights, in bytes."""
        return int(self.parameters * getattr(torch, self.dtype).itemsize)

    @property
    def tunable_modules(self) -> list[str]:
        """Last parts of the paths of the modules that adapters may tune."""
        kinds = (torch.nn.Linear, torch.nn.Embedding)
        names = {n for n, module in self.shape.named_modules() if isinstance(module, kinds) and n != self.head}
        return sorted({name.rpartition(".")[2] for name in names})

    def generation_defaults(self) -> tuple[frozenset[int], float]:
        """Return the end tokens and the repetition penalty of the model's generation config."""
        try:
            generation = GenerationConfig.from_pretrained(self.path, revision=self.revision or "main")
        except OSError:
            # Without that file it is a part of the model's configuration, as in transformers.
            generation = GenerationConfig.from_model_config(self.config)
        stop_ids = token_ids(generation.eos_token_id or self.config.eos_token_id)
        return stop_ids, generation.repetition_penalty or 1.0


def vllm_dtype(config: ServingConfig) -> str:
    """Return the type of the weights on this device."""
    return resolve_precision(config.precision, on_gpu=current_platform.device_type != "cpu")


def read_source(config: ServingConfig, path: str, revision: str | None) -> ModelSource:
    """Read configuration and shape of a base model."""
    dtype = vllm_dtype(config)
    read: Any = AutoConfig.from_pretrained(path, revision=revision or "main", trust_remote_code=False)
    with torch.device("meta"):
        shape: Any = AutoModelForCausalLM.from_config(read, dtype=getattr(torch, dtype))
    head = shape.get_output_embeddings()
    head_path = next((name for name, module in shape.named_modules() if module is head), "")
    return ModelSource(path, revision, read, shape, head_path, current_platform.device_type, dtype)


def longest_sequence(config: ServingConfig, source: ModelSource) -> int:
    """Return the longest prompt plus answer, in tokens."""
    limit = context_length(source.config)
    return min(limit, config.max_model_length or limit)


def engine_arguments(
    config: ServingConfig, settings: Settings, source: ModelSource, *, with_adapters: bool
) -> EngineArgs:
    """Return vLLM's arguments. Raises ModelLoadError if the model or the settings do not fit vLLM or the memory."""
    longest = longest_sequence(config, source)
    if source.device == "cpu":
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ["OMP_NUM_THREADS"] = str(settings.threads or available_cpus())
    return EngineArgs(
        model=source.path,
        revision=source.revision,
        tokenizer_revision=source.revision,
        skip_tokenizer_init=True,
        load_format="safetensors",
        generation_config="vllm",
        dtype=source.dtype,
        seed=secrets.randbits(31),
        # One more, because vLLM rejects a prompt that leaves no room for a token, even if none is generated.
        max_model_len=longest + 1,
        max_num_seqs=settings.max_running,
        max_logprobs=MAX_TOP_LOGPROBS,
        # An answer must not depend on earlier requests, and values that a broken adapter left must not be reused.
        enable_prefix_caching=False,
        # A step's outcome has to be known at its end, because a constraint determines the next token.
        async_scheduling=False,
        logits_processors=[WatchLogits, SeededSampling],
        **_memory_arguments(config, settings, source, longest),
        **(_lora_arguments(settings, source) if with_adapters else {}),
    )


def _memory_arguments(config: ServingConfig, settings: Settings, source: ModelSource, longest: int) -> dict[str, Any]:
    """Return the arguments that bound the tokens per step and the KV cache."""
    arguments: dict[str, Any] = {}
    if source.device == "cpu":
        # Compilation takes minutes and a compiler, and vLLM's default KV cache takes most of the machine.
        arguments["enforce_eager"] = True
        arguments["max_num_batched_tokens"] = max(STEP_TOKENS, settings.max_running)
        spare, weights = spare_memory(), source.weight_bytes
        if spare <= weights:
            raise ModelLoadError(
                f"base model {config.model.name} needs {weights >> 20} MiB, and {spare >> 20} MiB are free: raise "
                "resources.memory, or wait until other pods of the node need less"
            )
        arguments["kv_cache_memory_bytes"] = (spare - weights) // CACHE_SHARE
    if settings.max_cached_tokens:
        block = 128 if source.device == "cpu" else 16
        tokens = max(settings.max_cached_tokens, longest + 1)
        arguments |= {"block_size": block, "num_gpu_blocks_override": -(-tokens // block) + 1}
    return arguments


def _lora_arguments(settings: Settings, source: ModelSource) -> dict[str, Any]:
    rank = next((rank for rank in RANKS if rank >= settings.max_lora_rank), None)
    if rank is None:
        raise ModelLoadError(
            f"FINETUNE_SERVER_MAX_LORA_RANK is {settings.max_lora_rank}; vLLM supports ranks of {RANKS[-1]} or less"
        )
    # On a CPU one slot is for the adapter that adds nothing, see `write_zero_adapter`.
    slots = settings.max_batched_adapters + int(source.device == "cpu")
    return {
        "enable_lora": True,
        "max_lora_rank": rank,
        "max_loras": slots,
        "max_cpu_loras": slots,
        # Without the head: with it, scoring a prompt beside other sequences would end the step for all of them.
        "lora_target_modules": source.tunable_modules,
    }


def write_merged(config: ServingConfig, adapter: VerifiedAdapter, folder: Path) -> str:
    """Write the base model, with an adapter merged into its weights, into `folder`; returns its path.

    Raises AdapterRefusedError if the merge adds parameters that vLLM's model does not have.
    """
    wanted = config.model
    model: Any = AutoModelForCausalLM.from_pretrained(
        wanted.path,
        revision=wanted.revision or "main",
        dtype=getattr(torch, vllm_dtype(config)),
        use_safetensors=True,
        trust_remote_code=False,
    )
    before = set(model.state_dict())
    merge_compared(model, LoraLoader(model).load(adapter), adapter)
    added = set(model.state_dict()) - before
    if added:
        raise AdapterRefusedError(
            f"{adapter.directory} adds {', '.join(sorted(added)[:3])}, which vLLM does not support in this model; use the engine "
            "transformers"
        )
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    model.config.tie_word_embeddings = head is not None and head.weight is embedding.weight
    model.save_pretrained(folder)
    return str(folder)


def write_adapter(folder: Path, number: int, lora: dict[str, Any], tensors: dict[str, torch.Tensor]) -> LoRARequest:
    """Write an adapter into an empty folder, from which vLLM reads it again after each eviction."""
    save_file(tensors, folder / ADAPTER_WEIGHTS_FILE)
    (folder / ADAPTER_CONFIG_FILE).write_text(json.dumps({"peft_type": "LORA", **lora}))
    return LoRARequest(f"adapter-{number}", number, str(folder))


def write_zero_adapter(folder: Path, number: int, shape: Any) -> LoRARequest:
    """Write an adapter that adds nothing. One module is enough, because vLLM clears modules that an adapter does not have."""
    name, module = next((n, m) for n, m in shape.named_modules() if isinstance(m, torch.nn.Linear))
    lora = {"r": 1, "lora_alpha": 1, "target_modules": [name.rpartition(".")[2]]}
    tensors = {
        f"{PREFIX}{name}.lora_A.weight": torch.zeros(1, module.in_features),
        f"{PREFIX}{name}.lora_B.weight": torch.zeros(module.out_features, 1),
    }
    return write_adapter(folder, number, lora, tensors)
