"""The OpenAI-compatible application around an `InferenceService`: routes, probes, metrics.

The application answers from its first moment. The model loads in the engine's thread meanwhile: /healthz says that the
process lives, /readyz that it can be sent requests.
"""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, FastAPI, HTTPException, Path, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune_api.serving import ServingConfig
from finetune_inference.adapters.registry import LoadedModel
from finetune_inference.api import chat, chat_page, completions, errors, promote, tokenize
from finetune_inference.api.generation import ServerState
from finetune_inference.api.metrics import CONTENT_TYPE, Metrics, MetricsMiddleware
from finetune_inference.api.schemas import ModelCard, ModelList
from finetune_inference.api.streaming import ClientGoneError
from finetune_inference.config import Settings
from finetune_inference.inference import InferenceService

CLIENT_GONE = 499
"""nginx's status for a client that left; nobody receives it, but logs and metrics do."""


def create_app(config: ServingConfig, settings: Settings | None = None) -> FastAPI:
    """The application for one base model and its adapters."""
    settings = settings or Settings()
    return app_around(InferenceService(config, settings))


def app_around(service: InferenceService) -> FastAPI:
    """The application around a service that was not started yet; it starts and ends with the application."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.close()

    metrics = Metrics(service)
    app = FastAPI(title="finetune-inference", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.serving = ServerState(service, metrics)
    errors.install(app)
    app.add_exception_handler(ClientGoneError, _on_client_gone)
    for router in (chat.router, completions.router, tokenize.router, promote.router, models_router, probes_router):
        app.include_router(router)
    if service.settings.chat_page:
        app.include_router(chat_page.router)
    app.add_middleware(BodyLimit, max_bytes=service.settings.max_body_bytes)
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    app.add_middleware(AnswerHeaders, service=service)
    return app


models_router = APIRouter()
probes_router = APIRouter()


@models_router.get("/v1/models")
async def list_models(request: Request) -> ModelList:
    """The base model and its loaded adapters."""
    service = _service(request)
    return ModelList(data=[_model_card(service, model) for model in service.models()])


@models_router.get("/v1/models/{name:path}")
async def retrieve_model(name: Annotated[str, Path()], request: Request) -> ModelCard:
    """One model; for an adapter that was refused, 404 with the reason."""
    service = _service(request)
    return _model_card(service, service.model(name))


@probes_router.get("/healthz")
async def healthz(request: Request) -> Response:
    """200 as long as the process can come to serve or still serves; 503 once its engine has ended."""
    failure = _service(request).failure
    return JSONResponse({"status": "failed", "reason": failure}, 503) if failure else JSONResponse({"status": "ok"})


@probes_router.get("/readyz")
async def readyz(request: Request) -> Response:
    """200 when requests are answered: the model is loaded, a token was generated, and the process stays."""
    service = _service(request)
    if service.ready:
        problem = {"adapterList": service.adapter_list_problem} if service.adapter_list_problem else {}
        return JSONResponse({"status": "ready", "refusedAdapters": service.refused, **problem})
    status = "draining" if service.draining else "failed" if service.failure else "loading"
    return JSONResponse({"status": status, "reason": service.failure}, 503)


@probes_router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    serving: ServerState = request.app.state.serving
    return Response(serving.metrics.render(), headers={"Content-Type": CONTENT_TYPE})


class AnswerHeaders:
    """Gives each request a name, which its answer and our log show; OpenAI's client has it as `_request_id`.

    While the process drains, each answer ends its connection: a client that keeps its own learns of no change of endpoints.
    """

    def __init__(self, app: ASGIApp, service: InferenceService) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope.setdefault("state", {})["request_id"] = f"req_{uuid.uuid4().hex}"

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                closing = [(b"connection", b"close")] if self._service.draining else []
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), *closing]
            await send(message)

        await self._app(scope, receive, with_headers)


class BodyLimit:
    """Refuses bodies that are too long before they fill the memory."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _declared_length(scope) > self._max_bytes:
            await self._too_long().response()(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                # The only kind of error that FastAPI lets through while it reads a body.
                raise HTTPException(413, self._too_long().message)
            return message

        await self._app(scope, limited, send)

    def _too_long(self) -> errors.ApiError:
        return errors.ApiError(413, f"The body is longer than {self._max_bytes} bytes.", code="body_too_long")


def _declared_length(scope: Scope) -> int:
    """The Content-Length; 0 if there is none, or none that is a number."""
    value = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    return int(value) if value.isdigit() else 0


def _service(request: Request) -> InferenceService:
    serving: ServerState = request.app.state.serving
    return serving.service


def _model_card(service: InferenceService, model: LoadedModel) -> ModelCard:
    return ModelCard(
        id=model.name,
        created=model.created,
        root=model.root,
        parent=model.parent,
        max_model_len=service.facts.context_length,
        digest=model.adapter.digest if model.adapter else None,
    )


async def _on_client_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)
