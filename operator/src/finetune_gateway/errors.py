"""Errors in one shape, `{"error": {...}}`, whoever found the problem: this process, pydantic, or the API server.

A caller's mistake is 4xx and names the object, the field, what was found and what is expected. 503 means that the API
server is away and always says when to come back. Nothing of the API server's insides is passed on with a 5xx.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from finetune_api import validation
from finetune_api.contract import API_VERSION, FINETUNE_JOB_KIND
from finetune_api.validation import UNKNOWN, problems_of
from finetune_gateway.schemas import ErrorBody, ErrorDetail, FinetuneRequest, Problem

RETRY_AFTER_SECONDS: Final = 5
"""What callers are told when the API server is away: about as long as it needs to restart."""
MAX_MESSAGE: Final = 1000
"""Characters of the API server's own message that are passed on: admission policies and quotas explain themselves there."""
MAX_PROBLEMS: Final = 50
"""Problems that are listed: a body can have as many wrong keys as bytes."""


class GatewayError(Exception):
    """Base of everything that is raised on purpose; becomes the response."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        object_name: str | None = None,
        problems: list[Problem] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.detail = ErrorDetail(
            code=code,
            message=message,
            object=object_name,
            field=problems[0].field if problems else None,
            problems=problems or [],
        )
        self.headers = dict(headers or {})


class UnauthenticatedError(GatewayError):
    """401: no token, a malformed one, or one that the API server does not know."""

    def __init__(self, message: str, *, error: str | None = None) -> None:
        challenge = 'Bearer realm="kubernetes"' + (f', error="{error}"' if error else "")
        super().__init__(401, "Unauthenticated", message, headers={"WWW-Authenticate": challenge})


class InvalidRequestError(GatewayError):
    """422: the request contradicts the API. All problems at once: people fix requests, not lines."""

    def __init__(self, problems: list[Problem], *, object_name: str | None = None) -> None:
        shown = problems[:MAX_PROBLEMS]
        message = "; ".join(_sentence(problem) for problem in shown[:3])
        if len(problems) > 3:
            message += f"; and {len(problems) - 3} more"
        super().__init__(422, "Invalid", message[:MAX_MESSAGE], object_name=object_name, problems=shown)


class ConflictError(GatewayError):
    """409: the object's state or name forbids it."""

    def __init__(self, code: str, message: str, object_name: str) -> None:
        super().__init__(409, code, message, object_name=object_name)


class UnavailableError(GatewayError):
    """503: the API server cannot answer now; the same request may succeed later."""

    def __init__(self, message: str) -> None:
        super().__init__(503, "Unavailable", message, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


def request_problems(error: ValidationError, body: bytes) -> list[Problem]:
    """Return every problem of a request's body, each with its field as the caller wrote it."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = UNKNOWN
    return [_problem(found) for found in problems_of(error, document=document, model=FinetuneRequest)]


def error_from_api_server(status: int, body: bytes, verb: str, namespace: str, name: str | None) -> GatewayError:
    """What a refusal of the API server means to the caller. `body` is a metav1.Status if the server is healthy."""
    answer = _parse_status(body)
    details = answer.get("details") or {}
    said = str(answer.get("message") or "")[:MAX_MESSAGE]
    what = f"{FINETUNE_JOB_KIND} {namespace}/{name}" if name else f"{FINETUNE_JOB_KIND}s in namespace {namespace}"
    match status:
        case 400 if verb == "list":
            return InvalidRequestError(
                [Problem(field="continue", message=said or "malformed cursor; start again without it")]
            )
        case 400 | 422:
            return InvalidRequestError(_problems_from_causes(details.get("causes"), said), object_name=what)
        case 401:
            return UnauthenticatedError(
                "The API server does not accept this token; get a new one.", error="invalid_token"
            )
        case 403:
            return GatewayError(403, "Forbidden", f"You may not {verb} {what}: {said}", object_name=what)
        case 404:
            return _not_found(details, what, namespace)
        case 409 if verb == "create":
            return ConflictError("AlreadyExists", f"{what} exists already; use another name.", what)
        case 409:
            return ConflictError("Conflict", f"{what} was changed by somebody else at the same time; try again.", what)
        case 410:
            return GatewayError(410, "CursorExpired", "The cursor has expired; start again without `continue`.")
        case 413:
            return GatewayError(413, "TooLarge", f"{what} is too large for the API server.", object_name=what)
        case 429:
            headers = {"Retry-After": str(_retry_seconds(details))}
            return GatewayError(429, "TooManyRequests", "The API server asks to slow down.", headers=headers)
        case _:
            return UnavailableError(f"The API server could not {verb} {what} now (HTTP {status}).")


async def respond(_: Request, error: Exception) -> JSONResponse:
    """Turn any exception that reached the border into the one shape. Registered for all kinds by `app`."""
    match error:
        case GatewayError():
            return _response(error.status, error.detail, error.headers)
        case RequestValidationError():
            # Only parameters: routes parse the body themselves. The first part of a location is "query", "path" or "header".
            parameters = [{**found, "loc": found["loc"][1:]} for found in error.errors()]
            invalid = InvalidRequestError([_problem(found) for found in problems_of(parameters)])
            return _response(invalid.status, invalid.detail, {})
        case HTTPException():
            code = HTTPStatus(error.status_code).phrase.replace(" ", "")
            detail = ErrorDetail(code=code, message=str(error.detail))
            return _response(error.status_code, detail, dict(error.headers or {}))
        case _:
            # The server logs the exception itself; its text may quote what the caller sent.
            return _response(500, ErrorDetail(code="Bug", message="This is a bug of the gateway; see its log."), {})


def _response(status: int, detail: ErrorDetail, headers: Mapping[str, str]) -> JSONResponse:
    return JSONResponse(ErrorBody(error=detail).to_dict(), status_code=status, headers=dict(headers))


def _problem(found: validation.Problem) -> Problem:
    return Problem(field=found.field or "body", message=found.message, found=found.found)


def _sentence(problem: Problem) -> str:
    found = f", found {problem.found}" if problem.found is not None else ""
    return f"{problem.field}: {problem.message}{found}"


def _parse_status(body: bytes) -> dict[str, Any]:
    """The metav1.Status of an answer, or nothing: a proxy in between answers in HTML."""
    try:
        parsed = json.loads(body)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _problems_from_causes(causes: Any, said: str) -> list[Problem]:
    """Field causes of the API server, with field names as they are in a request."""
    problems = [
        Problem(field=_request_field(str(c.get("field") or "")), message=str(c.get("message") or said)[:MAX_MESSAGE])
        for c in causes or []
    ]
    # An admission policy refuses without a field.
    return problems or [Problem(field="body", message=said or "refused by the API server")]


def _request_field(path: str) -> str:
    for prefix in ("spec.", "metadata."):
        if path.startswith(prefix):
            return path.removeprefix(prefix)
    return "body" if path in ("", "<nil>", "spec") else path


def _not_found(details: Mapping[str, Any], what: str, namespace: str) -> GatewayError:
    if details.get("kind") == "namespaces":
        return GatewayError(404, "NamespaceNotFound", f"There is no namespace {namespace}.", object_name=what)
    if details.get("name"):
        return GatewayError(404, "NotFound", f"There is no {what}.", object_name=what)
    # The kind itself is unknown: not the caller's fault, and mended by installing the CRDs.
    return UnavailableError(
        f"The API server does not know {API_VERSION}: its CustomResourceDefinitions are not installed."
    )


def _retry_seconds(details: Mapping[str, Any]) -> int:
    seconds = details.get("retryAfterSeconds")
    return seconds if isinstance(seconds, int) and seconds > 0 else RETRY_AFTER_SECONDS
