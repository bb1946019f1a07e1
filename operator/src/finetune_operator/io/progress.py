"""Progress of running attempts, from Celery's result backend. Redis is a radio: silence costs freshness, nothing else."""

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
"""For connecting and for an answer. A reconcile must not wait for a radio."""
PAUSE_SECONDS = 15.0
"""After an error nobody asks Redis for this long: a dead Redis then costs one timeout in fifteen seconds, not one per pass."""
KEY_PREFIX = "celery-task-meta-"
"""How Celery's Redis backend names its results."""


class ProgressReader:
    """Reads progress; answers None whenever it cannot."""

    def __init__(self, broker_url: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._broker_url = broker_url or None
        self._clock = clock
        self._silent_until = 0.0
        self._redis: Redis | None = None

    async def read(self, job_uid: str, attempt: int) -> Progress | None:
        """The latest figures of an attempt, or None if there are none or Redis does not answer."""
        if self._broker_url is None or self._clock() < self._silent_until:
            return None
        try:
            value = await self._connected(self._broker_url).get(KEY_PREFIX + task_id(job_uid, attempt))
        except Exception as error:
            # Whatever goes wrong with Redis must not matter to a job; the client raises many kinds of errors.
            self._silent_until = self._clock() + PAUSE_SECONDS
            logger.warning("progress is not available", extra={"error": type(error).__name__})
            return None
        return parse_result(value)

    async def close(self) -> None:
        """Close the connection."""
        if self._redis is not None:
            await self._redis.aclose()

    def _connected(self, url: str) -> "Redis":
        if self._redis is None:
            # Imported only where a broker is configured: start-up stays fast without one.
            from redis.asyncio import Redis

            self._redis = Redis.from_url(
                url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS, max_connections=8
            )
        return self._redis


def parse_result(value: Any) -> Progress | None:
    """Progress from a value of the result backend; None if the task has not reported any, or has ended."""
    try:
        meta = json.loads(value) if value else {}
        if not isinstance(meta, dict) or meta.get("status") != PROGRESS_STATE:
            return None
        return Progress.model_validate(meta.get("result"))
    except (ValueError, ValidationError):
        return None
