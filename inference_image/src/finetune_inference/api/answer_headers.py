"""Middleware for headers that every response has."""

import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune_inference.inference import InferenceService


class AnswerHeaders:
    """Gives each request an id, in a header and in the log; OpenAI's client has it as `_request_id`.

    While the process drains, each response closes its connection, because a client on a kept connection does not notice that
    the endpoints changed.
    """

    def __init__(self, app: ASGIApp, service: InferenceService) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope.setdefault("state", {})["request_id"] = f"req_{uuid.uuid4().hex}"

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                closing = [(b"connection", b"close")] if self._service.draining else []
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), *closing]
            await send(message)

        await self._app(scope, receive, with_headers)
