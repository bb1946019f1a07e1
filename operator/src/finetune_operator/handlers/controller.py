"""The loop between events and reconciles: a queue of dirty keys, workers, and our own resync. Knows nothing of kopf.

Events only say "look again". What is found is read from the API server at that moment, so a lost, repeated or late event
changes nothing but the time; and the resync bounds that.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from finetune_api.contract import FINETUNE_JOB_KIND, INFERENCE_SERVICE_KIND
from finetune_api.reasons import TERMINAL_PHASES
from finetune_operator.errors import ClusterError
from finetune_operator.handlers.work_queue import WorkQueue
from finetune_operator.io.cluster import FINETUNE_JOBS, INFERENCE_SERVICES, Resource
from finetune_operator.kubernetes_types import Raw
from finetune_operator.process import metrics
from finetune_operator.process.health import Health
from finetune_operator.reconcile.context import Context, ReconcileResult
from finetune_operator.reconcile.job.reconcile import reconcile_finetune_job
from finetune_operator.reconcile.service.reconcile import reconcile_inference_service
from finetune_operator.resources.labels import LABEL_JOB_NAME, LABEL_SERVICE_NAME

logger = logging.getLogger(__name__)

PASS_SECONDS: Final = 600.0
"""Longest time for one pass. A probe of eight sequences against a slow CPU server takes minutes; a hang is for ever."""
OUTAGE_RESYNC_SECONDS: Final = 2.0
"""Pause between two LISTs while the API server does not answer."""


class Key(NamedTuple):
    """An object of ours."""

    kind: str
    namespace: str
    name: str


Reconcile = Callable[[Context, str, str], Awaitable[ReconcileResult]]
RECONCILERS: Final[Mapping[str, Reconcile]] = {
    FINETUNE_JOB_KIND: reconcile_finetune_job,
    INFERENCE_SERVICE_KIND: reconcile_inference_service,
}


def keys_of(metadata: Mapping[str, Any]) -> list[Key]:
    """Keys of the objects that a child or an owned object belongs to, from its labels."""
    labels, namespace = metadata.get("labels") or {}, metadata.get("namespace") or ""
    keys = []
    if name := labels.get(LABEL_JOB_NAME):
        keys.append(Key(FINETUNE_JOB_KIND, namespace, name))
    if name := labels.get(LABEL_SERVICE_NAME):
        keys.append(Key(INFERENCE_SERVICE_KIND, namespace, name))
    return keys


class Controller:
    """Works on dirty keys until it is cancelled."""

    def __init__(self, context: Context, health: Health) -> None:
        self.context = context
        self.health = health
        self.queue: WorkQueue[Key] = WorkQueue()

    def mark(self, key: Key) -> None:
        """Something about this object may have changed."""
        self.queue.add(key)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self.context.settings.workers):
                tasks.create_task(self._work())
            tasks.create_task(self._resync())

    async def _work(self) -> None:
        while True:
            key = await self.queue.take()
            metrics.QUEUE_DEPTH.set(self.queue.overdue)
            started = time.monotonic()
            failed, done = await self._reconcile(key)
            metrics.RECONCILE_SECONDS.labels(key.kind).observe(time.monotonic() - started)
            if done.acted:
                self.queue.hold(key, self.context.settings.settle_seconds)
            requeue = 0.0 if done.acted and done.requeue_after is None else done.requeue_after
            self.queue.done(key, failed=failed, requeue_after=requeue)

    async def _reconcile(self, key: Key) -> tuple[bool, ReconcileResult]:
        """One pass. An error of one object is logged with its name and ends with that object."""
        fields = {"kind": key.kind, "object": f"{key.namespace}/{key.name}"}
        try:
            async with asyncio.timeout(PASS_SECONDS):
                done = await RECONCILERS[key.kind](self.context, key.namespace, key.name)
        except ClusterError as error:
            if error.is_conflict:
                # Somebody wrote meanwhile; what we decided on is old. Look again.
                metrics.RECONCILES.labels(key.kind, "conflict").inc()
                return False, ReconcileResult(requeue_after=0.05)
            metrics.RECONCILES.labels(key.kind, "refused").inc()
            logger.warning("reconcile did not get through", extra={**fields, "error": str(error)})
            return True, ReconcileResult()
        except Exception:
            # A bug in one object's pass must not stop the workers of all others. It is logged whole, and repeated.
            metrics.RECONCILES.labels(key.kind, "error").inc()
            logger.exception("reconcile failed", extra=fields)
            return True, ReconcileResult()
        metrics.RECONCILES.labels(key.kind, "ok").inc()
        return False, done

    async def _resync(self) -> None:
        """LIST both kinds again and again: the bound on how long a lost event can hide anything."""
        while True:
            try:
                jobs = await self._list(FINETUNE_JOBS)
                services = await self._list(INFERENCE_SERVICES)
            except ClusterError as error:
                metrics.RESYNCS.labels("failed").inc()
                self.health.resync_failed(is_outage=error.is_outage)
                logger.warning("resync failed", extra={"error": str(error)})
                await asyncio.sleep(OUTAGE_RESYNC_SECONDS)
                continue
            metrics.RESYNCS.labels("ok").inc()
            self.health.resync_succeeded()
            self._mark_all(jobs, services)
            await asyncio.sleep(self.context.settings.resync_seconds)

    async def _list(self, resource: Resource) -> list[Raw]:
        namespaces: list[str | None] = [*sorted(self.context.settings.namespaces)] or [None]
        return [raw for namespace in namespaces for raw in await self.context.cluster.list(resource, namespace)]

    def _mark_all(self, jobs: list[Raw], services: list[Raw]) -> None:
        for raw in services:
            self.mark(Key(INFERENCE_SERVICE_KIND, raw["metadata"]["namespace"], raw["metadata"]["name"]))
        for raw in jobs:
            if not is_settled(raw):
                self.mark(Key(FINETUNE_JOB_KIND, raw["metadata"]["namespace"], raw["metadata"]["name"]))
        phases = Counter(str((raw.get("status") or {}).get("phase") or "Pending") for raw in jobs)
        metrics.JOBS.clear()
        for phase, count in phases.items():
            metrics.JOBS.labels(phase).set(count)


def is_settled(raw: Raw) -> bool:
    """Whether a FinetuneJob has nothing left to do: thousands of finished jobs must not cost reads for ever."""
    status = raw.get("status") or {}
    if not isinstance(status, dict) or status.get("phase") not in TERMINAL_PHASES:
        return False
    has_ttl = "ttlSecondsAfterFinished" in raw["spec"]
    return not has_ttl and status.get("observedGeneration") == raw["metadata"].get("generation")
