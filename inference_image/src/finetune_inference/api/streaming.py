"""Events from the engine's thread to asyncio, and from asyncio to a client that may disconnect at any moment."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from finetune_inference.engine.interface import Event, TokenRequest
from finetune_inference.engine.scheduler import Listener, Ticket
from finetune_inference.inference import InferenceService
from finetune_inference.text.answer_decoder import TextDelta

Result = TypeVar("Result")
Delta = TypeVar("Delta", bound=TextDelta, covariant=True)

DONE = b"data: [DONE]\n\n"


class ClientGoneError(Exception):
    """The client disconnected before the answer."""


class Decoder(Protocol[Delta]):
    """Decoder of one sequence's events."""

    def feed(self, event: Event) -> Delta:
        """Return the delta of one event; one with a finish reason is the last."""


def sse(document: str) -> bytes:
    """Return one server-sent event with a JSON document."""
    return b"data: " + document.encode() + b"\n\n"


@asynccontextmanager
async def answers(
    service: InferenceService, requests: Sequence[TokenRequest], decoders: Sequence[Decoder[Delta]]
) -> AsyncIterator[AsyncIterator[tuple[int, Delta]]]:
    """Submit sequences and iterate over (index, delta) as they arrive, until all have finished.

    Leaving the block cancels unfinished sequences. Raises as `InferenceService.submit` does, before anything is sent.
    """
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    def listener(index: int) -> Listener:
        def deliver(event: Event) -> None:
            # The loop is closed when the process ends.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(events.put_nowait, (index, event))

        return deliver

    tickets = service.submit([(request, listener(index)) for index, request in enumerate(requests)])
    try:
        yield _deltas(service, tickets, events, decoders)
    finally:
        service.cancel(tickets)


async def _deltas(
    service: InferenceService,
    tickets: Sequence[Ticket],
    events: "asyncio.Queue[tuple[int, Event]]",
    decoders: Sequence[Decoder[Delta]],
) -> AsyncIterator[tuple[int, Delta]]:
    unfinished = set(range(len(tickets)))
    while unfinished:
        index, event = await events.get()
        if index not in unfinished:
            # A token that was generated before a stop text cancelled the sequence.
            continue
        delta = decoders[index].feed(event)
        if delta.finish_reason:
            unfinished.discard(index)
            service.cancel([tickets[index]])
        yield index, delta


async def unless_disconnected(request: Request, work: Awaitable[Result]) -> Result:
    """Return the result of `work`, or cancel it and raise ClientGoneError if the client disconnects first."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait([task, watcher], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        await _end(task, watcher)


class EventStreamResponse(Response):
    """Stream of server-sent events that stops its source as soon as the client disconnects.

    Starlette's streaming response notices a disconnect only when it sends, after a long queue or prompt. Nothing is sent before
    the first chunk of the source (which may be empty), so that an exception until then becomes an ordinary error response.
    sse-starlette cannot do that, because it sends the status first; the rest of it would save 20 lines for a dependency.
    """

    media_type = "text/event-stream"

    def __init__(self, chunks: Callable[[], AsyncGenerator[bytes, None]], headers: Mapping[str, str]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})
        del self.headers["content-length"]
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        task = asyncio.ensure_future(self._send(send))
        watcher = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait([task, watcher], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            await _end(task, watcher)

    async def _send(self, send: Send) -> None:
        async with aclosing(self._chunks()) as chunks:
            first = await anext(chunks)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": first, "more_body": True})
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: "asyncio.Future[Any]") -> None:
    """Cancel tasks and wait for their cleanup. Their exceptions were raised already, or do not matter any more."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
