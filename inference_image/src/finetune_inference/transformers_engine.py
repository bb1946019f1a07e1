"""The default engine: transformers and peft, one sequence at a time, on whatever device there is.

It runs the model's own forward pass with its own cache, a slice of the prompt or one token per step, so that greedy
answers are those of `transformers.generate`. Called by the scheduler's thread only; torch is imported with this module.
"""

import inspect
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from finetune_api.serving import ServingConfig
from finetune_inference.adapters import VerifiedAdapter
from finetune_inference.engine import (
    Event,
    Finished,
    FinishReason,
    Generated,
    ModelFacts,
    ModelLoadError,
    PromptScored,
    ScoredToken,
    TokenRequest,
)
from finetune_inference.lora import LoraModel
from finetune_inference.sampling import Sampler, score_rows

log = logging.getLogger(__name__)

PREFILL_SLICE = 1024
"""Prompt tokens per forward pass: bounds memory, and lets a cancelled long prompt go early."""
SCORING_SLICE = 256
"""The same when every position needs its logits: 256 x 150,000 floats are 150 MB. A fingerprint's probe is one slice."""
DEFAULT_CONTEXT = 2048
"""Context length when the model's config does not say."""


@dataclass
class _Sequence:
    """The sequence in work."""

    key: int
    request: TokenRequest
    sampler: Sampler
    stop_ids: frozenset[int]
    cache: Any = None
    """The model's own cache object (keys and values of every layer); None before the first pass."""
    read: int = 0
    """Prompt tokens that are in the cache."""
    scores: list[ScoredToken] = field(default_factory=list)
    last_token: int = 0
    generated: int = 0


class TransformersEngine:
    """`engine.Engine` on transformers and peft."""

    capacity = 1

    def __init__(self, config: ServingConfig, threads: int) -> None:
        self._config = config
        self._threads = threads
        self._sequence: _Sequence | None = None
        self._lora: LoraModel
        self._facts: ModelFacts
        self._forward_options: dict[str, Any]
        self._last_only: dict[str, Any]
        self._stop_ids: frozenset[int]
        self._repetition_penalty: float
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def load_model(self) -> ModelFacts:
        """Read the base model into memory. Raises ModelLoadError."""
        torch.set_num_threads(self._threads)
        transformers_logging.disable_progress_bar()
        model = self._read_model()
        model.eval()
        self._lora = LoraModel(model)
        self._last_only = {"logits_to_keep": 1} if _takes_logits_to_keep(model) else {}
        generation = model.generation_config
        self._stop_ids = _token_ids(generation.eos_token_id or model.config.eos_token_id)
        self._repetition_penalty = generation.repetition_penalty or 1.0
        self._facts = ModelFacts(
            context_length=self._context_length(model.config),
            vocabulary_size=model.get_input_embeddings().weight.shape[0],
            parameters=sum(p.numel() for p in model.parameters()),
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(self._device),
        )
        return self._facts

    def load_adapter(self, adapter: VerifiedAdapter) -> None:
        """Load one adapter beside the others. Raises AdapterRefusedError."""
        self._lora.load(adapter)

    def add(self, key: int, request: TokenRequest) -> None:
        """Take a sequence into work."""
        sampler = Sampler(
            request.sampling, request.prompt, self._facts.vocabulary_size, self._repetition_penalty, self._device
        )
        self._sequence = _Sequence(key, request, sampler, self._stop_ids | request.stop_ids)

    def remove(self, key: int) -> None:
        """Forget a sequence."""
        if self._sequence and self._sequence.key == key:
            self._sequence = None

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Event]]:
        """Read one slice of the prompt, or make one token."""
        sequence = self._sequence
        if sequence is None:
            return []
        try:
            self._lora.activate(sequence.request.adapter)
            events = (
                self._read_prompt(sequence) if sequence.read < len(sequence.request.prompt) else self._decode(sequence)
            )
        except BaseException:
            self._sequence = None
            raise
        if any(isinstance(event, Finished) for event in events):
            self._sequence = None
        return [(sequence.key, event) for event in events]

    def _read_model(self) -> Any:
        wanted = self._config.model
        precision = self._config.precision
        if precision == "auto":
            precision = "bfloat16" if self._device.type == "cuda" else "float32"
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

    def _context_length(self, config: Any) -> int:
        text_config = config.get_text_config()
        limit = getattr(text_config, "max_position_embeddings", None) or DEFAULT_CONTEXT
        return min(limit, self._config.max_model_length or limit)

    def _read_prompt(self, sequence: _Sequence) -> list[Event]:
        """Bring the next slice of the prompt into the cache; with the last one comes the first token."""
        request = sequence.request
        size = SCORING_SLICE if request.score_prompt else PREFILL_SLICE
        ids = request.prompt[sequence.read : sequence.read + size]
        logits = self._forward(sequence, ids, every_position=request.score_prompt)
        if request.score_prompt:
            self._score_slice(sequence, logits)
        sequence.read += len(ids)
        if sequence.read < len(request.prompt):
            return []
        events: list[Event] = [PromptScored(sequence.scores)] if request.score_prompt else []
        if request.max_tokens == 0:
            return [*events, Finished("length", 0)]
        return [*events, *self._next_token(sequence, logits[-1])]

    def _decode(self, sequence: _Sequence) -> list[Event]:
        logits = self._forward(sequence, [sequence.last_token], every_position=False)
        return self._next_token(sequence, logits[-1])

    def _forward(self, sequence: _Sequence, ids: list[int], *, every_position: bool) -> torch.Tensor:
        """Logits [positions, vocabulary] after `ids`: of every position or of the last one. Extends the cache."""
        output = self._lora.model(
            input_ids=torch.tensor([ids], device=self._device),
            past_key_values=sequence.cache,
            use_cache=True,
            **({} if every_position else self._last_only),
        )
        sequence.cache = output.past_key_values
        logits: torch.Tensor = output.logits[0]
        return logits

    def _score_slice(self, sequence: _Sequence, logits: torch.Tensor) -> None:
        """Score the tokens that this slice's positions predict. logits: [slice, vocabulary]."""
        prompt = sequence.request.prompt
        if not sequence.scores:
            sequence.scores.append(ScoredToken(prompt[0]))
        targets = prompt[sequence.read + 1 : sequence.read + 1 + logits.shape[0]]
        sequence.scores += score_rows(logits[: len(targets)], targets, sequence.request.logprobs or 0)

    def _next_token(self, sequence: _Sequence, logits: torch.Tensor) -> list[Event]:
        """Pick a token and say what it means for the sequence. logits: [vocabulary]."""
        logits = logits.float()
        token = sequence.sampler.pick(logits)
        sequence.last_token = token
        sequence.generated += 1
        if token in sequence.stop_ids:
            return [Finished("stop", sequence.generated)]
        top = sequence.request.logprobs
        scored = ScoredToken(token) if top is None else score_rows(logits[None], [token], top)[0]
        reason: FinishReason = "length"
        finished = sequence.generated >= sequence.request.max_tokens
        return [Generated(scored), *([Finished(reason, sequence.generated)] if finished else [])]


def _takes_logits_to_keep(model: Any) -> bool:
    """Most models can skip the head for all but the last position; a few have no such argument."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _token_ids(value: int | list[int] | None) -> frozenset[int]:
    """End tokens as configs write them: one, several or none."""
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)
