"""Steps that chats and completions share: from a request's fields to token requests, and counting tokens."""

import asyncio
import hashlib
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import quote

from fastapi import Request

from finetune_inference.adapters.registry import LoadedModel
from finetune_inference.api.errors import invalid_value
from finetune_inference.api.metrics import Metrics
from finetune_inference.api.requests import GenerationRequest
from finetune_inference.api.responses import Usage
from finetune_inference.engine.interface import Constraint, Sampling, TokenRequest
from finetune_inference.inference import InferenceService
from finetune_inference.text.answer_decoder import TextDelta
from finetune_inference.text.grammar import GrammarError
from finetune_inference.text.vocabulary import Vocabulary

TRUNCATED_CONTEXTS = 8
"""Longest prompt that is truncated on request, in lengths of the context; encoding longer ones would take seconds."""
BASE_MODEL_HEADER = "X-Base-Model"
ADAPTER_DIGEST_HEADER = "X-Adapter-Digest"


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


async def answer_constraint(server: ServerState, vocabulary: Vocabulary, body: GenerationRequest) -> Constraint | None:
    """Compile the constraint of the answer; None for free text. Raises ApiError."""
    form = body.form
    if form is None:
        return None
    compiling = partial(form.compile, vocabulary.grammars)
    try:
        return await asyncio.get_running_loop().run_in_executor(server.compiling, compiling)
    except GrammarError as error:
        raise invalid_value(f"{form.field}: {error}", form.field) from None


def encoding_limit(service: InferenceService, body: GenerationRequest) -> int:
    """Return the number of tokens above which a prompt is refused before it is encoded to its end."""
    limit = service.facts.context_length
    return limit if body.truncate_prompt_tokens is None else TRUNCATED_CONTEXTS * limit


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
    lengths = [service.fit(prompt, max_tokens) for prompt in prompts]
    _check_min_tokens(body, min(lengths))
    return [
        TokenRequest(
            prompt=prompt,
            adapter=served.adapter_name,
            weights=served.weights,
            max_tokens=length,
            sampling=_sampling(body, choice),
            stop_ids=_stop_ids(served, body),
            ignore_eos=bool(body.ignore_eos),
            min_tokens=body.min_tokens or 0,
            logprobs=logprobs,
            score_prompt=score_prompt,
            constraint=constraint.copy() if constraint else None,
        )
        for prompt, length in zip(prompts, lengths, strict=True)
        for choice in range(body.choices)
    ]


def truncated(
    service: InferenceService, body: GenerationRequest, prompt: list[int], max_tokens: int | None
) -> list[int]:
    """Return the last tokens of a prompt, if the request wants that."""
    wanted = body.truncate_prompt_tokens
    if wanted is None:
        return prompt
    if wanted == -1:
        wanted = max(1, service.facts.context_length - (1 if max_tokens is None else max_tokens))
    return prompt[-wanted:]


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
    parts = [base.path, base.revision or "", facts.dtype, facts.device]
    computed = hashlib.sha256(chr(0).join(parts).encode(errors="replace")).hexdigest()[:12]
    return f"fp_{computed}_{served.adapter.digest if served.adapter else 'base'}"


def weights_headers(service: InferenceService, served: LoadedModel) -> dict[str, str]:
    """Return the headers that name the weights of an answer: the base model, and the digest of the adapter if there is one."""
    headers = {BASE_MODEL_HEADER: quote(service.config.model.name, safe="/:@ ")}
    if served.adapter:
        headers[ADAPTER_DIGEST_HEADER] = served.adapter.digest
    return headers


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
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty,
    )


def _stop_ids(served: LoadedModel, body: GenerationRequest) -> frozenset[int]:
    """Return the tokens that end an answer, beside those of the model's generation config."""
    own = frozenset() if body.ignore_eos else served.vocabulary.stop_ids
    return own | frozenset(body.stop_token_ids or ())


def _check_min_tokens(body: GenerationRequest, limit: int) -> None:
    if body.min_tokens and body.min_tokens > limit:
        raise invalid_value(
            f"min_tokens is {body.min_tokens}, but the answer has at most {limit}; lower it, or raise {body.limit_field}.",
            "min_tokens",
        )


def _check_ids(
    service: InferenceService, served: LoadedModel, body: GenerationRequest, prompts: list[list[int]]
) -> None:
    """Raise ApiError if the request has a token id beyond the model's embeddings, as some tokenizers' added tokens are."""
    size = service.facts.vocabulary_size
    checked = [("prompt", prompt) for prompt in prompts]
    checked += [("logit_bias", list(body.logit_bias or {})), ("stop_token_ids", body.stop_token_ids or [])]
    for param, ids in checked:
        if ids and (unknown := served.vocabulary.without_embedding(ids, size)):
            problem = f"token id {max(ids)} does not exist; the model has {size} tokens, and none for {unknown}."
            raise invalid_value(f"{param}: {problem}", param)
