"""vLLM as the engine: `engine.Engine` on `LLMEngine`.

vLLM runs in this process and in the scheduler's thread, one step per call. It gets and returns token ids: text, queueing,
limits and the verification of adapter folders stay outside. Where it cannot do what the interface asks for, it refuses with a
reason (docs/decisions/0022). Importing this module imports vLLM and torch.
"""

import itertools
import logging
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm import LLMEngine, SamplingParams
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from finetune_api.serving import ServingConfig
from finetune_inference.adapters.verification import AdapterRefusedError
from finetune_inference.backends.common.defaults import NOT_FINITE
from finetune_inference.backends.common.lora_loader import LoraLoader
from finetune_inference.backends.common.sampling import GREEDY_BELOW
from finetune_inference.backends.vllm.loading import (
    engine_arguments,
    longest_sequence,
    read_source,
    write_adapter,
    write_merged,
    write_zero_adapter,
)
from finetune_inference.backends.vllm.logits_processors import picks_candidates
from finetune_inference.backends.vllm.outputs import output_events
from finetune_inference.backends.vllm.vllm_sequence import VllmSequence
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
from finetune_model.process import spare_memory

log = logging.getLogger(__name__)

LEAST_TOP_P = 1e-9
"""Replacement for top_p = 0 (greedy), which vLLM rejects; the smallest positive value gives the same result."""


@dataclass(frozen=True, eq=False)
class VllmAdapter:
    """One version of an adapter. vLLM reads it from a folder that exists as long as this object."""

    request: LoRARequest
    size_bytes: int
    """Size of the tensors: in the folder, and in memory after recent use."""


class VllmEngine:
    """`engine.Engine` on vLLM."""

    _computing = threading.Lock()
    """Held during every call of vLLM. It supports one thread at a time and keeps its state in globals, so one lock serves all
    engines of the process."""
    _no_waiters = threading.Event()
    """Cleared while a thread waits for the lock, because `step` frees it too briefly between two steps to acquire it."""
    _no_waiters.set()

    def __init__(self, config: ServingConfig, settings: Settings) -> None:
        self.capacity = settings.max_running
        self._config = config
        self._settings = settings
        self._sequences: dict[int, VllmSequence] = {}
        """Running sequences by key."""
        self._engine: LLMEngine
        self._loader: LoraLoader
        self._blocks: Any
        self._worker: Any
        self._block_tokens: int
        self._head: str
        """Path of the module that computes logits."""
        self._stop_ids: frozenset[int]
        self._repetition_penalty: float
        self._no_adapter: LoRARequest | None = None
        """Adapter of sequences without an adapter; None if vLLM needs none for them."""
        self._numbers = itertools.count(1)
        """Numbers of adapter versions; vLLM identifies an adapter by its number and name."""
        self._unreferenced: deque[int] = deque()
        """Numbers of adapters without references, which the next step removes."""

    @property
    def cached_tokens(self) -> int:
        """Tokens reserved in the KV cache; 0 if no sequence runs. Any thread may read it."""
        # vLLM never assigns one of its blocks.
        taken: int = self._blocks.num_gpu_blocks - 1 - self._blocks.get_num_free_blocks()
        return taken * self._block_tokens

    @property
    def spare_memory(self) -> int:
        """Free bytes of this process; vLLM does not report those of its device."""
        return spare_memory()

    def load_model(self, merged: VerifiedAdapter | None = None) -> ModelFacts:
        """Load the base model and, if given, merge an adapter into its weights. Raises ModelLoadError or AdapterRefusedError."""
        wanted = self._config.model
        try:
            with tempfile.TemporaryDirectory(prefix="merged-") as folder:
                path = write_merged(self._config, merged, Path(folder)) if merged else wanted.path
                return self._load(path, None if merged else wanted.revision, with_adapters=merged is None)
        except (AdapterRefusedError, ModelLoadError):
            raise
        except Exception as error:
            # vLLM raises any exception of its layers: wrong files, an unsupported architecture, too little memory.
            raise ModelLoadError(
                f"base model {wanted.name} cannot be loaded from {wanted.path} by vLLM: {type(error).__name__}: {error}"
            ) from error

    def load_adapter(self, adapter: VerifiedAdapter) -> VllmAdapter:
        """Read one adapter into memory. Raises AdapterRefusedError."""
        scalings, tensors = self._loader.read(adapter)
        if self._head in scalings:
            raise AdapterRefusedError(
                f"{adapter.directory} tunes {self._head}, and vLLM cannot score prompts with a tuned head beside other sequences, "
                "which the verification of an adapter needs; set mergeAdapter to true, or use the engine transformers"
            )
        number = next(self._numbers)
        folder = tempfile.TemporaryDirectory(prefix="adapter-")
        try:
            request = write_adapter(Path(folder.name), number, adapter.lora, tensors)
            with self._between_steps():
                self._engine.add_lora(request)
        except Exception as error:
            # A ValueError for known limits of vLLM, and any other exception for unknown ones.
            folder.cleanup()
            raise AdapterRefusedError(f"vLLM cannot serve {adapter.directory}: {error}") from None
        loaded = VllmAdapter(request, sum(tensor.nbytes for tensor in tensors.values()))
        weakref.finalize(loaded, _release, folder, number, self._unreferenced)
        return loaded

    def add(self, key: int, request: TokenRequest) -> None:
        """Start a sequence."""
        lora = request.weights.request if isinstance(request.weights, VllmAdapter) else self._no_adapter
        stop_ids = request.stop_ids if request.ignore_eos else self._stop_ids | request.stop_ids
        sequence = VllmSequence(request, stop_ids)
        prompt = tokens_input(request.prompt)
        with self._computing:
            self._engine.add_request(str(key), prompt, self._sampling_params(sequence), lora_request=lora)
        self._sequences[key] = sequence

    def remove(self, key: int) -> None:
        """Drop a sequence and free its cache."""
        if self._sequences.pop(key, None):
            with self._computing:
                self._engine.abort_request([str(key)])

    def step(self) -> list[tuple[int, Event]]:
        """Compute one token of each sequence in decode, and the next chunks of prompts."""
        if not self._sequences:
            return []
        self._no_waiters.wait()
        try:
            with self._computing:
                while self._unreferenced:
                    self._engine.remove_lora(self._unreferenced.popleft())
                outputs = self._engine.step()
        except BaseException:
            keys = [str(key) for key in self._sequences]
            self._sequences.clear()
            with self._computing:
                self._engine.abort_request(keys)
            raise
        events: list[tuple[int, Event]] = []
        for output in outputs:
            assert isinstance(output, RequestOutput)  # noqa: S101 - no other type was requested
            key = int(output.request_id)
            events += [(key, event) for event in output_events(self._sequences[key], output)]
        broken = [key for key, sequence in self._sequences.items() if sequence.broken]
        events += [(key, Failed(NOT_FINITE)) for key in broken]
        for key, event in events:
            if isinstance(event, Finished | Failed):
                self.remove(key)
        if broken:
            self._clean_cache()
        return events

    def _clean_cache(self) -> None:
        """Replace NaN and infinity in the KV cache by 0. Attention multiplies free blocks by 0, which would spread NaN."""
        with self._computing, torch.inference_mode():
            for cache in self._worker.model_runner.kv_caches:
                cache.nan_to_num_(0.0, 0.0, 0.0)

    @contextmanager
    def _between_steps(self) -> Iterator[None]:
        self._no_waiters.clear()
        try:
            with self._computing:
                yield
        finally:
            self._no_waiters.set()

    def _load(self, path: str, revision: str | None, *, with_adapters: bool) -> ModelFacts:
        source = read_source(self._config, path, revision)
        log.info(
            "Loading base model %s from %s as %s on %s with vLLM",
            self._config.model.name,
            path,
            source.dtype,
            source.device,
        )
        arguments = engine_arguments(self._config, self._settings, source, with_adapters=with_adapters)
        self._engine = engine = LLMEngine.from_engine_args(arguments)
        # vLLM has no public access to these; `get_metrics` would need its statistics, which cost time in every step.
        core: Any = engine.engine_core
        # Its finalizer would destroy the process groups of all engines of the process.
        core._finalizer.detach()  # noqa: SLF001
        self._blocks = core.engine_core.scheduler.kv_cache_manager.block_pool
        self._worker = core.engine_core.model_executor.driver_worker.worker
        self._block_tokens = engine.vllm_config.cache_config.block_size
        self._head = source.head
        self._stop_ids, self._repetition_penalty = source.generation_defaults()
        self._loader = LoraLoader(source.shape)
        if with_adapters and source.device == "cpu":
            # vLLM's CPU kernels take "no adapter", which is -1, for the last adapter if other sequences of the step have one.
            self._folder = tempfile.TemporaryDirectory(prefix="no-adapter-")
            self._no_adapter = write_zero_adapter(Path(self._folder.name), next(self._numbers), source.shape)
        return ModelFacts(
            context_length=longest_sequence(self._config, source),
            vocabulary_size=source.shape.get_input_embeddings().weight.shape[0],
            parameters=source.parameters,
            dtype=source.dtype,
            device=source.device,
        )

    def _sampling_params(self, sequence: VllmSequence) -> SamplingParams:
        request, sampling = sequence.request, sequence.request.sampling
        own = sampling.repetition_penalty
        vllm_picks = not picks_candidates(sampling)
        return SamplingParams(
            temperature=0.0 if sampling.temperature < GREEDY_BELOW else sampling.temperature,
            top_p=max(sampling.top_p, LEAST_TOP_P) if vllm_picks else 1.0,
            top_k=sampling.top_k if vllm_picks else 0,
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            repetition_penalty=self._repetition_penalty if own is None else own,
            logit_bias=sampling.logit_bias or None,
            # vLLM generates at least one token; a surplus one is dropped.
            max_tokens=max(1, request.max_tokens),
            ignore_eos=True,
            stop_token_ids=sorted(sequence.stop_ids),
            logprobs=request.logprobs,
            prompt_logprobs=(request.logprobs or 0) if request.score_prompt else None,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            # `WatchLogits` needs the sequence itself, not a copy.
            extra_args={"sequence": sequence},
            skip_clone=True,
        )


def _release(folder: "tempfile.TemporaryDirectory[str]", number: int, unreferenced: deque[int]) -> None:
    folder.cleanup()
    unreferenced.append(number)
