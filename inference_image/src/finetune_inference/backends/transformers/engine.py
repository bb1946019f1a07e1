"""The default engine: a transformers model that works on many sequences at once, on whatever device there is.

Every step is one forward pass over one token of each sequence that answers, and slices of the prompts of those that do not
yet. Sequences come and go between steps; each may have an adapter of its own. Greedy answers are those of
`transformers.generate`. Torch is imported with this module.
"""

import inspect
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from finetune_api.serving import ServingConfig
from finetune_inference.backends.defaults import CACHE_SHARE, NOT_NUMBERS, PREFILL_TOKENS
from finetune_inference.backends.transformers.batched_model import BatchedModelRunner
from finetune_inference.backends.transformers.kv_cache import KVCache
from finetune_inference.backends.transformers.linear_layers import fuse_and_pack_linear, shared_inputs
from finetune_inference.backends.transformers.lora import LoraLoader
from finetune_inference.backends.transformers.lora_batch import LoadedLora, LoraBatch
from finetune_inference.backends.transformers.lora_merge import merge
from finetune_inference.backends.transformers.model_check import (
    CACHED_TOKENS,
    disagreement,
    moving_positions,
    reference_logits,
)
from finetune_inference.backends.transformers.model_runner import Chunk, ModelRunner
from finetune_inference.backends.transformers.running_sequence import RunningSequence
from finetune_inference.backends.transformers.sampling import Sampler
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
"""A third of the memory that the model leaves may be taken by a second, packed copy of its weights."""


class TransformersEngine:
    """`engine.Engine` on transformers."""

    def __init__(self, config: ServingConfig, settings: Settings) -> None:
        self.capacity = settings.max_running
        self._config = config
        self._settings = settings
        self._sequences: dict[int, RunningSequence] = {}
        """By key, in the order in which they came."""
        self._loader: LoraLoader
        self._model: ModelRunner
        self._facts: ModelFacts
        self._stop_ids: frozenset[int]
        self._repetition_penalty: float
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def cached_tokens(self) -> int:
        """Tokens that room for keys and values is taken for; 0 if nothing is in work. Any thread may ask."""
        return self._model.reserved

    @property
    def spare_memory(self) -> int:
        """Bytes that are free on the device."""
        return torch.cuda.mem_get_info()[0] if self._device.type == "cuda" else spare_memory()

    def load_model(self, merged: VerifiedAdapter | None = None) -> ModelFacts:
        """Read the base model into memory, and an adapter into its weights. Raises ModelLoadError or AdapterRefusedError."""
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
            merge(model, LoraLoader(model).load(merged))
        # What can be kept beside the model is counted next.
        release_free_memory()
        self._model = self._piece_model(model)
        # Last, because it imports peft beside whatever comes next.
        self._loader = LoraLoader(model)
        release_free_memory()
        return self._facts

    def load_adapter(self, adapter: VerifiedAdapter) -> LoadedLora:
        """Read one adapter into memory. Raises AdapterRefusedError."""
        return self._loader.load(adapter)

    def add(self, key: int, request: TokenRequest) -> None:
        """Take a sequence into work."""
        sampler = Sampler(
            request.sampling,
            request.prompt,
            self._facts.vocabulary_size,
            self._repetition_penalty,
            self._device,
            request.constraint,
        )
        lora = request.weights if isinstance(request.weights, LoadedLora) else None
        stop_ids = self._stop_ids | request.stop_ids
        self._sequences[key] = RunningSequence(key, request, lora, sampler, stop_ids, list(request.prompt))

    @torch.inference_mode()
    def remove(self, key: int) -> None:
        """Forget a sequence."""
        if self._sequences.pop(key, None):
            self._model.release(key)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Event]]:
        """One token for each sequence that answers, and the next slices of prompts."""
        if not self._sequences:
            return []
        try:
            pieces = self._admitted()
            events = self._taken(pieces, self._model.forward(pieces))
        except BaseException:
            self._sequences.clear()
            self._model.clear()
            raise
        for key, event in events:
            if isinstance(event, Finished | Failed):
                self.remove(key)
        return events

    def _admitted(self) -> list[Chunk]:
        """The pieces of this step: what there is room for, older sequences first. At least one: any sequence fits alone."""
        counts = planned_counts(list(self._sequences.values()), PREFILL_TOKENS[self._device.type])
        pieces = []
        for sequence in list(self._sequences.values()):
            count = counts.get(sequence.key, 0)
            if count and self._make_room(sequence, sequence.read + count):
                pieces.append(sequence.piece(count))
        return pieces

    def _make_room(self, sequence: RunningSequence, tokens: int) -> bool:
        """Reserve memory, if need be at the cost of younger sequences, which will read their tokens again later."""
        while not self._model.reserve(sequence.key, tokens):
            younger = next((s for s in reversed(self._sequences.values()) if s is sequence or s.read), sequence)
            if younger is sequence:
                return False
            self._model.release(younger.key)
            younger.restart()
        return True

    def _taken(self, pieces: list[Chunk], logits: torch.Tensor) -> list[tuple[int, Event]]:
        """What the logits mean for each sequence. logits: [wanted positions of all pieces, vocabulary].

        A sequence without a likeliest token fails alone: sampling from its logits would raise, and end all others.
        """
        events: list[tuple[int, Event]] = []
        picking: list[tuple[RunningSequence, int]] = []
        largest, likeliest = logits.max(dim=-1)
        # The largest logit is NaN if any is, and infinite if there is no probability to speak of.
        usable = largest.isfinite().tolist()
        end = 0
        for piece in pieces:
            sequence = self._sequences[piece.key]
            begin, end = end, end + piece.wanted
            if not all(usable[begin:end]):
                events.append((piece.key, Failed(NOT_NUMBERS)))
                continue
            events += [(piece.key, event) for event in sequence.take_prompt_logits(piece, logits[begin:end])]
            if sequence.unread:
                continue
            if sequence.request.max_tokens == 0:
                events.append((piece.key, Finished("length", 0)))
            else:
                picking.append((sequence, end - 1))
        greedy = likeliest.tolist()
        for sequence, row in picking:
            token = greedy[row] if sequence.sampler.is_argmax else sequence.sampler.pick(logits[row].float())
            events += [(sequence.key, event) for event in sequence.take_token(token, logits[row])]
        return events

    def _read_model(self) -> Any:
        wanted = self._config.model
        precision = resolve_precision(self._config.precision, on_gpu=self._device.type != "cpu")
        log.info("loading base model %s from %s as %s on %s", wanted.name, wanted.path, precision, self._device)
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
            # transformers raises OSError, ValueError, KeyError, RuntimeError, … depending on what is wrong with the files.
            raise ModelLoadError(f"base model {wanted.name} cannot be loaded from {wanted.path}: {error}") from error

    def _piece_model(self, model: Any) -> ModelRunner:
        """The model for many sequences at once, or one after the other if that is the only way it computes rightly."""
        takes_logits_to_keep = _takes_logits_to_keep(model)
        groups = shared_inputs(model)
        lora = LoraBatch(model, groups)
        own_attention = model.config._attn_implementation  # noqa: SLF001 - transformers has no other name for it
        reference = reference_logits(model, self._facts.vocabulary_size)
        if self._device.type == "cpu":
            self._speed_up(model, groups)
        # Products with quantized weights are made from 16 bits, differently for different numbers of rows.
        computed_in = torch.bfloat16 if quantization_of(model.config) else model.dtype
        cache = KVCache(self._facts.context_length, CACHED_TOKENS)
        try:
            batched = BatchedModelRunner(model, lora, cache, takes_logits_to_keep=takes_logits_to_keep)
            reason = moving_positions(model.config) or disagreement(batched, reference, computed_in)
        except (ValueError, RuntimeError) as error:
            # transformers' way to say that a model has only attention of its own.
            reason = str(error)
        if reason is None:
            cache.set_budget(self._cache_tokens(batched.bytes_per_token))
            return batched
        log.warning("%s is served one sequence at a time: %s", self._config.model.name, reason)
        model.set_attn_implementation(own_attention)
        # What a token takes is not known here; the longest sequence has to fit anyway.
        budget = max(self._facts.context_length, self._settings.max_cached_tokens or 0)
        return SequentialModelRunner(model, lora, budget=budget, takes_logits_to_keep=takes_logits_to_keep)

    def _speed_up(self, model: Any, groups: list[list[str]]) -> None:
        spare = self.spare_memory // PACKED_SHARE
        packing = fuse_and_pack_linear(model, groups, spare)
        if not packing.packable_bytes:
            log.info("weights are not kept packed as well: there is no product from such in %s here", self._facts.dtype)
            return
        kept = "kept packed as well" if packing.is_packed else "not kept packed as well, which would be faster"
        log.info("weights are %s: %d MiB, and %d MiB are to be had", kept, packing.packable_bytes >> 20, spare >> 20)

    def _cache_tokens(self, bytes_per_token: int) -> int:
        """Tokens whose keys and values are kept."""
        if self._settings.max_cached_tokens:
            return self._settings.max_cached_tokens
        return self.spare_memory // CACHE_SHARE // max(1, bytes_per_token)


def planned_counts(sequences: list[RunningSequence], budget: int) -> dict[int, int]:
    """Tokens that each sequence should read in the next step, by key.

    Those that answer read their last token. The rest shares the budget: half of it is the oldest's, so that a giant prompt
    comes to its end, and all else goes to whoever has the least to read, so that few wait for many. Of equals the older one
    comes first: two that take turns would both be late.
    """
    counts = {sequence.key: 1 for sequence in sequences if sequence.unread == 1}
    reading = [sequence for sequence in sequences if sequence.unread > 1]
    counts |= {sequence.key: min(sequence.unread, budget // 2) for sequence in reading[:1]}
    left = budget - sum(counts[sequence.key] for sequence in reading[:1])
    for sequence in sorted(reading, key=lambda each: each.unread):
        already = counts.get(sequence.key, 0)
        more = min(sequence.unread - already, left)
        counts[sequence.key] = already + more
        left -= more
    return counts


def _takes_logits_to_keep(model: Any) -> bool:
    """Most models can skip the head for all but some positions; a few have no such argument."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters
