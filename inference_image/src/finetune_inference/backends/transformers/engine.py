"""The default engine: a transformers model with continuous batching, on a CPU or a GPU.

Every step is one forward pass over one token of each sequence in decode, and chunks of the prompts of sequences in prefill
(chunked prefill). Sequences start and end between steps; each may have its own adapter. Greedy answers are equal to those of
`transformers.generate`. Importing this module imports torch.
"""

import inspect
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from finetune_api.serving import ServingConfig
from finetune_inference.backends.common.defaults import CACHE_SHARE, NOT_FINITE, PREFILL_TOKENS
from finetune_inference.backends.common.lora_batch import LoraBatch
from finetune_inference.backends.common.lora_loader import LoraLoader
from finetune_inference.backends.common.lora_merge import merge_compared
from finetune_inference.backends.common.lora_weights import LoadedLora
from finetune_inference.backends.transformers.batched_runner import BatchedModelRunner
from finetune_inference.backends.transformers.kv_cache import KVCache
from finetune_inference.backends.transformers.linear_layers import fuse_and_pack_linear, shared_inputs
from finetune_inference.backends.transformers.model_check import (
    CACHED_TOKENS,
    disagreement,
    length_dependent_positions,
    reference_logits,
)
from finetune_inference.backends.transformers.model_runner import Chunk, ModelRunner
from finetune_inference.backends.transformers.running_sequence import RunningSequence
from finetune_inference.backends.transformers.sampler import Sampler
from finetune_inference.backends.transformers.sequential_runner import SequentialModelRunner
from finetune_inference.config import Settings
from finetune_inference.engine.interface import (
    Event,
    Failed,
    Finished,
    ModelFacts,
    ModelLoadError,
    TokenRequest,
    VerifiedAdapter,
)
from finetune_model.model_files import context_length, quantization_of, resolve_precision, token_ids
from finetune_model.process import available_cpus, release_free_memory, spare_memory

log = logging.getLogger(__name__)

PACKED_SHARE = 3
"""The packed copy of the weights may take one part in this many of the free memory."""


class TransformersEngine:
    """`engine.Engine` on transformers."""

    def __init__(self, config: ServingConfig, settings: Settings) -> None:
        self.capacity = settings.max_running
        self._config = config
        self._settings = settings
        self._sequences: dict[int, RunningSequence] = {}
        """Running sequences by key, in order of arrival."""
        self._loader: LoraLoader
        self._runner: ModelRunner
        self._facts: ModelFacts
        self._stop_ids: frozenset[int]
        self._repetition_penalty: float
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def cached_tokens(self) -> int:
        """Tokens reserved in the KV cache; 0 if no sequence runs. Any thread may read it."""
        return self._runner.reserved

    @property
    def spare_memory(self) -> int:
        """Free bytes on the device."""
        return torch.cuda.mem_get_info()[0] if self._device.type == "cuda" else spare_memory()

    def load_model(self, merged: VerifiedAdapter | None = None) -> ModelFacts:
        """Load the base model and, if given, merge an adapter into its weights. Raises ModelLoadError or AdapterRefusedError."""
        torch.set_num_threads(self._settings.threads or available_cpus())
        transformers_logging.disable_progress_bar()
        model = self._read_model()
        model.eval()
        generation = model.generation_config
        self._stop_ids = token_ids(generation.eos_token_id or model.config.eos_token_id)
        self._repetition_penalty = generation.repetition_penalty or 1.0
        limit = context_length(model.config)
        self._facts = ModelFacts(
            context_length=min(limit, self._config.max_model_length or limit),
            vocabulary_size=model.get_input_embeddings().weight.shape[0],
            parameters=sum(p.numel() for p in model.parameters()),
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(self._device),
        )
        if merged:
            merge_compared(model, LoraLoader(model).load(merged), merged)
        # Frees memory before the KV cache and the packed copy are sized by what is free.
        release_free_memory()
        self._runner = self._make_runner(model)
        # Last, because it imports peft in a thread beside the next steps.
        self._loader = LoraLoader(model)
        release_free_memory()
        return self._facts

    def load_adapter(self, adapter: VerifiedAdapter) -> LoadedLora:
        """Read one adapter into memory. Raises AdapterRefusedError."""
        return self._loader.load(adapter)

    def add(self, key: int, request: TokenRequest) -> None:
        """Start a sequence."""
        stop_ids = request.stop_ids if request.ignore_eos else self._stop_ids | request.stop_ids
        sampler = Sampler(request, stop_ids, self._facts.vocabulary_size, self._repetition_penalty, self._device)
        lora = request.weights if isinstance(request.weights, LoadedLora) else None
        self._sequences[key] = RunningSequence(key, request, lora, sampler, stop_ids, list(request.prompt))

    @torch.inference_mode()
    def remove(self, key: int) -> None:
        """Drop a sequence and free its cache."""
        if self._sequences.pop(key, None):
            self._runner.release(key)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Event]]:
        """Compute one token of each sequence in decode, and the next chunks of prompts."""
        if not self._sequences:
            return []
        try:
            chunks = self._schedule_chunks()
            events = self._events(chunks, self._runner.forward(chunks))
        except BaseException:
            self._sequences.clear()
            self._runner.clear()
            raise
        for key, event in events:
            if isinstance(event, Finished | Failed):
                self.remove(key)
        return events

    def _schedule_chunks(self) -> list[Chunk]:
        """Return the chunks of this step that fit the cache, older sequences first. At least one, because any sequence fits alone."""
        sizes = chunk_sizes(list(self._sequences.values()), PREFILL_TOKENS[self._device.type])
        chunks = []
        for sequence in list(self._sequences.values()):
            size = sizes.get(sequence.key, 0)
            if size and self._reserve(sequence, sequence.computed + size):
                chunks.append(sequence.next_chunk(size))
        return chunks

    def _reserve(self, sequence: RunningSequence, tokens: int) -> bool:
        """Reserve cache. If it is full, preempt younger sequences, which compute their tokens again later."""
        while not self._runner.reserve(sequence.key, tokens):
            younger = next((s for s in reversed(self._sequences.values()) if s is sequence or s.computed), sequence)
            if younger is sequence:
                return False
            self._runner.release(younger.key)
            younger.restart()
        return True

    def _events(self, chunks: list[Chunk], logits: torch.Tensor) -> list[tuple[int, Event]]:
        """Pick the next tokens and return the events. logits: [wanted positions of all chunks, vocabulary].

        A sequence with logits that are not finite fails alone; sampling from them would raise and end all sequences.
        """
        events: list[tuple[int, Event]] = []
        picking: list[tuple[RunningSequence, int]] = []
        largest, likeliest = logits.max(dim=-1)
        # The largest logit is NaN if any logit is, and infinite if softmax has no finite result.
        usable = largest.isfinite().tolist()
        end = 0
        for chunk in chunks:
            sequence = self._sequences[chunk.key]
            begin, end = end, end + chunk.wanted
            if not all(usable[begin:end]):
                events.append((chunk.key, Failed(NOT_FINITE)))
                continue
            events += [(chunk.key, event) for event in sequence.add_computed(chunk, logits[begin:end])]
            if sequence.uncomputed:
                continue
            if sequence.request.max_tokens == 0:
                events.append((chunk.key, Finished("length", 0)))
            else:
                picking.append((sequence, end - 1))
        greedy = likeliest.tolist()
        for sequence, row in picking:
            token = greedy[row] if sequence.sampler.is_argmax else sequence.sampler.pick(logits[row].float())
            events += [(sequence.key, event) for event in sequence.add_token(token, logits[row])]
        return events

    def _read_model(self) -> Any:
        wanted = self._config.model
        precision = resolve_precision(self._config.precision, on_gpu=self._device.type != "cpu")
        log.info("Loading base model %s from %s as %s on %s", wanted.name, wanted.path, precision, self._device)
        try:
            return AutoModelForCausalLM.from_pretrained(
                wanted.path,
                revision=wanted.revision or "main",
                dtype=getattr(torch, precision),
                device_map=None if self._device.type == "cpu" else {"": self._device},
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=Path(wanted.path).is_absolute() or Path(wanted.path).exists(),
            )
        except Exception as error:
            # transformers raises OSError, ValueError, KeyError, RuntimeError, … depending on the fault in the files.
            raise ModelLoadError(f"base model {wanted.name} cannot be loaded from {wanted.path}: {error}") from error

    def _make_runner(self, model: Any) -> ModelRunner:
        """Make the batched runner, or the sequential one for a model whose batched pass computes other logits."""
        takes_logits_to_keep = _takes_logits_to_keep(model)
        groups = shared_inputs(model)
        lora = LoraBatch(model, groups)
        own_attention = model.config._attn_implementation  # noqa: SLF001 - transformers has no other name for it
        reference = reference_logits(model, self._facts.vocabulary_size)
        if self._device.type == "cpu":
            self._fuse_and_pack(model, groups)
        # Products with quantized weights use 16-bit floats, and round differently for different numbers of rows.
        computed_in = torch.bfloat16 if quantization_of(model.config) else model.dtype
        cache = KVCache(self._facts.context_length, CACHED_TOKENS)
        try:
            batched = BatchedModelRunner(model, lora, cache, takes_logits_to_keep=takes_logits_to_keep)
            reason = length_dependent_positions(model.config) or disagreement(batched, reference, computed_in)
        except (ValueError, RuntimeError) as error:
            # transformers raises these for a model that supports only its own attention.
            reason = str(error)
        if reason is None:
            cache.set_budget(self._cache_tokens(batched.bytes_per_token))
            return batched
        log.warning(
            "Base model %s computes one sequence at a time, which is slower: %s", self._config.model.name, reason
        )
        model.set_attn_implementation(own_attention)
        # The memory per token is unknown here; the longest sequence has to fit in any case.
        budget = max(self._facts.context_length, self._settings.max_cached_tokens or 0)
        return SequentialModelRunner(model, lora, budget=budget, takes_logits_to_keep=takes_logits_to_keep)

    def _fuse_and_pack(self, model: Any, groups: list[list[str]]) -> None:
        spare = self.spare_memory // PACKED_SHARE
        packing = fuse_and_pack_linear(model, groups, spare)
        size, limit = packing.packable_bytes >> 20, spare >> 20
        if not packing.packable_bytes:
            log.info(
                "No packed copy of the weights: this CPU has no product from packed %s weights.", self._facts.dtype
            )
        elif packing.is_packed:
            log.info("A packed copy of the weights, for speed, takes %d of %d MiB that it may use.", size, limit)
        else:
            log.info(
                "Slower than possible: a packed copy of the weights needs %d MiB, and may use %d (a third of the free memory). "
                "Raise resources.memory.",
                size,
                limit,
            )

    def _cache_tokens(self, bytes_per_token: int) -> int:
        """Return the KV cache budget in tokens."""
        if self._settings.max_cached_tokens:
            return self._settings.max_cached_tokens
        return self.spare_memory // CACHE_SHARE // max(1, bytes_per_token)


def chunk_sizes(sequences: list[RunningSequence], budget: int) -> dict[int, int]:
    """Return the number of tokens that each sequence computes in the next step, by key.

    A sequence in decode computes its one token. Sequences in prefill share the budget: half of it goes to the oldest, so that
    a very long prompt completes, and the rest to the shortest remaining prompts, so that few sequences wait for many. Among
    equals the older one comes first, because alternating would delay both.
    """
    sizes = {sequence.key: 1 for sequence in sequences if sequence.uncomputed == 1}
    prefills = [sequence for sequence in sequences if sequence.uncomputed > 1]
    sizes |= {sequence.key: min(sequence.uncomputed, budget // 2) for sequence in prefills[:1]}
    left = budget - sum(sizes[sequence.key] for sequence in prefills[:1])
    for sequence in sorted(prefills, key=lambda each: each.uncomputed):
        already = sizes.get(sequence.key, 0)
        more = min(sequence.uncomputed - already, left)
        sizes[sequence.key] = already + more
        left -= more
    return sizes


def _takes_logits_to_keep(model: Any) -> bool:
    """Return whether the model can skip the head for all but some positions; a few models cannot."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters
