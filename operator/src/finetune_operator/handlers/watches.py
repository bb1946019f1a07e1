"""All watches in one place: our two kinds, and the children that carry our label, each mirrored into a cache.

A change of a cached object marks the keys of the objects that it concerns, nothing else.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

from finetune_api.contract import FINETUNE_JOB_KIND, INFERENCE_SERVICE_KIND
from finetune_operator.handlers.keys import Key, keys_of
from finetune_operator.io.cache import Cache, Kind, KindCache, without_noise
from finetune_operator.io.cluster import (
    CLAIMS,
    DEPLOYMENTS,
    FINETUNE_JOBS,
    INFERENCE_SERVICES,
    JOBS,
    PODS,
    Cluster,
    Resource,
)
from finetune_operator.io.reflector import Reflector
from finetune_operator.kubernetes_types import Raw
from finetune_operator.process.health import Health
from finetune_operator.reconcile.projections import (
    JobSummary,
    is_finished_job,
    is_finished_pod,
    project_job,
    project_pod,
    summarize_job,
)
from finetune_operator.resources.labels import LABEL_JOB_UID, LABEL_SERVICE_NAME, MANAGED_SELECTOR
from finetune_operator.settings import Settings

Mark = Callable[[Key, float], None]
"""Called with the key of an object that may have changed, and the seconds for which its reconcile may wait."""

CLAIM_SECONDS: Final = 60.0
"""Seconds for which a claim that was seen is taken to exist. Without it, the scheduler names it in the pod's status."""
KINDS: Final = (
    Kind(FINETUNE_JOBS, project=without_noise, summarize=summarize_job),
    Kind(INFERENCE_SERVICES, project=without_noise),
    Kind(JOBS, MANAGED_SELECTOR, (LABEL_JOB_UID,), project_job, is_finished_job),
    Kind(PODS, MANAGED_SELECTOR, (LABEL_JOB_UID, LABEL_SERVICE_NAME), project_pod, is_finished_pod),
    Kind(DEPLOYMENTS, MANAGED_SELECTOR, project=without_noise),
)
"""Mirrored kinds. Services, budgets and lists of adapters are few; the resync reads and repairs them."""
GATHER_SECONDS: Final = 0.05
"""Seconds for which changes of a job's children are gathered: a pod that starts changes several times, and so does its Job."""
OWN_KINDS: Final = {FINETUNE_JOBS: FINETUNE_JOB_KIND, INFERENCE_SERVICES: INFERENCE_SERVICE_KIND}


class Watches:
    """Mirrors all kinds, and marks what changes."""

    def __init__(self, cluster: Cluster, settings: Settings, mark: Mark, health: Health) -> None:
        self._mark = mark
        self._health = health
        self.kinds = {kind.resource: KindCache(kind, self._notifier(kind.resource)) for kind in KINDS}
        self.cache = Cache(cluster, self.kinds, {CLAIMS: CLAIM_SECONDS})
        namespaces: list[str | None] = [*sorted(settings.namespaces)] or [None]
        self._reflectors = [
            Reflector(cluster, cache, namespace, self._report)
            for cache in self.kinds.values()
            for namespace in namespaces
        ]
        self.synced = asyncio.Event()
        """All caches were complete once. Until then nothing is marked: the first resync reads all of them."""

    async def run(self) -> None:
        """Mirror until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for reflector in self._reflectors:
                tasks.create_task(reflector.run(), name=reflector.name)

    @property
    def problems(self) -> list[Reflector]:
        """Mirrors that do not follow now."""
        return [reflector for reflector in self._reflectors if not reflector.is_following]

    def jobs(self) -> Iterator[tuple[Key, JobSummary, bool]]:
        """Yield all FinetuneJobs, and whether each has ended and has no live child."""
        children = self.kinds[JOBS]
        for namespace, name, uid, summary in self.kinds[FINETUNE_JOBS].summaries():
            is_idle = summary.is_settled and all(children.owned_summaries(namespace, uid))
            yield Key(FINETUNE_JOB_KIND, namespace, name), summary, is_idle

    def services(self) -> Iterator[Key]:
        """Yield all InferenceServices."""
        for namespace, name, _, _ in self.kinds[INFERENCE_SERVICES].summaries():
            yield Key(INFERENCE_SERVICE_KIND, namespace, name)

    def is_settled(self, key: Key) -> bool:
        """Tell from the caches alone that a reconcile would do nothing: a job that has ended and has no live child."""
        if key.kind != FINETUNE_JOB_KIND:
            return False
        found = self.kinds[FINETUNE_JOBS].identity(key.namespace, key.name)
        if found is None:
            return True
        uid, summary = found
        if not summary.is_settled or summary.has_endpoint:
            return False
        return all(self.kinds[JOBS].owned_summaries(key.namespace, uid))

    def _notifier(self, resource: Resource) -> Callable[[Raw, bool], None]:
        def notify(metadata: Raw, is_own_status: bool) -> None:
            if not self.synced.is_set():
                return
            # After its own status write a job is marked by its reconcile, if anything is left to do.
            if resource in OWN_KINDS and not (is_own_status and resource == FINETUNE_JOBS):
                self._mark(Key(OWN_KINDS[resource], metadata["namespace"], metadata["name"]), 0.0)
            for key in keys_of(metadata):
                is_trainer = key.kind == FINETUNE_JOB_KIND and resource in (JOBS, PODS)
                self._mark(key, GATHER_SECONDS if is_trainer else 0.0)

        return notify

    def _report(self, changed: Reflector) -> None:
        if not self.synced.is_set() and all(reflector.is_synced for reflector in self._reflectors):
            self.synced.set()
        if changed.error is not None:
            self._health.resync_failed(is_outage=changed.error.is_outage)
            if self._health.is_watching:
                self._health.watch_lost()
        elif not self.problems and not self._health.is_watching:
            self._health.watch_started()
