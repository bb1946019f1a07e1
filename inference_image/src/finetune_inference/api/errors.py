"""Errors as OpenAI's clients know them: `{"error": {"message", "type", "param", "code"}}` with the matching status.

Everything that can be wrong with a request is an `ApiError`; `install` makes FastAPI answer with it, and turns FastAPI's
own errors (validation, unknown route) into the same shape.
"""

import json
import logging
import re

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from finetune_api.validation import problems_of, summary
from finetune_inference.adapters.promotion import NotPromotedError, WrongTokenError
from finetune_inference.adapters.registry import UnknownModelError
from finetune_inference.engine.scheduler import QueueFullError
from finetune_inference.inference import ContextLengthError, NotReadyError
from finetune_inference.text.answer_decoder import AnswerRefusedError, AnswerTimeoutError, EngineFailedError
from finetune_inference.text.grammar import GrammarError
from finetune_inference.text.vocabulary import PromptError, PromptTooLongError

log = logging.getLogger(__name__)

INVALID_REQUEST = "invalid_request_error"


class ApiError(Exception):
    """An answer other than success."""

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
        """The JSON document; also sent inside a stream that has already begun."""
        # ASCII on purpose: a message may quote what the client sent, and half a surrogate pair cannot be UTF-8.
        error = {"message": self.message, "type": self.error_type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, ensure_ascii=True)

    def response(self) -> Response:
        """The HTTP response."""
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after is not None else None
        return Response(self.json(), self.status, headers, media_type="application/json")


def invalid_value(message: str, param: str | None, code: str | None = "invalid_value") -> ApiError:
    """A field that holds something we cannot serve."""
    return ApiError(400, message, param=param, code=code)


def model_not_found(message: str) -> ApiError:
    """The model does not exist, or its adapter was refused."""
    return ApiError(404, message, param="model", code="model_not_found")


def wrong_token(message: str) -> ApiError:
    """Somebody else than whoever wrote the list of adapters wants to promote one."""
    return ApiError(403, message, error_type="permission_error", param="token", code="wrong_token")


def not_promoted(message: str) -> ApiError:
    """The list has the candidate, and the token is right, but the server cannot serve it by its adapter's name."""
    return ApiError(500, message, error_type="server_error", param="candidate", code="not_promoted")


def context_length_exceeded(limit: int, prompt_tokens: int, max_tokens: int) -> ApiError:
    """Prompt and answer together do not fit the model."""
    wanted = f"{prompt_tokens} in the prompt" + (f" and {max_tokens} for the answer" if max_tokens else "")
    return ApiError(
        400,
        f"This model's maximum context length is {limit} tokens, but {prompt_tokens + max_tokens} were requested: "
        f"{wanted}. Shorten the prompt or the answer.",
        param=None,
        code="context_length_exceeded",
    )


def prompt_too_long(limit: int, least: int) -> ApiError:
    """The prompt is so long that its tokens were not counted to the end."""
    return ApiError(
        400,
        f"This model's maximum context length is {limit} tokens, but the prompt alone has more than {least}. Shorten it.",
        param=None,
        code="context_length_exceeded",
    )


def queue_full(waiting: int, retry_after: int) -> ApiError:
    """Too many requests wait already."""
    return ApiError(
        429,
        f"The server is busy: {waiting} requests wait already. Try again in {retry_after} s.",
        error_type="rate_limit_error",
        code="queue_full",
        retry_after=retry_after,
    )


def not_ready(reason: str) -> ApiError:
    """The model is still loading, or could not be loaded, or the server is about to end."""
    return ApiError(503, reason, error_type="server_error", code="model_not_ready", retry_after=5)


def engine_failed() -> ApiError:
    """The engine failed while it worked on this request; the log has the reason."""
    return ApiError(500, "The engine failed while it worked on this request.", error_type="server_error")


def timed_out(seconds: float) -> ApiError:
    """The answer took too long; asking for fewer tokens, or later, may help."""
    return ApiError(
        504,
        f"The answer was not complete after {seconds:g} s, which is all the time a request has here.",
        error_type="server_error",
        code="request_timeout",
    )


def to_api_error(error: Exception) -> ApiError:
    """The answer for an error of the service."""
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
        case PromptError():
            return invalid_value(f"The prompt cannot be used: {error}.", param=None)
        case GrammarError() | AnswerRefusedError():
            return invalid_value(f"response_format: {error}", param="response_format")
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
"""What a request may run into without anybody having made a mistake in this program."""


def install(app: FastAPI) -> None:
    """Make `app` answer every error in OpenAI's shape."""
    for known in SERVICE_ERRORS:
        app.add_exception_handler(known, _on_service_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)


async def _on_service_error(_: Request, error: Exception) -> Response:
    return to_api_error(error).response()


async def _on_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - Starlette's type of a handler is wider than its calls
    in_body = [{**e, "loc": e["loc"][1:] if e["loc"][:1] == ("body",) else e["loc"]} for e in error.errors()]
    problems = problems_of(in_body, document=error.body)
    # OpenAI's `param` is the field of the request at fault, without the path inside it.
    param = re.split(r"[.\[]", problems[0].field)[0] or None
    return invalid_value(summary(problems), param, _code(problems[0].kind)).response()


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    return ApiError(error.status_code, str(error.detail)).response()


async def _on_bug(request: Request, error: Exception) -> Response:
    # Starlette answers bugs outside of all middleware, so the header of `AnswerHeaders` is set here.
    request_id = getattr(request.state, "request_id", "")
    log.error("request %s failed: %s %s", request_id, request.method, request.url.path, exc_info=error)
    response = to_api_error(error).response()
    response.headers["X-Request-Id"] = request_id
    return response


def _code(kind: str) -> str | None:
    """OpenAI's code for a kind of pydantic's; None where the body could not be read at all."""
    if kind == "json_invalid":
        return None
    if kind == "missing":
        return "missing_required_parameter"
    return "invalid_type" if kind.endswith("_type") else "invalid_value"
