"""What chats and completions have in common: from a request's fields to token requests, and counting what came of it."""

import asyncio
import hashlib
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field

from finetune_inference.adapters.registry import LoadedModel
from finetune_inference.api.errors import invalid_value
from finetune_inference.api.metrics import Metrics
from finetune_inference.api.schemas import GenerationRequest, Usage
from finetune_inference.engine.interface import Constraint, Sampling, TokenRequest
from finetune_inference.inference import InferenceService
from finetune_inference.text.answer_decoder import TextDelta


@dataclass(frozen=True)
class ServerState:
    """What every route works with."""

    service: InferenceService
    metrics: Metrics
    # Threads of their own for what may take seconds: in asyncio's pool, which has few, prompts of others would wait for it.
    reading: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, "read-adapter"))
    """Reads adapters again and promotes them; one at a time is all that the registry does."""
    compiling: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, "compile-schema"))
    """Compiles the schemas of answers."""


async def served_model(serving: ServerState, name: str) -> LoadedModel:
    """What a name means now, in memory. Raises NotReadyError or UnknownModelError."""
    served = serving.service.model(name)
    if served.in_memory:
        return served
    return await asyncio.get_running_loop().run_in_executor(serving.reading, serving.service.reload, name)


def token_requests(
    service: InferenceService,
    served: LoadedModel,
    body: GenerationRequest,
    prompts: list[list[int]],
    *,
    max_tokens: int | None,
    logprobs: int | None,
    score_prompt: bool = False,
    constraint: Constraint | None = None,
) -> list[TokenRequest]:
    """One token request per answer: `n` for each prompt, in OpenAI's order. Raises ApiError or ContextLengthError."""
    limit = service.settings.max_output_tokens
    if max_tokens is not None and max_tokens > limit:
        field = body.limit_field
        raise invalid_value(f"{field} is {max_tokens}; this server allows {limit} or less.", field)
    if len(prompts) * body.choices > service.settings.max_sequences_per_request:
        raise invalid_value(
            f"{len(prompts)} prompts times n = {body.choices} is more than the "
            f"{service.settings.max_sequences_per_request} answers that one request may ask for.",
            "n",
        )
    _check_ids(service, body, prompts)
    return [
        TokenRequest(
            prompt=prompt,
            adapter=served.adapter_name,
            weights=served.weights,
            max_tokens=service.fit(prompt, max_tokens),
            sampling=_sampling(body, choice),
            stop_ids=served.vocabulary.stop_ids,
            logprobs=logprobs,
            score_prompt=score_prompt,
            constraint=constraint.copy() if constraint else None,
        )
        for prompt in prompts
        for choice in range(body.choices)
    ]


@dataclass
class UsageCounter:
    """Counts the tokens of one request and times its first one."""

    metrics: Metrics
    model: str
    prompt_tokens: int
    """Of all prompts together; a prompt counts once, however many answers it gets."""
    completion_tokens: int = 0
    _started: float = field(default_factory=time.monotonic)
    _latest: dict[int, float] = field(default_factory=dict)
    """When each answer got its latest token."""

    def __post_init__(self) -> None:
        self._label = self.metrics.label(self.model)
        self.metrics.prompt_tokens.labels(self._label).inc(self.prompt_tokens)

    def count(self, index: int, delta: TextDelta) -> None:
        """Take note of a delta of one of the answers."""
        now = time.monotonic()
        if not self._latest:
            self.metrics.first_token_seconds.labels(self._label).observe(now - self._started)
        if delta.token is not None and index in self._latest:
            self.metrics.inter_token_seconds.labels(self._label).observe(now - self._latest[index])
        self._latest[index] = now
        if delta.completion_tokens:
            self.completion_tokens += delta.completion_tokens
            self.metrics.completion_tokens.labels(self._label).inc(delta.completion_tokens)

    @property
    def usage(self) -> Usage:
        """What the client is told."""
        return Usage.of(self.prompt_tokens, self.completion_tokens)


def system_fingerprint(service: InferenceService, served: LoadedModel) -> str:
    """OpenAI's word for what else an answer depends on: the same seed and fingerprint give the same answer."""
    base, facts = service.config.model, service.facts
    adapter = served.adapter.digest if served.adapter else ""
    parts = [base.path, base.revision or "", adapter, facts.dtype, facts.device]
    return f"fp_{hashlib.sha256(chr(0).join(parts).encode(errors='replace')).hexdigest()[:12]}"


def _sampling(body: GenerationRequest, choice: int) -> Sampling:
    """OpenAI's defaults: temperature and top_p are 1. Answers to the same prompt get seeds of their own."""
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        # Wraps where a signed 64-bit integer ends, because the next one would be refused.
        seed=None if body.seed is None else (body.seed + choice + 2**63) % 2**64 - 2**63,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        logit_bias=body.logit_bias or {},
    )


def _check_ids(service: InferenceService, body: GenerationRequest, prompts: list[list[int]]) -> None:
    """Raise ApiError if there is a token id that the model does not have."""
    size = service.facts.vocabulary_size
    for param, ids in [("prompt", prompt) for prompt in prompts] + [("logit_bias", list(body.logit_bias or {}))]:
        if ids and max(ids) >= size:
            raise invalid_value(f"{param}: token id {max(ids)} does not exist; the model has {size} tokens.", param)
