"""The resync: a LIST of both kinds every few seconds. It bounds how long a lost event can hide a change."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Final

from finetune_api.conditions import TERMINAL_PHASES, Phase
from finetune_api.contract import FINETUNE_JOB_KIND, INFERENCE_SERVICE_KIND
from finetune_operator.errors import ClusterError
from finetune_operator.handlers.keys import Key
from finetune_operator.io.cluster import FINETUNE_JOBS, INFERENCE_SERVICES, Cluster, Resource
from finetune_operator.kubernetes_types import Raw
from finetune_operator.process import metrics
from finetune_operator.process.health import Health
from finetune_operator.settings import Settings

logger = logging.getLogger(__name__)

OUTAGE_RESYNC_SECONDS: Final = 2.0
"""Pause between two LISTs while the API server does not answer."""
PHASES: Final = frozenset(Phase)
MALFORMED: Final = "Malformed"
"""Phase in the gauge of a job whose status cannot be read."""


class Resync:
    """Marks every object that may need a reconcile, again and again."""

    def __init__(self, cluster: Cluster, settings: Settings, mark: Callable[[Key], None], health: Health) -> None:
        self._cluster = cluster
        self._settings = settings
        self._mark = mark
        self._health = health

    async def run(self) -> None:
        """Resync until cancelled."""
        while True:
            pause = await self.once()
            await asyncio.sleep(pause)

    async def once(self) -> float:
        """List and mark all objects; return the pause until the next time in seconds."""
        try:
            jobs = await self._list(FINETUNE_JOBS)
            services = await self._list(INFERENCE_SERVICES)
            self._mark_all(jobs, services)
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
        metrics.RESYNCS.labels("ok").inc()
        self._health.resync_succeeded()
        return self._settings.resync_seconds

    async def _list(self, resource: Resource) -> list[Raw]:
        namespaces: list[str | None] = [*sorted(self._settings.namespaces)] or [None]
        return [raw for namespace in namespaces for raw in await self._cluster.list(resource, namespace)]

    def _mark_all(self, jobs: list[Raw], services: list[Raw]) -> None:
        for raw in services:
            self._mark(Key(INFERENCE_SERVICE_KIND, raw["metadata"]["namespace"], raw["metadata"]["name"]))
        for raw in jobs:
            if not is_settled(raw):
                self._mark(Key(FINETUNE_JOB_KIND, raw["metadata"]["namespace"], raw["metadata"]["name"]))
        phases = Counter(phase_of(raw) for raw in jobs)
        metrics.JOBS.clear()
        for phase, count in phases.items():
            metrics.JOBS.labels(phase).set(count)


def is_settled(raw: Raw) -> bool:
    """Tell whether a FinetuneJob has nothing left to do: thousands of finished jobs must not cost reads for ever.

    Any JSON may come as `spec` or `status`. One that is not an object is for the reconcile, which says so.
    """
    spec, status = raw.get("spec"), raw.get("status")
    if not isinstance(spec, dict) or not isinstance(status, dict) or phase_of(raw) not in TERMINAL_PHASES:
        return False
    has_ttl = "ttlSecondsAfterFinished" in spec
    return not has_ttl and status.get("observedGeneration") == raw["metadata"].get("generation")


def phase_of(raw: Raw) -> str:
    """Return the phase of a FinetuneJob as the gauge counts it."""
    status = raw.get("status")
    phase = status.get("phase") if isinstance(status, dict) else status
    if not phase:
        return Phase.PENDING
    # A label of the gauge: nobody can make it grow with values of their own.
    return phase if isinstance(phase, str) and phase in PHASES else MALFORMED
