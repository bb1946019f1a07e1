"""Errors in Anthropic's format: `{"type": "error", "error": {"type", "message"}}` with the matching status."""

import json
from typing import Any

from starlette.responses import Response

from finetune_inference.api.errors import ApiError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Type of an error by its status; others are `api_error`."""


def anthropic_error(error: ApiError) -> dict[str, Any]:
    """Return the document of an error."""
    kind = TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def anthropic_response(error: ApiError) -> Response:
    """Return the HTTP response for an error."""
    response = error.response()
    # ASCII, because a message may quote an unpaired surrogate of the client, which UTF-8 cannot encode.
    body = json.dumps(anthropic_error(error), ensure_ascii=True)
    headers = {name: value for name, value in response.headers.items() if name == "retry-after"}
    return Response(body, error.status, headers, media_type="application/json")
