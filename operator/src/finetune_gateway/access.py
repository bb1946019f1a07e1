"""Access log: one line of JSON per request, without headers, query and body. Probes are not logged."""

import logging
import sys
import time
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune_api.json_logs import JsonFormatter

logger = logging.getLogger("finetune_gateway.access")

UNLOGGED: Final = frozenset({"/healthz", "/readyz"})
"""Paths of probes, which the kubelet calls every few seconds."""
MAX_PATH: Final = 200
"""Characters of a path that are logged, because anyone can send any path."""


class AccessLog:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request and log its status. 499 is nginx's code for a client that has disconnected."""
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
            # The outermost exception handler answers it.
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
    """Log everything as JSON to standard error, including uvicorn's loggers. The process calls it, not the application."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # httpx logs every request to the API server with its URL; the access log suffices.
    logging.getLogger("httpx").setLevel(logging.WARNING)
