"""/healthz, /readyz and /metrics. Liveness tells the truth about ourselves, not about the API server.

A process that is restarted because the API server is down ends in the kubelet's crash back-off and stays blind for minutes
after it is back. So an outage makes us unready; unhealthy we are when the event loop, the resync or the watch is stuck, or
when the API server answers and keeps refusing us.
"""

import time
from collections.abc import Callable
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

STALE_SECONDS: Final = 90.0
"""Six resyncs without a single answer."""
STABLE_SECONDS: Final = 20.0
"""A watch that lasts this long works; one that keeps ending before does not."""


class Health:
    """What the probes report. Written by the resync and by the supervisor of the watch."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_attempt = self._last_success = clock()
        self._is_synced = False
        self._is_outage = False
        self._watch_started_at = 0.0
        self._watch_failing_since: float | None = None
        self.is_watching = False

    def resync_succeeded(self) -> None:
        """The API server answered."""
        self._last_attempt = self._last_success = self._clock()
        self._is_synced, self._is_outage = True, False

    def resync_failed(self, *, is_outage: bool) -> None:
        """It did not, or it refused."""
        self._last_attempt = self._clock()
        self._is_outage = is_outage

    def watch_started(self) -> None:
        """The watch is up."""
        self.is_watching = True
        self._watch_started_at = self._clock()

    def watch_lost(self) -> None:
        """The watch has ended; the supervisor is starting it again."""
        if self._is_watch_stable() or self._watch_failing_since is None:
            self._watch_failing_since = self._clock()
        self.is_watching = False

    def problem(self) -> str | None:
        """Why this process should be restarted, or None."""
        now = self._clock()
        if now - self._last_attempt > STALE_SECONDS:
            return "the resync is stuck"
        if self._is_outage:
            return None
        if now - self._last_success > STALE_SECONDS:
            return "the API server refuses us"
        is_failing = self._watch_failing_since is not None and not self._is_watch_stable()
        if is_failing and now - (self._watch_failing_since or now) > STALE_SECONDS:
            return "the watch does not come up"
        return None

    def _is_watch_stable(self) -> bool:
        return self.is_watching and self._clock() - self._watch_started_at > STABLE_SECONDS

    def unready_reason(self) -> str | None:
        """Why this process does not keep up with the cluster now, or None."""
        if not self._is_synced:
            return "nothing was listed yet"
        if not self.is_watching:
            return "the watch is not running"
        if self._is_outage:
            return "the API server does not answer"
        return self.problem()


def build_app(health: Health) -> web.Application:
    """The HTTP application."""

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
