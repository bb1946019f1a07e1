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
    answer_constraint,
    encoding_limit,
    served_model,
    server_state,
    token_requests,
    truncated,
)
from finetune_inference.api.json_body import JsonRoute
from finetune_inference.api.logprobs import CompletionScores, prompt_offsets
from finetune_inference.api.reply import Reply, respond
from finetune_inference.api.requests import CompletionRequest
from finetune_inference.api.responses import Completion, CompletionChoice, Usage
from finetune_inference.api.streaming import sse
from finetune_inference.engine.interface import FinishReason
from finetune_inference.inference import InferenceService
from finetune_inference.text.answer_decoder import AnswerDecoder, TextDelta
from finetune_inference.text.detokenizer import certain_length
from finetune_inference.text.vocabulary import Vocabulary

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this route."""

router = APIRouter(route_class=JsonRoute)


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
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    prompts = await asyncio.to_thread(_encode, server.service, served.vocabulary, body, max_tokens)
    constraint = await answer_constraint(server, served.vocabulary, body)
    requests = token_requests(
        server.service,
        served,
        body,
        prompts,
        max_tokens=max_tokens,
        logprobs=body.logprobs,
        score_prompt=bool(body.echo) and body.logprobs is not None,
        constraint=constraint,
    )
    echoes = await asyncio.to_thread(_echoes, served.vocabulary, body, prompts) if body.echo else []
    counter = UsageCounter(server.metrics, served.name, sum(map(len, prompts)))
    return await respond(request, _Completion(server, served, body, requests, counter, echoes))


@dataclass(frozen=True)
class _Echo:
    """Prompt in front of an answer."""

    text: str = ""
    offsets: Sequence[int] = ()
    """Position of each token in the text; empty without log-probabilities."""


NO_ECHO = _Echo()


def _encode(
    service: InferenceService, vocabulary: Vocabulary, body: CompletionRequest, max_tokens: int
) -> list[list[int]]:
    limit, special = encoding_limit(service, body), body.add_special_tokens is not False
    encoded = [
        vocabulary.encode(prompt, limit, add_special_tokens=special) if isinstance(prompt, str) else prompt
        for prompt in body.prompts
    ]
    return [truncated(service, body, prompt, max_tokens) for prompt in encoded]


def _echoes(vocabulary: Vocabulary, body: CompletionRequest, prompts: list[list[int]]) -> list[_Echo]:
    """Return the prompt of each answer as text."""
    skipped = body.skip_special_tokens is not False
    echoes = []
    for prompt, ids in zip(body.prompts, prompts, strict=True):
        if isinstance(prompt, str) and body.truncate_prompt_tokens is None:
            text = prompt
        else:
            text = vocabulary.decode(ids, skip_special_tokens=skipped)
            # The answer completes a character of which the prompt has a part.
            text = text[: certain_length(text)]
        scored = body.logprobs is not None
        offsets = prompt_offsets(vocabulary, ids, text, skip_special_tokens=skipped) if scored else []
        echoes.append(_Echo(text, offsets))
    return [echo for echo in echoes for _ in range(body.choices)]


@dataclass
class _Completion(Reply[CompletionRequest, TextDelta]):
    id_prefix = "cmpl"

    echoes: list[_Echo]
    """Prompts in front of the answers; empty without echo."""
    _scores: list[CompletionScores] = field(init=False)
    _begun: set[int] = field(default_factory=set, init=False)
    """Answers of which a chunk was streamed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        echoes = self.echoes or [NO_ECHO] * len(self.requests)
        self._scores = [CompletionScores(self.served.vocabulary, echo.offsets, len(echo.text)) for echo in echoes]

    def _decoders(self) -> list[AnswerDecoder]:
        return [AnswerDecoder(self.served.vocabulary, self.body.text_rules, each.prompt) for each in self.requests]

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
        echo = self.echoes[index].text if self.echoes and first else ""
        text = echo + "".join(delta.text for delta in parts)
        reason: FinishReason | None = parts[-1].finish_reason
        logprobs = None if self.body.logprobs is None else self._scores[index].build(parts)
        if logprobs and not self.body.stream:
            # Tokens of a stop text have a place after the end, because the text was cut before them.
            logprobs.text_offset = [min(offset, len(text)) for offset in logprobs.text_offset]
        return CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=reason)

    def _chunk(self, choices: list[CompletionChoice], usage: Usage | None) -> bytes:
        # `usage` is null until the last chunk, and absent unless requested.
        hidden = None if self.body.include_usage else {"usage"}
        return sse(Completion(**self.head, choices=choices, usage=usage).model_dump_json(exclude=hidden))
