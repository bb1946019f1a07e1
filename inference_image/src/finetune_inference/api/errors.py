"""Errors in OpenAI's format: `{"error": {"message", "type", "param", "code"}}` with the matching status.

Every error of a request becomes an `ApiError`. `install` makes FastAPI answer with it, and converts FastAPI's own errors
(validation, unknown route) to the same format.
"""

import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from finetune_api.validation import Problem, problems_of, shown, summary
from finetune_inference.adapters.promotion import NotPromotedError, WrongTokenError
from finetune_inference.adapters.registry import UnknownModelError
from finetune_inference.api.requests import GenerationRequest
from finetune_inference.engine.scheduler import QueueFullError
from finetune_inference.inference import ContextLengthError, NotReadyError
from finetune_inference.text.answer_decoder import AnswerRefusedError, AnswerTimeoutError, EngineFailedError
from finetune_inference.text.grammar import GrammarError
from finetune_inference.text.vocabulary import PromptError, PromptTooLongError, TemplateVariableError

log = logging.getLogger(__name__)

INVALID_REQUEST = "invalid_request_error"


class ApiError(Exception):
    """Error response."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        error_type: str = INVALID_REQUEST,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.error_type = error_type
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def json(self) -> str:
        """Return the JSON document, which is also sent inside a stream that has begun."""
        # ASCII, because a message may quote an unpaired surrogate of the client, which UTF-8 cannot encode.
        error = {"message": self.message, "type": self.error_type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, ensure_ascii=True)

    def response(self) -> Response:
        """Return the HTTP response."""
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after is not None else None
        return Response(self.json(), self.status, headers, media_type="application/json")


def invalid_value(message: str, param: str | None, code: str | None = "invalid_value") -> ApiError:
    """Return the error for a field with an unsupported value."""
    return ApiError(400, message, param=param, code=code)


def model_not_found(message: str) -> ApiError:
    """Return the error for a model that does not exist, or whose adapter was refused."""
    return ApiError(404, message, param="model", code="model_not_found")


def wrong_token(message: str) -> ApiError:
    """Return the error for a promotion whose token is not from the writer of the adapter list."""
    return ApiError(403, message, error_type="permission_error", param="token", code="wrong_token")


def not_promoted(message: str) -> ApiError:
    """Return the error for a valid promotion whose candidate cannot be served by its adapter's name."""
    return ApiError(500, message, error_type="server_error", param="candidate", code="not_promoted")


def context_length_exceeded(limit: int, prompt_tokens: int, max_tokens: int) -> ApiError:
    """Return the error for a prompt and answer that exceed the context length."""
    wanted = f"{prompt_tokens} in the prompt" + (f" and {max_tokens} for the answer" if max_tokens else "")
    return ApiError(
        400,
        f"This model's maximum context length is {limit} tokens, but {prompt_tokens + max_tokens} were requested: "
        f"{wanted}. Shorten the prompt or the answer.",
        param=None,
        code="context_length_exceeded",
    )


def prompt_too_long(limit: int, least: int) -> ApiError:
    """Return the error for a prompt that is too long to count its tokens."""
    return ApiError(
        400,
        f"This model's maximum context length is {limit} tokens, but the prompt alone has more than {least}. Shorten it.",
        param=None,
        code="context_length_exceeded",
    )


def queue_full(waiting: int, retry_after: int) -> ApiError:
    """Return the error for a full waiting queue."""
    return ApiError(
        429,
        f"The server is busy: {waiting} requests are waiting. Retry in {retry_after} s.",
        error_type="rate_limit_error",
        code="queue_full",
        retry_after=retry_after,
    )


def not_ready(reason: str) -> ApiError:
    """Return the error for a server that is loading, failed or draining."""
    return ApiError(503, reason, error_type="server_error", code="model_not_ready", retry_after=5)


def engine_failed() -> ApiError:
    """Return the error for a failure of the engine, whose reason is in the log."""
    return ApiError(
        500, "The engine failed during this request; the server's log has the reason.", error_type="server_error"
    )


def timed_out(seconds: float) -> ApiError:
    """Return the error for an answer that exceeded its time limit."""
    return ApiError(
        504,
        f"The answer was not complete within the server's limit of {seconds:g} s. Request fewer tokens, or retry later.",
        error_type="server_error",
        code="request_timeout",
    )


def to_api_error(error: Exception) -> ApiError:
    """Return the API error for an error of the service."""
    match error:
        case ApiError():
            return error
        case UnknownModelError():
            return model_not_found(str(error))
        case WrongTokenError():
            return wrong_token(str(error))
        case NotPromotedError():
            return not_promoted(str(error))
        case PromptTooLongError():
            return prompt_too_long(error.limit, error.least)
        case TemplateVariableError(name="reasoning_effort"):
            return invalid_value(f"reasoning_effort: {error.problem}", param="reasoning_effort")
        case TemplateVariableError():
            return invalid_value(f"chat_template_kwargs.{error.name}: {error.problem}", param="chat_template_kwargs")
        case PromptError():
            return invalid_value(f"The prompt cannot be used: {error}.", param=None)
        case GrammarError():
            return invalid_value(f"response_format: {error}", param="response_format")
        case AnswerRefusedError():
            return invalid_value(f"{error.field}: {error}", param=error.field)
        case ContextLengthError():
            return context_length_exceeded(error.limit, error.prompt_tokens, error.max_tokens)
        case QueueFullError():
            return queue_full(error.waiting, error.retry_after)
        case NotReadyError():
            return not_ready(str(error))
        case EngineFailedError():
            return engine_failed()
        case AnswerTimeoutError():
            return timed_out(error.seconds)
    return ApiError(500, "The server failed to answer; its log has the reason.", error_type="server_error")


SERVICE_ERRORS: tuple[type[Exception], ...] = (
    ApiError,
    UnknownModelError,
    WrongTokenError,
    NotPromotedError,
    PromptError,
    GrammarError,
    AnswerRefusedError,
    ContextLengthError,
    QueueFullError,
    NotReadyError,
    EngineFailedError,
    AnswerTimeoutError,
)
"""Errors that requests may cause without a defect of the server."""


FORMATS: dict[str, Callable[[ApiError], Response]] = {}
"""Makers of error responses by the path of the routes whose API has another format than OpenAI's."""


def response_at(path: str, error: ApiError) -> Response:
    """Return the response for an error, in the format of the path's API."""
    make = next((make for prefix, make in FORMATS.items() if path.startswith(prefix)), ApiError.response)
    return make(error)


def install(app: FastAPI) -> None:
    """Make `app` answer every error in the format of the route's API."""
    for known in SERVICE_ERRORS:
        app.add_exception_handler(known, _on_service_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)


async def _on_service_error(request: Request, error: Exception) -> Response:
    return response_at(request.url.path, to_api_error(error))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - Starlette's type of a handler is wider than its calls
    if problem := _body_problem(request, error.body):
        return response_at(request.url.path, invalid_value(problem, param=None, code="invalid_body"))
    model = _body_class(request)
    in_body = [{**e, "loc": e["loc"][1:] if e["loc"][:1] == ("body",) else e["loc"]} for e in error.errors()]
    problems = [with_reason(problem, model) for problem in problems_of(in_body, document=error.body, model=model)]
    # OpenAI's `param` is the top-level field of the request, without the path inside it.
    param = re.split(r"[.\[]", problems[0].field)[0] or None
    return response_at(request.url.path, invalid_value(summary(problems), param, _code(problems[0].kind)))


def _body_problem(request: Request, body: Any) -> str | None:
    """Return why a body is no request at all: it is missing, not declared as JSON, or not an object."""
    if body is None:
        return "The request has no body; send a JSON object."
    if isinstance(body, bytes):
        declared = request.headers.get("content-type")
        found = f"declared as {shown(declared)}" if declared else "sent without Content-Type"
        return (
            f"The body is {found}, so it is not read as JSON; send the header Content-Type: application/json "
            "(curl: -H 'Content-Type: application/json')."
        )
    return None


def _body_class(request: Request) -> type[BaseModel] | None:
    """Return the class that the route reads its body as."""
    parameters = getattr(getattr(request.scope.get("route"), "dependant", None), "body_params", [])
    kind = parameters[0].field_info.annotation if len(parameters) == 1 else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def with_reason(problem: Problem, model: type[BaseModel] | None) -> Problem:
    """Replace "unknown field" by the reason why a known field is refused."""
    if problem.kind != "extra_forbidden" or model is None or not issubclass(model, GenerationRequest):
        return problem
    reason = model.refusal(problem.field)
    return replace(problem, message=f"not supported: {reason}") if reason else problem


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    return response_at(request.url.path, ApiError(error.status_code, str(error.detail)))


async def _on_bug(request: Request, error: Exception) -> Response:
    # Starlette answers unhandled exceptions outside of all middleware, so the header of `AnswerHeaders` is set here.
    request_id = getattr(request.state, "request_id", "")
    log.error("Request %s failed: %s %s", request_id, request.method, request.url.path, exc_info=error)
    response = response_at(request.url.path, to_api_error(error))
    response.headers["X-Request-Id"] = request_id
    return response


def _code(kind: str) -> str | None:
    """Return OpenAI's code for a type of pydantic's errors; None for a body that is not JSON."""
    if kind == "json_invalid":
        return None
    if kind == "missing":
        return "missing_required_parameter"
    return "invalid_type" if kind.endswith("_type") else "invalid_value"
