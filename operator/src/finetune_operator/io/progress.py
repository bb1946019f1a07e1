"""Progress of running attempts, read from Celery's result backend. Without Redis only the progress in status is missing."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from finetune_api.contract import task_id
from finetune_api.outcome import PROGRESS_STATE, Progress

if TYPE_CHECKING:
    from redis.asyncio import Redis

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 0.5
"""Timeout in seconds for connecting and for an answer, short because a reconcile must not wait for optional data."""
PAUSE_SECONDS = 15.0
"""Seconds without requests after an error, so that an unreachable Redis costs one timeout in 15 s, not one per pass."""
GATHER_SECONDS = 0.02
"""Seconds for which reads are gathered into one request."""
KEY_PREFIX = "celery-task-meta-"
"""Prefix of the keys of Celery's Redis backend."""


class ProgressReader:
    """Reader of progress. Returns None if Redis does not answer.

    Reads that come together are one request: hundreds of running jobs would otherwise exceed any pool of connections, and each
    would wait for all others.
    """

    def __init__(self, broker_url: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._broker_url = broker_url or None
        self._clock = clock
        self._silent_until = 0.0
        self._redis: Redis | None = None
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._flush: asyncio.Task[None] | None = None

    async def read(self, job_uid: str, attempt: int) -> Progress | None:
        """Read the latest progress of an attempt; None if there is none or Redis does not answer."""
        if self._broker_url is None or self._clock() < self._silent_until:
            return None
        key = KEY_PREFIX + task_id(job_uid, attempt)
        if key not in self._waiting:
            self._waiting[key] = asyncio.get_running_loop().create_future()
        waiting = self._waiting[key]
        if self._flush is None or self._flush.done():
            self._flush = asyncio.create_task(self._read_all(self._broker_url))
        return parse_result(await waiting)

    async def _read_all(self, url: str) -> None:
        """Read all keys that are waited for, until there are none."""
        await asyncio.sleep(GATHER_SECONDS)
        while self._waiting:
            waiting, self._waiting = self._waiting, {}
            values: list[Any] = [None] * len(waiting)
            try:
                # One round trip of GETs and not one MGET, because the operator's user of the chart's Redis may only GET.
                requests = self._connected(url).pipeline(transaction=False)
                for key in waiting:
                    requests.get(key)
                values = await requests.execute()
            except Exception as error:
                # Any error: no failure of Redis may affect a job, and its client raises many kinds.
                self._silent_until = self._clock() + PAUSE_SECONDS
                logger.warning(
                    "progress is not available: Redis does not answer, or refuses",
                    extra={"error": type(error).__name__},
                )
            for future, value in zip(waiting.values(), values, strict=True):
                if not future.done():
                    future.set_result(value)

    async def close(self) -> None:
        """Close the connection."""
        if self._redis is not None:
            await self._redis.aclose()

    def _connected(self, url: str) -> "Redis":
        if self._redis is None:
            # Imported only where a broker is configured: start-up stays fast without one.
            from redis.asyncio import Redis

            self._redis = Redis.from_url(url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS)
        return self._redis


def parse_result(value: Any) -> Progress | None:
    """Parse a value of the result backend; None if the task has not reported progress or has ended."""
    try:
        meta = json.loads(value) if value else {}
        if not isinstance(meta, dict) or meta.get("status") != PROGRESS_STATE:
            return None
        return Progress.model_validate(meta.get("result"))
    except (ValueError, ValidationError):
        return None
