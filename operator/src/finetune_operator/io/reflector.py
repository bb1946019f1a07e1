"""A reflector: keeps the cache of one kind equal to the API server, by a paged LIST and a WATCH from where that ended.

Like client-go's: bookmarks, a new LIST after 410 Gone, back-off after failures, and no trust in a stream that falls silent.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any, Final

from finetune_operator.errors import ClusterError
from finetune_operator.io.cache import KindCache, version_of
from finetune_operator.io.cluster import Cluster
from finetune_operator.process import metrics

logger = logging.getLogger(__name__)

GONE: Final = 410
"""Status of a watch whose start was compacted away."""
FIRST_BACKOFF_SECONDS: Final = 0.2
MAX_BACKOFF_SECONDS: Final = 2.0
"""After an outage, client-go's thirty seconds would be blindness; two seconds are polite enough."""


class Reflector:
    """Mirrors one kind, in one namespace or in all, until it is cancelled."""

    def __init__(
        self, cluster: Cluster, cache: KindCache, namespace: str | None, report: "Callable[[Reflector], None]"
    ) -> None:
        self._cluster = cluster
        self._cache = cache
        self._namespace = namespace
        self._report = report
        self._version = ""
        self.is_synced = False
        """The cache was complete once; from then on it may be behind, but never empty."""
        self.is_following = False
        """The watch runs."""
        self.error: ClusterError | None = None
        """Problem of the last request; None if it succeeded."""
        self._failures = 0

    @property
    def name(self) -> str:
        """Kind and scope, for messages."""
        return f"{self._cache.kind.resource.plural} in {self._namespace or 'all namespaces'}"

    async def run(self) -> None:
        """Mirror until cancelled."""
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except ClusterError as error:
                await self._recover(error)
            except Exception as error:
                # A bug of ours with one object must not end the mirror of all others.
                logger.exception("reflector failed", extra={"kind": self.name})
                self._version = ""
                await self._recover(ClusterError("watch", self.name, 0, f"{type(error).__name__}: {error}"))

    async def _list(self) -> None:
        """Bring the cache to the state of a LIST, page by page."""
        seen: set[str] = set()
        version = ""
        async for page in self._cluster.pages(self._cache.kind.resource, self._namespace, self._cache.kind.selector):
            for raw in page.items:
                seen.add(raw["metadata"]["uid"])
                self._cache.put(raw)
            version = version or page.version
            # Thousands of objects: whoever waits for the event loop gets a turn.
            await asyncio.sleep(0)
        number = version_of({"resourceVersion": version})
        self._cache.retain(self._namespace, seen, number)
        self._cache.moved_to(self._namespace, number)
        self._version, self.is_synced = version, True
        metrics.LISTS.labels(self._cache.kind.resource.plural).inc()

    async def _watch(self) -> None:
        kind = self._cache.kind
        async for event in self._cluster.events(kind.resource, self._namespace, kind.selector, self._version):
            if event is None:
                self._succeeded()
                continue
            self._apply(*event)

    def _apply(self, kind: str, raw: dict[str, Any]) -> None:
        metadata = raw["metadata"]
        if kind == "DELETED":
            self._cache.remove(metadata)
        elif kind != "BOOKMARK":
            self._cache.put(raw)
        self._version = metadata["resourceVersion"]
        self._cache.moved_to(self._namespace, version_of(metadata))

    def _succeeded(self) -> None:
        self.is_following, self.error, self._failures = True, None, 0
        self._report(self)

    async def _recover(self, error: ClusterError) -> None:
        """Wait a moment; after 410 the next round begins with a LIST."""
        if error.status == GONE:
            self._version = ""
        self.is_following, self.error = False, error
        self._failures += 1
        self._report(self)
        metrics.WATCH_RESTARTS.inc()
        logger.warning("watch is repeated", extra={"kind": self.name, "error": str(error)})
        pause = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(self._failures - 1, 10))
        await asyncio.sleep(pause * random.uniform(0.7, 1.0))  # noqa: S311 - spreads requests, hides nothing
