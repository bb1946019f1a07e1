"""The OpenAI-compatible application around an `InferenceService`.

The application answers from its first moment, while the model loads in the engine's thread: /healthz says that the process
lives, /readyz that it accepts requests.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response

from finetune_api.serving import ServingConfig
from finetune_inference.api import chat, chat_page, completions, errors, models, probes, promote, tokenize
from finetune_inference.api.answer_headers import AnswerHeaders
from finetune_inference.api.anthropic_messages import reply as anthropic_messages
from finetune_inference.api.anthropic_messages.errors import anthropic_response
from finetune_inference.api.body_limit import BodyLimit
from finetune_inference.api.generation import ServerState
from finetune_inference.api.metrics import CLIENT_GONE, Metrics, MetricsMiddleware
from finetune_inference.api.openai_responses import reply as openai_responses
from finetune_inference.api.streaming import ClientGoneError
from finetune_inference.config import Settings
from finetune_inference.inference import InferenceService

ROUTERS = (
    chat.router,
    openai_responses.router,
    anthropic_messages.router,
    completions.router,
    tokenize.router,
    promote.router,
    models.router,
    probes.router,
)


def create_app(config: ServingConfig, settings: Settings | None = None) -> FastAPI:
    """Make the application for one base model and its adapters."""
    settings = settings or Settings()
    return app_around(InferenceService(config, settings))


def app_around(service: InferenceService) -> FastAPI:
    """Make the application around a service that was not started yet; it starts and ends with the application."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.close()

    metrics = Metrics(service)
    app = FastAPI(title="finetune-inference", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.server = ServerState(service, metrics)
    errors.install(app)
    errors.FORMATS["/v1/messages"] = anthropic_response
    app.add_exception_handler(ClientGoneError, _on_client_gone)
    for router in ROUTERS:
        app.include_router(router)
    if service.settings.chat_page:
        app.include_router(chat_page.router)
    app.add_middleware(BodyLimit, max_bytes=service.settings.max_body_bytes)
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    app.add_middleware(AnswerHeaders, service=service)
    return app


async def _on_client_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)
