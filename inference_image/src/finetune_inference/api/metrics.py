"""Prometheus metrics of one server. Every server has its own registry, so that a process may hold several servers."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune_inference.inference import InferenceService

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Buckets of the histograms, from a token on a GPU to a long answer on a CPU."""
MOST_MODELS = 100
"""Most models with their own series, because adapters come and go while a series stays."""
OTHER_MODELS = "other"
"""Label of all further models."""
CLIENT_GONE = 499
"""nginx's status for a client that disconnected before the answer; it appears only in logs and metrics."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters, histograms and gauges of a server."""

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
        self._gauge("waiting_sequences", "Sequences in the waiting queue.", lambda: service.waiting)
        self._gauge("running_sequences", "Running sequences.", lambda: service.running)
        self._gauge("cached_tokens", "Tokens reserved in the KV cache.", lambda: service.cached_tokens)
        self._gauge("ready", "1 while requests are answered.", lambda: service.ready)
        self._gauge("adapter_bytes", "Memory of adapters in bytes.", lambda: service.adapter_bytes)
        self._gauge("refused_adapters", "Adapters that are refused.", lambda: len(service.refused))

    def label(self, model: str) -> str:
        """Return the label of a model's series."""
        if len(self._models) < MOST_MODELS:
            self._models.add(model)
        return model if model in self._models else OTHER_MODELS

    def render(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, description: str, value: Callable[[], float]) -> None:
        Gauge(f"finetune_inference_{name}", description, registry=self.registry).set_function(value)


class MetricsMiddleware:
    """Counts requests to the API and measures their time; probes and scrapes are left out."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = CLIENT_GONE

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            # Routes instead of paths, so that a scanner cannot create series.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(time.monotonic() - started)
