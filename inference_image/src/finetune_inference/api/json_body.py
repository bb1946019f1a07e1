"""Route class whose bodies are refused for a key that occurs twice, as training rows are."""

import json
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from finetune_api.validation import shown


class _JsonRequest(Request):
    async def json(self) -> Any:
        """Return the body's value."""
        return json.loads(await self.body(), object_pairs_hook=_object)


class JsonRoute(APIRoute):
    """Route that reads its body as JSON without repeated keys."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler around the stricter request."""
        handle = super().get_route_handler()

        async def read(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return read


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that occurs twice, because Python would silently keep its last value."""
    value = dict(pairs)
    if len(value) != len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        # The only type of exception that FastAPI passes on while it reads a body.
        raise HTTPException(400, f"The body has the key {shown(key)} more than once in one object; keep one of them.")
    return value
