"""The workers: they take keys from the queue and reconcile them.

Marks only say "look at it again". The state is read from the caches at that moment, so a lost, repeated or late mark changes
nothing but the time; and the resync bounds that. A job that has ended is recognized before a reconcile is made.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Final

from finetune_api.contract import FINETUNE_JOB_KIND, INFERENCE_SERVICE_KIND
from finetune_operator.errors import ClusterError
from finetune_operator.handlers.keys import Key
from finetune_operator.handlers.resync import Resync
from finetune_operator.handlers.watches import Watches
from finetune_operator.handlers.work_queue import WorkQueue
from finetune_operator.io.cluster import FINETUNE_JOBS, INFERENCE_SERVICES
from finetune_operator.process import metrics
from finetune_operator.process.health import Health
from finetune_operator.reconcile.context import Context, ReconcileResult
from finetune_operator.reconcile.job.reconcile import reconcile_finetune_job
from finetune_operator.reconcile.service.reconcile import reconcile_inference_service

logger = logging.getLogger(__name__)

RECONCILE_SECONDS: Final = 600.0
"""Longest time for one reconcile. A probe of eight sequences against a slow CPU server takes minutes; a hang is for ever."""
CONFLICT_SECONDS: Final = 0.05
"""Pause after a conflict: somebody else wrote meanwhile, and the object is read again."""

Reconcile = Callable[[Context, str, str], Awaitable[ReconcileResult]]
RECONCILERS: Final[Mapping[str, Reconcile]] = {
    FINETUNE_JOB_KIND: reconcile_finetune_job,
    INFERENCE_SERVICE_KIND: reconcile_inference_service,
}


class Controller:
    """Reconciles marked keys until it is cancelled."""

    def __init__(self, context: Context, health: Health, *, mirrors: bool = False) -> None:
        """Work with caches if `mirrors`; without, whoever writes calls `mark`, and everything is read live."""
        self.queue: WorkQueue[Key] = WorkQueue()
        self.watches = Watches(context.cluster, context.settings, self.mark, health) if mirrors else None
        self.context = context if self.watches is None else replace(context, cache=self.watches.cache)
        self.resync = Resync(context.cluster, context.settings, self.mark, health, self.watches)

    def mark(self, key: Key, delay: float = 0.0) -> None:
        """Queue an object that may have changed."""
        self.queue.add(key, delay)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            if self.watches is not None:
                tasks.create_task(self.watches.run())
                await self.watches.synced.wait()
            for _ in range(self.context.settings.workers):
                tasks.create_task(self._work())
            tasks.create_task(self.resync.run())

    async def _work(self) -> None:
        while True:
            key = await self.queue.take()
            if self.watches is not None and self.watches.is_settled(key):
                self.queue.done(key)
                continue
            metrics.QUEUE_DEPTH.set(self.queue.overdue)
            started = time.monotonic()
            failed, done = await self._reconcile(key)
            metrics.RECONCILE_SECONDS.labels(key.kind).observe(time.monotonic() - started)
            if done.acted:
                self.queue.hold(key, self.context.settings.settle_seconds)
            requeue = 0.0 if done.acted and done.requeue_after is None else done.requeue_after
            self.queue.done(key, failed=failed, requeue_after=requeue)

    async def _reconcile(self, key: Key) -> tuple[bool, ReconcileResult]:
        """Reconcile one object. Its error is logged with its name and ends with that object."""
        fields = {"kind": key.kind, "object": f"{key.namespace}/{key.name}"}
        try:
            async with asyncio.timeout(RECONCILE_SECONDS):
                done = await RECONCILERS[key.kind](self.context, key.namespace, key.name)
        except ClusterError as error:
            if error.is_conflict:
                metrics.RECONCILES.labels(key.kind, "conflict").inc()
                return await self._catch_up(key), ReconcileResult(requeue_after=CONFLICT_SECONDS)
            metrics.RECONCILES.labels(key.kind, "refused").inc()
            logger.warning("reconcile was refused or not answered", extra={**fields, "error": str(error)})
            return True, ReconcileResult()
        except Exception:
            # A bug in one object's reconcile must not stop the workers of all others. It is logged whole, and repeated.
            metrics.RECONCILES.labels(key.kind, "error").inc()
            logger.exception("reconcile failed", extra=fields)
            return True, ReconcileResult()
        metrics.RECONCILES.labels(key.kind, "ok").inc()
        return False, done

    async def _catch_up(self, key: Key) -> bool:
        """Read an object whose cached version has proven to be old; return whether that failed."""
        if self.context.cache is None:
            return False
        resource = FINETUNE_JOBS if key.kind == FINETUNE_JOB_KIND else INFERENCE_SERVICES
        try:
            await self.context.cache.refresh(resource, key.namespace, key.name)
        except ClusterError:
            return True
        return False
