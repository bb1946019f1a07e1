"""One request and its answers, at once or as server-sent events: the part that all routes share."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel

from finetune_inference.adapters.registry import LoadedModel
from finetune_inference.api.errors import SERVICE_ERRORS, ApiError, to_api_error
from finetune_inference.api.generation import ServerState, UsageCounter, system_fingerprint, weights_headers
from finetune_inference.api.requests import GenerationRequest
from finetune_inference.api.streaming import (
    DONE,
    Decoder,
    EventStreamResponse,
    answers,
    sse,
    unless_disconnected,
)
from finetune_inference.engine.interface import TokenRequest
from finetune_inference.text.answer_decoder import TextDelta

Body = TypeVar("Body", bound=GenerationRequest)
Delta = TypeVar("Delta", bound=TextDelta)


@dataclass
class Reply(ABC, Generic[Body, Delta]):
    """A request whose sequences are ready to be submitted. Subclasses give its documents the shape of their route."""

    id_prefix: ClassVar[str]
    """Start of the response's id, as in OpenAI's API."""

    server: ServerState
    served: LoadedModel
    body: Body
    requests: list[TokenRequest]
    counter: UsageCounter

    def __post_init__(self) -> None:
        self.head: dict[str, Any] = {
            "id": f"{self.id_prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self.body.model,
            "system_fingerprint": system_fingerprint(self.server.service, self.served),
        }
        """Fields of every document of this response."""

    async def answer(self) -> BaseModel:
        """Return the whole answer."""
        collected: list[list[Delta]] = [[] for _ in self.requests]
        async with answers(self.server.service, self.requests, self._decoders()) as deltas:
            async for index, delta in deltas:
                self.counter.count(index, delta)
                collected[index].append(delta)
        return self._document(collected)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the answer as server-sent events. Raises before the first one if the request cannot start."""
        async with answers(self.server.service, self.requests, self._decoders()) as deltas:
            yield self._opening()
            try:
                async for index, delta in deltas:
                    self.counter.count(index, delta)
                    for chunk in self._chunks(index, delta):
                        yield chunk
            except SERVICE_ERRORS as error:
                # The status was sent already, so the error is an event.
                yield self._failure(to_api_error(error))
                return
        for chunk in self._closing():
            yield chunk

    @abstractmethod
    def _decoders(self) -> Sequence[Decoder[Delta]]:
        """Make the decoder of each sequence."""

    @abstractmethod
    def _document(self, collected: list[list[Delta]]) -> BaseModel:
        """Build the whole answer from the deltas of each sequence."""

    @abstractmethod
    def _opening(self) -> bytes:
        """Return the beginning of a stream; it may be empty."""

    @abstractmethod
    def _chunks(self, index: int, delta: Delta) -> Iterable[bytes]:
        """Return the events of a delta of one of the answers."""

    def _closing(self) -> Iterable[bytes]:
        """Return the end of a stream."""
        return [*([self._usage_chunk()] if self.body.include_usage else []), DONE]

    def _usage_chunk(self) -> bytes:
        """Return the event with the token counts."""
        return b""

    def _failure(self, error: ApiError) -> bytes:
        """Return the last event of a stream that fails, as in OpenAI's API."""
        return sse(error.json())


async def respond(request: Request, reply: Reply[Any, Any]) -> Response:
    """Answer at once or as a stream, as the request asks; stop when its client disconnects."""
    headers = weights_headers(reply.server.service, reply.served)
    if reply.body.stream:
        return EventStreamResponse(reply.stream, headers)
    answer = await unless_disconnected(request, reply.answer())
    return Response(answer.model_dump_json(), headers=headers, media_type="application/json")
