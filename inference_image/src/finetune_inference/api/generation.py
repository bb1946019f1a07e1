"""Steps that chats and completions share: from a request's fields to token requests, and counting tokens."""

import asyncio
import hashlib
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field

from fastapi import Request

from finetune_inference.adapters.registry import LoadedModel
from finetune_inference.api.errors import invalid_value
from finetune_inference.api.metrics import Metrics
from finetune_inference.api.requests import GenerationRequest
from finetune_inference.api.responses import Usage
from finetune_inference.engine.interface import Constraint, Sampling, TokenRequest
from finetune_inference.inference import InferenceService
from finetune_inference.text.answer_decoder import TextDelta


@dataclass(frozen=True)
class ServerState:
    """State that all routes share."""

    service: InferenceService
    metrics: Metrics
    # Separate threads for work of seconds, because in asyncio's small pool the prompts of other requests would wait for it.
    reading: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, "read-adapter"))
    """Loads evicted adapters and promotes candidates; one thread, because the registry changes one adapter at a time."""
    compiling: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, "compile-schema"))
    """Compiles schemas."""


def server_state(request: Request) -> ServerState:
    """Return the state of the application that serves `request`."""
    state: ServerState = request.app.state.server
    return state


async def served_model(server: ServerState, name: str) -> LoadedModel:
    """Resolve a model name, and load the adapter if it was evicted. Raises NotReadyError or UnknownModelError."""
    served = server.service.model(name)
    if served.in_memory:
        return served
    return await asyncio.get_running_loop().run_in_executor(server.reading, server.service.reload, name)


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
    """Make one token request per answer: `n` for each prompt, in OpenAI's order. Raises ApiError or ContextLengthError."""
    limit = service.settings.max_output_tokens
    if max_tokens is not None and max_tokens > limit:
        field = body.limit_field
        raise invalid_value(f"{field} is {max_tokens}; this server allows {limit} or less.", field)
    if len(prompts) * body.choices > service.settings.max_sequences_per_request:
        raise invalid_value(
            f"{len(prompts)} prompts times n = {body.choices} exceed the "
            f"{service.settings.max_sequences_per_request} answers that this server allows per request.",
            "n",
        )
    _check_ids(service, served, body, prompts)
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
    """Counts the tokens of one request and measures their latency."""

    metrics: Metrics
    model: str
    prompt_tokens: int
    """Tokens of all prompts together; a prompt counts once, for any number of answers."""
    completion_tokens: int = 0
    _started: float = field(default_factory=time.monotonic)
    _latest: dict[int, float] = field(default_factory=dict)
    """Monotonic seconds of the latest token, by answer."""

    def __post_init__(self) -> None:
        self._label = self.metrics.label(self.model)
        self.metrics.prompt_tokens.labels(self._label).inc(self.prompt_tokens)

    def count(self, index: int, delta: TextDelta) -> None:
        """Count a delta of one of the answers."""
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
        """Token counts for the response."""
        return Usage.of(self.prompt_tokens, self.completion_tokens)


def system_fingerprint(service: InferenceService, served: LoadedModel) -> str:
    """Return OpenAI's system fingerprint: the same seed and the same fingerprint give the same answer."""
    base, facts = service.config.model, service.facts
    adapter = served.adapter.digest if served.adapter else ""
    parts = [base.path, base.revision or "", adapter, facts.dtype, facts.device]
    return f"fp_{hashlib.sha256(chr(0).join(parts).encode(errors='replace')).hexdigest()[:12]}"


def _sampling(body: GenerationRequest, choice: int) -> Sampling:
    """Make sampling parameters with OpenAI's defaults (temperature and top_p are 1), and another seed for each answer."""
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        # Wraps around at the largest signed 64-bit integer, because the next one would be refused.
        seed=None if body.seed is None else (body.seed + choice + 2**63) % 2**64 - 2**63,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        logit_bias=body.logit_bias or {},
    )


def _check_ids(
    service: InferenceService, served: LoadedModel, body: GenerationRequest, prompts: list[list[int]]
) -> None:
    """Raise ApiError if the request has a token id beyond the model's embeddings, as some tokenizers' added tokens are."""
    size = service.facts.vocabulary_size
    for param, ids in [("prompt", prompt) for prompt in prompts] + [("logit_bias", list(body.logit_bias or {}))]:
        if ids and (unknown := served.vocabulary.without_embedding(ids, size)):
            problem = f"token id {max(ids)} does not exist; the model has {size} tokens, and none for {unknown}."
            raise invalid_value(f"{param}: {problem}", param)
