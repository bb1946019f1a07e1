"""/healthz, /readyz and /metrics. Liveness is about this process, not about the API server.

An API server outage makes the operator unready, not unhealthy: a restart would end in the kubelet's crash back-off, and the
operator would be missing for minutes after the outage. It is unhealthy only when the event loop, the resync or the watch is
stuck, or when the API server answers and keeps refusing it.
"""

import time
from collections.abc import Callable
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

STALE_SECONDS: Final = 90.0
"""Seconds after which a resync without an answer counts as stuck: six resync intervals."""
STABLE_SECONDS: Final = 20.0
"""Seconds after which a watch counts as working."""


class Health:
    """State behind the probes. The resync and the watch supervisor update it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_attempt = self._last_success = clock()
        self._is_synced = False
        self._is_outage = False
        self._watch_started_at = 0.0
        self._watch_failing_since: float | None = None
        self.is_watching = False

    def resync_succeeded(self) -> None:
        """Record that the API server answered the resync."""
        self._last_attempt = self._last_success = self._clock()
        self._is_synced, self._is_outage = True, False

    def resync_failed(self, *, is_outage: bool) -> None:
        """Record that the API server did not answer the resync, or refused it."""
        self._last_attempt = self._clock()
        self._is_outage = is_outage

    def watch_started(self) -> None:
        """Record that the watch has started."""
        self.is_watching = True
        self._watch_started_at = self._clock()

    def watch_lost(self) -> None:
        """Record that the watch has ended. The supervisor restarts it."""
        if self._is_watch_stable() or self._watch_failing_since is None:
            self._watch_failing_since = self._clock()
        self.is_watching = False

    def problem(self) -> str | None:
        """Return why this process should be restarted, or None."""
        now = self._clock()
        if now - self._last_attempt > STALE_SECONDS:
            return "the resync is stuck"
        if self._is_outage:
            return None
        if now - self._last_success > STALE_SECONDS:
            return "the API server refuses the operator"
        is_failing = self._watch_failing_since is not None and not self._is_watch_stable()
        if is_failing and now - (self._watch_failing_since or now) > STALE_SECONDS:
            return "the watch does not start"
        return None

    def _is_watch_stable(self) -> bool:
        return self.is_watching and self._clock() - self._watch_started_at > STABLE_SECONDS

    def unready_reason(self) -> str | None:
        """Return why this process does not follow the cluster now, or None."""
        if not self._is_synced:
            return "the first resync is not complete"
        if not self.is_watching:
            return "the watch is not running"
        if self._is_outage:
            return "the API server does not answer"
        return self.problem()


def build_app(health: Health) -> web.Application:
    """Create the HTTP application."""

    async def healthz(_: web.Request) -> web.Response:
        return _answer(health.problem())

    async def readyz(_: web.Request) -> web.Response:
        return _answer(health.unready_reason())

    async def prometheus(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", prometheus)
    return app


def _answer(problem: str | None) -> web.Response:
    return web.Response(text=problem or "ok", status=503 if problem else 200)
