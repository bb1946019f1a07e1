"""The parts of the API description that FastAPI cannot derive: the body, which routes parse themselves, and refusals.

Routes parse the body, because only then comes the token first, the size limit second, and pydantic's strict JSON parser
(one error for a lone surrogate, a NaN or a thousand brackets) third.
"""

from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel

from finetune_gateway.examples import ERROR_MESSAGES
from finetune_gateway.schemas import ErrorBody, FinetuneRequest

REF: Final = "#/components/schemas/{model}"

DESCRIPTIONS: Final[dict[int, str]] = {
    401: "No token, or one that the API server does not accept.",
    403: "The caller's own rights do not allow it.",
    404: "No such task or namespace.",
    409: "The name is taken, the Idempotency-Key was used for something else, or the task is over.",
    410: "The cursor has expired.",
    413: "The body is too large.",
    422: "The request is invalid; all problems are listed.",
    429: "The API server asks to slow down; see Retry-After.",
    503: "The API server is away; see Retry-After.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route for these statuses."""
    return {
        status: {
            "model": ErrorBody,
            "description": DESCRIPTIONS[status],
            "content": {"application/json": {"example": {"error": ERROR_MESSAGES[status]}}},
        }
        for status in statuses
    }


def request_body(model: type[BaseModel], examples: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route that parses its body itself."""
    schema = {"$ref": REF.format(model=model.__name__)}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}
    }


def complete(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document with the schemas of bodies that it did not see. Made once, on first request."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        schema = FinetuneRequest.model_json_schema(by_alias=True, ref_template=REF)
        schemas = document["components"]["schemas"]
        for name, definition in schema.pop("$defs", {}).items():
            schemas.setdefault(name, definition)
        schemas[FinetuneRequest.__name__] = schema
        app.openapi_schema = document
    return app.openapi_schema
