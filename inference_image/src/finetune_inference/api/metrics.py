"""Prometheus metrics of one server. Every server has its own registry, so that a process may hold several."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune_inference.inference import InferenceService

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""From a cached token on a GPU to a long answer on a CPU."""
MOST_MODELS = 100
"""Names with series of their own: adapters come and go while a server runs, and a series stays."""
OTHER_MODELS = "other"
"""Stands for all further ones."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What is counted and timed."""

    def __init__(self, service: InferenceService) -> None:
        self.registry = CollectorRegistry()
        prefix = "finetune_inference_"
        self.requests = Counter(
            f"{prefix}requests_total", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            f"{prefix}request_seconds",
            "Time until the last byte of the answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first_token_seconds = Histogram(
            f"{prefix}time_to_first_token_seconds",
            "Time until the first token, queue included.",
            ["model"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.inter_token_seconds = Histogram(
            f"{prefix}inter_token_seconds",
            "Time between two tokens of an answer.",
            ["model"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.prompt_tokens = Counter(
            f"{prefix}prompt_tokens_total", "Tokens of prompts.", ["model"], registry=self.registry
        )
        self.completion_tokens = Counter(
            f"{prefix}completion_tokens_total", "Tokens generated.", ["model"], registry=self.registry
        )
        self._models: set[str] = set()
        self._gauge("waiting_sequences", "Sequences in the queue.", lambda: service.waiting)
        self._gauge("running_sequences", "Sequences in work.", lambda: service.running)
        self._gauge(
            "cached_tokens", "Tokens that room for keys and values is taken for.", lambda: service.cached_tokens
        )
        self._gauge("ready", "1 if requests are answered.", lambda: service.ready)
        self._gauge("adapter_bytes", "Memory that adapters take.", lambda: service.adapter_bytes)
        self._gauge("refused_adapters", "Adapters that are not served.", lambda: len(service.refused))

    def label(self, model: str) -> str:
        """What the series of a model are called."""
        if len(self._models) < MOST_MODELS:
            self._models.add(model)
        return model if model in self._models else OTHER_MODELS

    def render(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, description: str, value: Callable[[], float]) -> None:
        Gauge(f"finetune_inference_{name}", description, registry=self.registry).set_function(value)


class MetricsMiddleware:
    """Counts and times requests to the API; probes and scrapes are left out."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = 499
        """nginx's number for a client that left before the answer."""

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            # Routes, not paths: a scanner must not be able to make series.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(time.monotonic() - started)
