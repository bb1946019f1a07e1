"""The resync: every few seconds all objects that may have something left to do are marked, so that no lost mark lasts.

It reads the caches, and asks the API server for nothing. Without caches (`finetune run`) it lists both kinds.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from finetune_api.contract import FINETUNE_JOB_KIND, INFERENCE_SERVICE_KIND
from finetune_operator.errors import ClusterError
from finetune_operator.handlers.keys import Key
from finetune_operator.handlers.watches import Watches
from finetune_operator.io.cluster import FINETUNE_JOBS, INFERENCE_SERVICES, Cluster, Resource
from finetune_operator.kubernetes_types import Raw
from finetune_operator.process import metrics
from finetune_operator.process.health import Health
from finetune_operator.reconcile.projections import JobSummary, summarize_job
from finetune_operator.settings import Settings

logger = logging.getLogger(__name__)

OUTAGE_RESYNC_SECONDS: Final = 2.0
"""Pause between two resyncs while the API server does not answer."""


class Resync:
    """Marks every object that may need a reconcile, again and again."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        mark: Callable[[Key], None],
        health: Health,
        watches: Watches | None = None,
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._mark = mark
        self._health = health
        self._watches = watches
        self._is_first = True

    async def run(self) -> None:
        """Resync until cancelled."""
        while True:
            pause = await self.once()
            await asyncio.sleep(pause)

    async def once(self) -> float:
        """Mark all objects that may have something left to do; return the pause until the next time in seconds."""
        try:
            if self._watches is not None:
                return self._from_caches(self._watches)
            services = [_key(INFERENCE_SERVICE_KIND, raw) for raw in await self._list(INFERENCE_SERVICES)]
            summaries = [(raw, summarize_job(raw)) for raw in await self._list(FINETUNE_JOBS)]
            self._mark_all(
                ((_key(FINETUNE_JOB_KIND, raw), found, found.is_settled) for raw, found in summaries), services
            )
        except ClusterError as error:
            metrics.RESYNCS.labels("failed").inc()
            self._health.resync_failed(is_outage=error.is_outage)
            logger.warning("resync failed", extra={"error": str(error)})
            return OUTAGE_RESYNC_SECONDS
        except Exception:
            # A bug must not end the resync, which ends the process. Health reports a resync that never succeeds.
            metrics.RESYNCS.labels("error").inc()
            self._health.resync_failed(is_outage=False)
            logger.exception("resync failed")
            return OUTAGE_RESYNC_SECONDS
        self._succeeded()
        return self._settings.resync_seconds

    def _from_caches(self, watches: Watches) -> float:
        """Mark from the caches, which are up to date if all watches run."""
        self._mark_all(watches.jobs(), watches.services())
        errors = [reflector.error for reflector in watches.problems if reflector.error is not None]
        if errors:
            metrics.RESYNCS.labels("failed").inc()
            self._health.resync_failed(is_outage=all(error.is_outage for error in errors))
            return OUTAGE_RESYNC_SECONDS
        self._succeeded()
        return self._settings.resync_seconds

    def _succeeded(self) -> None:
        metrics.RESYNCS.labels("ok").inc()
        self._health.resync_succeeded()
        self._is_first = False

    async def _list(self, resource: Resource) -> list[Raw]:
        namespaces: list[str | None] = [*sorted(self._settings.namespaces)] or [None]
        return [raw for namespace in namespaces for raw in await self._cluster.list(resource, namespace)]

    def _mark_all(self, jobs: Iterable[tuple[Key, JobSummary, bool]], services: Iterable[Key]) -> None:
        """Mark all services, and the jobs that have not ended or have a child that is still to be stopped.

        The first time also those with an endpoint, which may have changed while no operator ran.
        """
        for key in services:
            self._mark(key)
        phases: Counter[str] = Counter()
        for key, summary, is_idle in jobs:
            phases[summary.phase] += 1
            if not is_idle or (self._is_first and summary.has_endpoint):
                self._mark(key)
        metrics.JOBS.clear()
        for phase, count in phases.items():
            metrics.JOBS.labels(phase).set(count)


def _key(kind: str, raw: Raw) -> Key:
    return Key(kind, raw["metadata"]["namespace"], raw["metadata"]["name"])
