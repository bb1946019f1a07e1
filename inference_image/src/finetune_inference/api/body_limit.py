"""Middleware that limits the size of a request body."""

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune_inference.api.errors import ApiError, response_at


class BodyLimit:
    """Refuses a body that is too large, before it fills the memory."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _declared_length(scope) > self._max_bytes:
            await response_at(scope["path"], self._too_long())(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                # The only type of exception that FastAPI passes on while it reads a body.
                raise HTTPException(413, self._too_long().message)
            return message

        await self._app(scope, limited, send)

    def _too_long(self) -> ApiError:
        return ApiError(413, f"The body is longer than {self._max_bytes} bytes.", code="body_too_long")


def _declared_length(scope: Scope) -> int:
    """Return the Content-Length; 0 if it is missing or not a number."""
    value = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    return int(value) if value.isdigit() else 0
