"""vLLM as the engine: the same server, adapters and proofs, on a library that is made for large models on GPUs.

vLLM runs in this process and in the scheduler's own thread, one step per call. It gets token ids and gives token ids: text,
queueing, limits and what may be believed of an adapter's folder stay where they are. Where it cannot do what the seam asks
for, it says so (docs/decisions/0022). vLLM and torch are imported with this module.
"""

import hashlib
import itertools
import json
import logging
import math
import os
import secrets
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read when vLLM is imported. One process, so that a step is a call and a logits processor sees our objects; the model runner
# that takes logits processors like `_Watch`; nobody is told that this server exists; and see `max_model_len`.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from finetune_api.artifacts import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from finetune_api.serving import ServingConfig
from finetune_inference.adapters.verification import AdapterRefusedError
from finetune_inference.backends.defaults import CACHE_SHARE, NOT_NUMBERS
from finetune_inference.backends.transformers.lora import PREFIX, LoraLoader
from finetune_inference.backends.transformers.lora_merge import merge
from finetune_inference.backends.transformers.sampling import GREEDY_BELOW, forbidden, keep_top_p
from finetune_inference.config import Settings
from finetune_inference.engine.interface import (
    MAX_TOP_LOGPROBS,
    Event,
    Failed,
    Finished,
    Generated,
    ModelFacts,
    ModelLoadError,
    PromptScored,
    Refused,
    ScoredToken,
    TokenRequest,
    VerifiedAdapter,
)
from finetune_model.model_files import context_length, resolve_precision, token_ids
from finetune_model.process import available_cpus, spare_memory

log = logging.getLogger(__name__)

STEP_TOKENS = 256
"""Of prompts and answers together, on a CPU; it also bounds the logits of scored prompts."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM can be told as the highest rank of an adapter."""
LEAST_TOP_P = 1e-9
"""vLLM takes none of 0, which means the likeliest token alone; so does this."""


@dataclass(frozen=True, eq=False)
class VllmAdapter:
    """One version of an adapter; vLLM reads it from a folder of its own, which is there as long as this object."""

    request: LoRARequest
    size_bytes: int
    """Of its tensors: in the folder, and in memory where it was used lately."""


@dataclass(eq=False)
class _Sequence:
    """A request on its way through vLLM."""

    request: TokenRequest
    stop_ids: frozenset[int]
    generated: int = 0
    """Tokens of the answer, the ending one included."""
    broken: bool = False
    """There was no likeliest token."""


class VllmEngine:
    """`engine.Engine` on vLLM."""

    _computing = threading.Lock()
    """Held while vLLM does anything. It knows one thread at a time, and keeps in globals what it is at: so this is one for
    all engines of the process."""
    _nobody_waits = threading.Event()
    """Not set while somebody waits for that lock: between two steps it is free for too short a time to be got."""
    _nobody_waits.set()

    def __init__(self, config: ServingConfig, settings: Settings) -> None:
        self.capacity = settings.max_running
        self._config = config
        self._settings = settings
        self._sequences: dict[int, _Sequence] = {}
        """By key."""
        self._engine: LLMEngine
        self._loader: LoraLoader
        self._blocks: Any
        self._worker: Any
        self._block_tokens: int
        self._head: str
        """Path of the module that makes logits."""
        self._stop_ids: frozenset[int]
        self._repetition_penalty: float
        self._no_adapter: LoRARequest | None = None
        """What a sequence without an adapter is asked with."""
        self._numbers = itertools.count(1)
        """vLLM takes what has the same number, or name, for the same adapter; so each version has its own."""
        self._forgotten: deque[int] = deque()
        """Numbers of adapters that nobody refers to any more."""

    @property
    def cached_tokens(self) -> int:
        """Tokens that room for keys and values is taken for; 0 if nothing is in work. Any thread may ask."""
        # One block is never given out.
        taken: int = self._blocks.num_gpu_blocks - 1 - self._blocks.get_num_free_blocks()
        return taken * self._block_tokens

    @property
    def spare_memory(self) -> int:
        """Bytes that this process may still use; what vLLM's own process has left on its device it does not say."""
        return spare_memory()

    def load_model(self, merged: VerifiedAdapter | None = None) -> ModelFacts:
        """Read the base model into memory, and an adapter into its weights. Raises ModelLoadError or AdapterRefusedError."""
        wanted = self._config.model
        try:
            with tempfile.TemporaryDirectory(prefix="merged-") as folder:
                path = self._merged(merged, Path(folder)) if merged else wanted.path
                return self._load(path, None if merged else wanted.revision, with_adapters=merged is None)
        except (AdapterRefusedError, ModelLoadError):
            raise
        except Exception as error:
            # vLLM raises whatever its layers raise: wrong files, an architecture that it lacks, too little memory.
            raise ModelLoadError(
                f"base model {wanted.name} cannot be loaded from {wanted.path} by vLLM: {type(error).__name__}: {error}"
            ) from error

    def load_adapter(self, adapter: VerifiedAdapter) -> VllmAdapter:
        """Read one adapter into memory. Raises AdapterRefusedError."""
        scalings, tensors = self._loader.read(adapter)
        if self._head in scalings:
            raise AdapterRefusedError(
                f"{adapter.directory} tunes {self._head}, and vLLM cannot score prompts with that beside others, which the proof of "
                "an adapter needs; merge the adapter, or serve it with the engine transformers"
            )
        number = next(self._numbers)
        folder = tempfile.TemporaryDirectory(prefix="adapter-")
        try:
            request = _written(Path(folder.name), number, adapter.lora, tensors)
            with self._between_steps():
                self._engine.add_lora(request)
        except Exception as error:
            # A ValueError for what vLLM knows that it cannot do, and anything else for what it does not.
            folder.cleanup()
            raise AdapterRefusedError(f"vLLM cannot serve {adapter.directory}: {error}") from None
        loaded = VllmAdapter(request, sum(tensor.nbytes for tensor in tensors.values()))
        weakref.finalize(loaded, _forget, folder, number, self._forgotten)
        return loaded

    def add(self, key: int, request: TokenRequest) -> None:
        """Take a sequence into work."""
        lora = request.weights.request if isinstance(request.weights, VllmAdapter) else self._no_adapter
        sequence = _Sequence(request, self._stop_ids | request.stop_ids)
        prompt = tokens_input(request.prompt)
        with self._computing:
            self._engine.add_request(str(key), prompt, self._sampling(sequence), lora_request=lora)
        self._sequences[key] = sequence

    def remove(self, key: int) -> None:
        """Forget a sequence."""
        if self._sequences.pop(key, None):
            with self._computing:
                self._engine.abort_request([str(key)])

    def step(self) -> list[tuple[int, Event]]:
        """One token for each sequence that answers, and the next slices of prompts."""
        if not self._sequences:
            return []
        self._nobody_waits.wait()
        try:
            with self._computing:
                while self._forgotten:
                    self._engine.remove_lora(self._forgotten.popleft())
                outputs = self._engine.step()
        except BaseException:
            keys = [str(key) for key in self._sequences]
            self._sequences.clear()
            with self._computing:
                self._engine.abort_request(keys)
            raise
        events: list[tuple[int, Event]] = []
        for output in outputs:
            assert isinstance(output, RequestOutput)  # noqa: S101 - nothing else was asked for
            key = int(output.request_id)
            events += [(key, event) for event in _taken(self._sequences[key], output)]
        broken = [key for key, sequence in self._sequences.items() if sequence.broken]
        events += [(key, Failed(NOT_NUMBERS)) for key in broken]
        for key, event in events:
            if isinstance(event, Finished | Failed):
                self.remove(key)
        if broken:
            self._clean()
        return events

    def _clean(self) -> None:
        """Take what is no number out of the cache: attention multiplies it by 0, and whoever got the room next would break."""
        with self._computing, torch.inference_mode():
            for cache in self._worker.model_runner.kv_caches:
                cache.nan_to_num_(0.0, 0.0, 0.0)

    @property
    def _dtype(self) -> str:
        return resolve_precision(self._config.precision, on_gpu=current_platform.device_type != "cpu")

    @contextmanager
    def _between_steps(self) -> Iterator[None]:
        self._nobody_waits.clear()
        try:
            with self._computing:
                yield
        finally:
            self._nobody_waits.set()

    def _load(self, path: str, revision: str | None, *, with_adapters: bool) -> ModelFacts:
        device, dtype = current_platform.device_type, self._dtype
        log.info("loading base model %s from %s as %s on %s by vLLM", self._config.model.name, path, dtype, device)
        config = AutoConfig.from_pretrained(path, revision=revision or "main", trust_remote_code=False)
        with torch.device("meta"):
            # What adapters are compared with; it has no storage.
            shape = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        head = shape.get_output_embeddings()
        self._head = next((name for name, module in shape.named_modules() if module is head), "")
        parameters = sum(p.numel() for p in shape.parameters())
        limit = context_length(config)
        longest = min(limit, self._config.max_model_length or limit)
        if device == "cpu":
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            os.environ["OMP_NUM_THREADS"] = str(self._settings.threads or available_cpus())
        arguments = EngineArgs(
            model=path,
            revision=revision,
            tokenizer_revision=revision,
            skip_tokenizer_init=True,
            load_format="safetensors",
            generation_config="vllm",
            dtype=dtype,
            seed=secrets.randbits(31),
            # It reads no prompt that leaves no room for a token, though nothing is computed for that one.
            max_model_len=longest + 1,
            max_num_seqs=self.capacity,
            max_logprobs=MAX_TOP_LOGPROBS,
            # An answer depends on nothing that was asked before it, and what an adapter broke is never read again.
            enable_prefix_caching=False,
            # A step's outcome is known when it ends, so that a constraint can say what may follow.
            async_scheduling=False,
            logits_processors=[_Watch, _Seeds],
            **self._memory(device, parameters * getattr(torch, dtype).itemsize, longest),
            **(self._lora(device, _tunable(shape, self._head)) if with_adapters else {}),
        )
        self._engine = engine = LLMEngine.from_engine_args(arguments)
        # There is no public way to ask; `get_metrics` would need vLLM's statistics, which cost time in every step.
        core: Any = engine.engine_core
        # It would take the process groups from all engines of the process, once this one is not used any more.
        core._finalizer.detach()  # noqa: SLF001
        self._blocks = core.engine_core.scheduler.kv_cache_manager.block_pool
        self._worker = core.engine_core.model_executor.driver_worker.worker
        self._block_tokens = engine.vllm_config.cache_config.block_size
        generation = _generation_config(path, revision, config)
        self._stop_ids = token_ids(generation.eos_token_id or config.eos_token_id)
        self._repetition_penalty = generation.repetition_penalty or 1.0
        self._loader = LoraLoader(shape)
        if with_adapters and device == "cpu":
            # vLLM's CPU kernels take "no adapter", which is -1, for the last one, whenever others in the step have one.
            self._no_adapter = self._zero_adapter(shape)
        return ModelFacts(
            context_length=longest,
            vocabulary_size=shape.get_input_embeddings().weight.shape[0],
            parameters=parameters,
            dtype=dtype,
            device=device,
        )

    def _memory(self, device: str, weights: int, longest: int) -> dict[str, Any]:
        """Arguments that say how much is computed and kept at once."""
        arguments: dict[str, Any] = {}
        if device == "cpu":
            # Compiling takes minutes and a compiler, and vLLM would take most of the machine for keys and values.
            arguments["enforce_eager"] = True
            arguments["max_num_batched_tokens"] = max(STEP_TOKENS, self.capacity)
            spare = spare_memory()
            if spare <= weights:
                raise ModelLoadError(
                    f"base model {self._config.model.name} takes {weights >> 20} MiB, and {spare >> 20} MiB are to be had: "
                    "give the pod more memory, or wait until others on its node need less"
                )
            arguments["kv_cache_memory_bytes"] = (spare - weights) // CACHE_SHARE
        if self._settings.max_cached_tokens:
            block = 128 if device == "cpu" else 16
            tokens = max(self._settings.max_cached_tokens, longest + 1)
            arguments |= {"block_size": block, "num_gpu_blocks_override": -(-tokens // block) + 1}
        return arguments

    def _lora(self, device: str, modules: list[str]) -> dict[str, Any]:
        rank = next((rank for rank in RANKS if rank >= self._settings.max_lora_rank), None)
        if rank is None:
            raise ModelLoadError(
                f"FINETUNE_SERVER_MAX_LORA_RANK is {self._settings.max_lora_rank}; vLLM serves ranks of {RANKS[-1]} or less"
            )
        slots = self._settings.max_batched_adapters + int(device == "cpu")
        return {
            "enable_lora": True,
            "max_lora_rank": rank,
            "max_loras": slots,
            "max_cpu_loras": slots,
            # Not the head: with it, a prompt that is scored beside others would end the step for all of them.
            "lora_target_modules": modules,
        }

    def _zero_adapter(self, shape: Any) -> LoRARequest:
        """An adapter that adds nothing. One module is enough: vLLM clears those that an adapter says nothing of."""
        name, module = next((n, m) for n, m in shape.named_modules() if isinstance(m, torch.nn.Linear))
        self._folder = tempfile.TemporaryDirectory(prefix="no-adapter-")
        lora = {"r": 1, "lora_alpha": 1, "target_modules": [name.rpartition(".")[2]]}
        tensors = {
            f"{PREFIX}{name}.lora_A.weight": torch.zeros(1, module.in_features),
            f"{PREFIX}{name}.lora_B.weight": torch.zeros(module.out_features, 1),
        }
        return _written(Path(self._folder.name), next(self._numbers), lora, tensors)

    def _merged(self, adapter: VerifiedAdapter, folder: Path) -> str:
        """Write the base model with an adapter as a part of its weights into `folder`."""
        wanted = self._config.model
        model: Any = AutoModelForCausalLM.from_pretrained(
            wanted.path,
            revision=wanted.revision or "main",
            dtype=getattr(torch, self._dtype),
            use_safetensors=True,
            trust_remote_code=False,
        )
        before = set(model.state_dict())
        merge(model, LoraLoader(model).load(adapter))
        added = set(model.state_dict()) - before
        if added:
            raise AdapterRefusedError(
                f"{adapter.directory} adds {', '.join(sorted(added)[:3])}, for which vLLM has no place in this model; serve it with "
                "the engine transformers"
            )
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        model.config.tie_word_embeddings = head is not None and head.weight is embedding.weight
        model.save_pretrained(folder)
        return str(folder)

    def _sampling(self, sequence: _Sequence) -> SamplingParams:
        request, sampling = sequence.request, sequence.request.sampling
        return SamplingParams(
            temperature=0.0 if sampling.temperature < GREEDY_BELOW else sampling.temperature,
            top_p=max(sampling.top_p, LEAST_TOP_P),
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            repetition_penalty=self._repetition_penalty,
            logit_bias=sampling.logit_bias or None,
            # vLLM answers with a token at least; the one too many is dropped.
            max_tokens=max(1, request.max_tokens),
            ignore_eos=True,
            stop_token_ids=sorted(sequence.stop_ids),
            logprobs=request.logprobs,
            prompt_logprobs=(request.logprobs or 0) if request.score_prompt else None,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            # The sequence itself has to arrive at `_Watch`, not a copy.
            extra_args={"sequence": sequence},
            skip_clone=True,
        )


class _Rows(LogitsProcessor):  # type: ignore[misc] # of a library that is not installed where types are checked
    """Knows which row of a step's logits is whose."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, _Sequence] = {}

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the rows of the batch."""
        process_dict_updates(self._rows, batch_update, lambda params, *_: (params.extra_args or {}).get("sequence"))


class _Watch(_Rows):
    """Holds answers to their constraints, and notes the sequences that have no likeliest token."""

    def is_argmax_invariant(self) -> bool:
        """A constraint changes what is likeliest."""
        return False

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """logits: [sequences, vocabulary], before anything else; changed in place."""
        # The largest logit is NaN if any is, and infinite if there is no probability to speak of.
        usable = logits.amax(dim=-1).isfinite().tolist()
        for row, sequence in self._rows.items():
            if not usable[row]:
                sequence.broken = True
                logits[row] = 0.0
            elif sequence.request.constraint is not None:
                logits[row].masked_fill_(forbidden(sequence.request.constraint.allowed, logits[row]), -torch.inf)
        return logits


class _Seeds(_Rows):
    """Picks the tokens of sequences with a seed.

    vLLM's own way ends the step for everybody when a prompt is read in slices on a CPU, and takes one of the seeds for none.
    """

    def is_argmax_invariant(self) -> bool:
        """Only asked where tokens are drawn."""
        return True

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """logits: [sequences, vocabulary], after penalties and temperature, before top_p; changed in place."""
        for row, sequence in self._rows.items():
            sampling = sequence.request.sampling
            if sampling.seed is None or sampling.temperature < GREEDY_BELOW:
                continue
            probabilities = torch.softmax(logits[row], dim=-1)
            if sampling.top_p < 1.0:
                probabilities = keep_top_p(probabilities, sampling.top_p)
            # By the token's number and not by what was drawn before, so that slices of a prompt, where it is drawn in vain,
            # make no difference.
            generator = torch.Generator(logits.device).manual_seed(_mixed(sampling.seed, sequence.generated))
            token = torch.multinomial(probabilities, 1, generator=generator)
            logits[row] = -torch.inf
            logits[row, token] = 0.0
        return logits


def _taken(sequence: _Sequence, output: RequestOutput) -> list[Event]:
    """What one step of vLLM means for a sequence."""
    request = sequence.request
    events: list[Event] = []
    if request.score_prompt and output.prompt_logprobs:
        scores = [
            ScoredToken(request.prompt[0]),
            *_scored(request.prompt[1:], output.prompt_logprobs, 1, request.logprobs),
        ]
        sequence.broken |= any(math.isnan(score.logprob or 0.0) for score in scores)
        events.append(PromptScored(scores))
    (completion,) = output.outputs
    tokens = list(completion.token_ids)
    if sequence.broken:
        return []
    if not tokens:
        return events
    if request.max_tokens == 0:
        return [*events, Finished("length", 0)]
    scored = (
        [ScoredToken(token) for token in tokens]
        if request.logprobs is None
        else _scored(tokens, completion.logprobs, 0, request.logprobs)
    )
    for token in scored:
        events += _token(sequence, token)
    return events


def _token(sequence: _Sequence, token: ScoredToken) -> list[Event]:
    """Note a token of the answer and say what it means."""
    sequence.generated += 1
    if token.token_id in sequence.stop_ids:
        return [Finished("stop", sequence.generated)]
    constraint = sequence.request.constraint
    if constraint:
        try:
            constraint.take(token.token_id)
        except ValueError as error:
            return [Refused(str(error))]
        if constraint.complete:
            return [Generated(token), Finished("stop", sequence.generated)]
    if sequence.generated >= sequence.request.max_tokens:
        return [Generated(token), Finished("length", sequence.generated)]
    return [Generated(token)]


def _scored(tokens: list[int], scores: Any, first: int, top: int | None) -> list[ScoredToken]:
    """Tokens with their scores, the first of which is at position `first` of vLLM's: the token's own, then the likeliest."""
    scored = []
    for position, token in enumerate(tokens, start=first):
        begin = scores.start_indices[position]
        end = min(scores.end_indices[position], begin + 1 + (top or 0))
        likeliest = zip(scores.token_ids[begin + 1 : end], scores.logprobs[begin + 1 : end], strict=True)
        scored.append(ScoredToken(token, scores.logprobs[begin], tuple(likeliest)))
    return scored


def _tunable(shape: Any, head: str) -> list[str]:
    """Last parts of the paths of modules that adapters may tune."""
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    names = {name for name, module in shape.named_modules() if isinstance(module, kinds) and name != head}
    return sorted({name.rpartition(".")[2] for name in names})


def _written(folder: Path, number: int, lora: dict[str, Any], tensors: dict[str, torch.Tensor]) -> LoRARequest:
    """An adapter in a folder of its own: vLLM reads it again whenever it had made room for others."""
    save_file(tensors, folder / ADAPTER_WEIGHTS_FILE)
    (folder / ADAPTER_CONFIG_FILE).write_text(json.dumps({"peft_type": "LORA", **lora}))
    return LoRARequest(f"adapter-{number}", number, str(folder))


def _mixed(seed: int, number: int) -> int:
    """64 bits, as the generators of CPUs look at half of them."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest(), "little")


def _generation_config(path: str, revision: str | None, config: Any) -> Any:
    """As transformers finds it: in a file of its own, or in the model's."""
    try:
        return GenerationConfig.from_pretrained(path, revision=revision or "main")
    except OSError:
        return GenerationConfig.from_model_config(config)


def _forget(folder: "tempfile.TemporaryDirectory[str]", number: int, forgotten: deque[int]) -> None:
    folder.cleanup()
    forgotten.append(number)
