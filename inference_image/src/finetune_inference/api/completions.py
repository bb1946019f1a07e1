"""POST /v1/completions: text or token ids in, text out, with log-probabilities of the prompt on request.

`echo` with `logprobs` and `max_tokens: 0` scores a prompt and generates nothing. The operator replays an adapter's fingerprint
this way, with token ids as the prompt, so that neither template nor tokenizer can change it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter, Request, Response

from finetune_inference.api.errors import invalid_value
from finetune_inference.api.generation import (
    UsageCounter,
    served_model,
    server_state,
    token_requests,
)
from finetune_inference.api.reply import Reply, respond
from finetune_inference.api.requests import CompletionRequest
from finetune_inference.api.responses import Completion, CompletionChoice, CompletionLogprobs, Usage
from finetune_inference.api.streaming import sse
from finetune_inference.engine.interface import FinishReason, ScoredToken
from finetune_inference.text.answer_decoder import TextDelta
from finetune_inference.text.vocabulary import Vocabulary

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this route."""

router = APIRouter()


@router.post("/v1/completions", response_model=Completion)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Continue prompts, at once or as a stream."""
    server = server_state(request)
    server.service.require_room()
    served = await served_model(server, body.model)
    if len(body.prompts) > server.service.settings.max_sequences_per_request:
        limit = server.service.settings.max_sequences_per_request
        raise invalid_value(
            f"{len(body.prompts)} prompts exceed the {limit} that this server allows per request.", "prompt"
        )
    prompts = await asyncio.to_thread(_encode, served.vocabulary, body.prompts, server.service.facts.context_length)
    requests = token_requests(
        server.service,
        served,
        body,
        prompts,
        max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        logprobs=body.logprobs,
        score_prompt=bool(body.echo) and body.logprobs is not None,
    )
    echoes = _echoes(served.vocabulary, body, prompts) if body.echo else []
    counter = UsageCounter(server.metrics, served.name, sum(map(len, prompts)))
    return await respond(request, _Completion(server, served, body, requests, counter, echoes))


def _encode(vocabulary: Vocabulary, prompts: Sequence[str | list[int]], limit: int) -> list[list[int]]:
    return [vocabulary.encode(prompt, limit) if isinstance(prompt, str) else prompt for prompt in prompts]


def _echoes(vocabulary: Vocabulary, body: CompletionRequest, prompts: list[list[int]]) -> list[str]:
    """Return the text of the prompt of each answer."""
    texts = [
        prompt if isinstance(prompt, str) else vocabulary.decode(ids)
        for prompt, ids in zip(body.prompts, prompts, strict=True)
    ]
    return [text for text in texts for _ in range(body.choices)]


@dataclass
class _Logprobs:
    """Builder of the parallel lists of one answer; in a stream, offsets continue from chunk to chunk."""

    vocabulary: Vocabulary
    offset: int = 0

    def build(self, tokens: Sequence[ScoredToken]) -> CompletionLogprobs:
        """Return the lists for the next tokens."""
        texts = [self.vocabulary.token_text(token.token_id) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self.offset)
            self.offset += len(text)
        return CompletionLogprobs(
            tokens=texts,
            token_logprobs=[token.logprob for token in tokens],
            top_logprobs=[self._top(token) for token in tokens],
            text_offset=offsets,
        )

    def _top(self, token: ScoredToken) -> dict[str, float] | None:
        """Return the likeliest tokens and the actual one; None for the first token of a prompt, which nothing predicts."""
        if token.logprob is None:
            return None
        # Different tokens may have the same text (parts of characters do); the likeliest, which comes first, stays.
        top: dict[str, float] = {}
        for token_id, logprob in (*token.top, (token.token_id, token.logprob)):
            top.setdefault(self.vocabulary.token_text(token_id), logprob)
        return top


@dataclass
class _Completion(Reply[CompletionRequest]):
    id_prefix = "cmpl"

    echoes: list[str]
    """Prompt texts in front of the answers; empty without echo."""
    _logprobs: list[_Logprobs] = field(init=False)
    _begun: set[int] = field(default_factory=set, init=False)
    """Answers of which a chunk was streamed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._logprobs = [_Logprobs(self.served.vocabulary) for _ in self.requests]

    def _document(self, collected: list[list[TextDelta]]) -> Completion:
        choices = [self._choice(index, parts, first=True) for index, parts in enumerate(collected)]
        return Completion(**self.head, choices=choices, usage=self.counter.usage)

    def _opening(self) -> bytes:
        return b""

    def _chunks(self, index: int, delta: TextDelta) -> list[bytes]:
        first = index not in self._begun
        self._begun.add(index)
        if first or delta.text or delta.finish_reason or self.body.logprobs is not None:
            return [self._chunk([self._choice(index, [delta], first=first)], None)]
        return []

    def _usage_chunk(self) -> bytes:
        return self._chunk([], self.counter.usage)

    def _choice(self, index: int, parts: Sequence[TextDelta], *, first: bool) -> CompletionChoice:
        """Return one answer or its next chunk; the echo belongs to the first chunk."""
        echo = self.echoes[index] if self.echoes and first else ""
        reason: FinishReason | None = parts[-1].finish_reason
        return CompletionChoice(
            index=index,
            text=echo + "".join(delta.text for delta in parts),
            logprobs=self._build_logprobs(index, parts),
            finish_reason=reason,
        )

    def _build_logprobs(self, index: int, parts: Sequence[TextDelta]) -> CompletionLogprobs | None:
        if self.body.logprobs is None:
            return None
        tokens = [token for delta in parts for token in (delta.prompt or ([delta.token] if delta.token else []))]
        return self._logprobs[index].build(tokens)

    def _chunk(self, choices: list[CompletionChoice], usage: Usage | None) -> bytes:
        # `usage` is null until the last chunk, and absent unless requested.
        hidden = None if self.body.include_usage else {"usage"}
        return sse(Completion(**self.head, choices=choices, usage=usage).model_dump_json(exclude=hidden))
