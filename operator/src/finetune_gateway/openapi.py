"""The parts of the OpenAPI document that FastAPI cannot derive: request bodies and errors.

Routes parse the body themselves, so that the token is checked first, the size limit second, and the JSON third, by pydantic's
strict parser (one error for a lone surrogate, a NaN or a thousand brackets).
"""

from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel

from finetune_gateway.examples import ERROR_MESSAGES
from finetune_gateway.schemas import ErrorBody, FinetuneRequest

REF: Final = "#/components/schemas/{model}"

DESCRIPTIONS: Final[dict[int, str]] = {
    401: "There is no token, or the API server does not accept it.",
    403: "The caller does not have the right.",
    404: "The task or the namespace does not exist.",
    409: "The name is taken, the Idempotency-Key was used for another request, or the task has ended.",
    410: "The cursor has expired.",
    413: "The body is too large.",
    422: "The request is invalid. `problems` lists everything that is wrong.",
    429: "The API server is busy. See Retry-After.",
    503: "The API server is not available. See Retry-After.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route for these error statuses."""
    return {
        status: {
            "model": ErrorBody,
            "description": DESCRIPTIONS[status],
            "content": {"application/json": {"example": {"error": ERROR_MESSAGES[status]}}},
        }
        for status in statuses
    }


def request_body(model: type[BaseModel], examples: dict[str, Any]) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that parses its body itself."""
    schema = {"$ref": REF.format(model=model.__name__)}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}
    }


def complete(app: FastAPI) -> dict[str, Any]:
    """Return FastAPI's document with the schemas of the bodies added. It is built once, on first request."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        schema = FinetuneRequest.model_json_schema(by_alias=True, ref_template=REF)
        schemas = document["components"]["schemas"]
        for name, definition in schema.pop("$defs", {}).items():
            schemas.setdefault(name, definition)
        schemas[FinetuneRequest.__name__] = schema
        app.openapi_schema = document
    return app.openapi_schema
