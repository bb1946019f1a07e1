"""Errors in one format, `{"error": {...}}`, whether the gateway, pydantic or the API server found the problem.

A caller's mistake is 4xx and names the object, the field, the value found and the value expected. 503 means that the API
server is not available and always has a Retry-After. A 5xx reveals no internals of the API server.
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
"""Retry-After in seconds while the API server is not available: about as long as it needs to restart."""
MAX_MESSAGE: Final = 1000
"""Characters of the API server's own message that are forwarded; admission policies and quotas explain themselves there."""
MAX_PROBLEMS: Final = 50
"""Problems that are listed, because a body can have as many wrong keys as bytes."""


class GatewayError(Exception):
    """Base of all errors that become a response."""

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
    """422: the request is invalid. It lists all problems at once."""

    def __init__(self, problems: list[Problem], *, object_name: str | None = None) -> None:
        shown = problems[:MAX_PROBLEMS]
        message = "; ".join(_sentence(problem) for problem in shown[:3])
        if len(problems) > 3:
            message += f"; and {len(problems) - 3} more"
        super().__init__(422, "Invalid", message[:MAX_MESSAGE], object_name=object_name, problems=shown)


class ConflictError(GatewayError):
    """409: the object's state or name does not allow the request."""

    def __init__(self, code: str, message: str, object_name: str) -> None:
        super().__init__(409, code, message, object_name=object_name)


class UnavailableError(GatewayError):
    """503: the API server is not available; the same request may succeed later."""

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
    """Convert an error of the API server. `body` is a metav1.Status unless a proxy answered."""
    answer = _parse_status(body)
    details = answer.get("details") or {}
    said = str(answer.get("message") or "")[:MAX_MESSAGE]
    what = f"{FINETUNE_JOB_KIND} {namespace}/{name}" if name else f"{FINETUNE_JOB_KIND}s in namespace {namespace}"
    match status:
        case 400 if verb == "list":
            return InvalidRequestError(
                [Problem(field="continue", message=said or "malformed cursor; leave it out to start again")]
            )
        case 400 | 422:
            return InvalidRequestError(_problems_from_causes(details.get("causes"), said), object_name=what)
        case 401:
            return UnauthenticatedError(
                "The API server does not accept this token. Get a new one.", error="invalid_token"
            )
        case 403:
            return GatewayError(403, "Forbidden", f"You may not {verb} {what}: {said}", object_name=what)
        case 404:
            return _not_found(details, what, namespace)
        case 409 if verb == "create":
            return ConflictError("AlreadyExists", f"{what} already exists. Use another name.", what)
        case 409:
            return ConflictError("Conflict", f"{what} was changed at the same time. Try again.", what)
        case 410:
            return GatewayError(410, "CursorExpired", "The cursor has expired. Start again without `continue`.")
        case 413:
            return GatewayError(413, "TooLarge", f"{what} is too large for the API server.", object_name=what)
        case 429:
            headers = {"Retry-After": str(_retry_seconds(details))}
            return GatewayError(
                429, "TooManyRequests", "The API server is busy. Try again after Retry-After seconds.", headers=headers
            )
        case _:
            return UnavailableError(f"The API server could not {verb} {what} now (HTTP {status}).")


async def respond(_: Request, error: Exception) -> JSONResponse:
    """Convert any exception to the error format. `app` registers it for all kinds."""
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
            # The exception is logged but not shown, because its text may quote the request.
            return _response(
                500, ErrorDetail(code="Bug", message="This is a bug in the gateway. Its log has the details."), {}
            )


def _response(status: int, detail: ErrorDetail, headers: Mapping[str, str]) -> JSONResponse:
    return JSONResponse(ErrorBody(error=detail).to_dict(), status_code=status, headers=dict(headers))


def _problem(found: validation.Problem) -> Problem:
    return Problem(field=found.field or "body", message=found.message, found=found.found)


def _sentence(problem: Problem) -> str:
    found = f", found {problem.found}" if problem.found is not None else ""
    return f"{problem.field}: {problem.message}{found}"


def _parse_status(body: bytes) -> dict[str, Any]:
    """Parse the metav1.Status of an answer; empty if a proxy answered in HTML."""
    try:
        parsed = json.loads(body)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _problems_from_causes(causes: Any, said: str) -> list[Problem]:
    """Convert field causes of the API server, with the field names of a request."""
    problems = [
        Problem(field=_request_field(str(c.get("field") or "")), message=str(c.get("message") or said)[:MAX_MESSAGE])
        for c in causes or []
    ]
    # A refusal by an admission policy names no field.
    return problems or [Problem(field="body", message=said or "refused by the API server")]


def _request_field(path: str) -> str:
    for prefix in ("spec.", "metadata."):
        if path.startswith(prefix):
            return path.removeprefix(prefix)
    return "body" if path in ("", "<nil>", "spec") else path


def _not_found(details: Mapping[str, Any], what: str, namespace: str) -> GatewayError:
    if details.get("kind") == "namespaces":
        return GatewayError(404, "NamespaceNotFound", f"Namespace {namespace} does not exist.", object_name=what)
    if details.get("name"):
        return GatewayError(404, "NotFound", f"{what} does not exist.", object_name=what)
    # The kind itself is unknown, which is not the caller's mistake: the CRDs must be installed.
    return UnavailableError(
        f"The CustomResourceDefinitions of {API_VERSION} are not installed. Ask the administrator to install them."
    )


def _retry_seconds(details: Mapping[str, Any]) -> int:
    seconds = details.get("retryAfterSeconds")
    return seconds if isinstance(seconds, int) and seconds > 0 else RETRY_AFTER_SECONDS
