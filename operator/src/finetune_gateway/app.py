"""Assembly of the ASGI application from the settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from finetune_gateway import openapi
from finetune_gateway.access import AccessLog
from finetune_gateway.cluster import Cluster
from finetune_gateway.errors import GatewayError, respond
from finetune_gateway.routes import finetune, probes
from finetune_gateway.settings import Settings

DESCRIPTION = """Fine-tuning as an object on Kubernetes, over HTTP.

A task is a `FinetuneJob` object, and its `task_id` is the object's name: tasks started here are visible to kubectl, and
vice versa. Every request uses your own Kubernetes bearer token, with the same rights as in kubectl.
"""


def create_app(settings: Settings) -> FastAPI:
    """Create the application. It connects on the first request; raises OSError if the CA file cannot be read."""
    cluster = Cluster(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await cluster.close()

    app = FastAPI(title="finetune.dev gateway", version="v1alpha1", description=DESCRIPTION, lifespan=lifespan)
    app.state.settings = settings
    app.state.cluster = cluster
    for kind in (GatewayError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, respond)
    app.add_middleware(AccessLog)
    app.include_router(finetune.router)
    app.include_router(probes.router)
    app.openapi = partial(openapi.complete, app)  # type: ignore[method-assign]
    return app
