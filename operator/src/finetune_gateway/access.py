"""One line of JSON for each request: who is slow, what is refused. Never a header, a query or a body; never a probe."""

import logging
import sys
import time
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune_api.json_logs import JsonFormatter

logger = logging.getLogger("finetune_gateway.access")

UNLOGGED: Final = frozenset({"/healthz", "/readyz"})
"""The kubelet asks every few seconds and remembers the answers itself."""
MAX_PATH: Final = 200
"""Characters of a path that are logged: anybody can send any path."""


class AccessLog:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, and log what was answered. 499 is nginx's number for a caller who has left."""
        if scope["type"] != "http" or scope["path"] in UNLOGGED:
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 499

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception:
            # Answered further out, by the handler of last resort.
            status = 500
            raise
        finally:
            logger.info(
                "request",
                extra={
                    "method": scope["method"],
                    "path": scope["path"][:MAX_PATH],
                    "status": status,
                    "milliseconds": round((time.monotonic() - started) * 1000),
                },
            )


def configure_logging(level: str) -> None:
    """Everything as JSON to standard error; uvicorn's own loggers too. Called by the process, not by the application."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # It logs each request to the API server with its URL; ours says enough.
    logging.getLogger("httpx").setLevel(logging.WARNING)
