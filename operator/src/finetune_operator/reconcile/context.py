"""The arguments and the result of every reconcile."""

from dataclasses import dataclass, field

from finetune_operator.io.cache import Cache
from finetune_operator.io.cluster import Cluster
from finetune_operator.io.progress import ProgressReader
from finetune_operator.settings import Settings


@dataclass
class Context:
    """The outside world of the reconcilers."""

    cluster: Cluster
    progress: ProgressReader
    settings: Settings
    cache: Cache | None = None
    """Mirror of the API server; without one (`finetune run`) everything is read from `cluster`."""
    reported: set[str] = field(default_factory=set)
    """Reports about malformed objects that were made: once per version is enough."""

    @property
    def reads(self) -> Cluster | Cache:
        """The mirror, or the cluster itself: `get` and `list`."""
        return self.cluster if self.cache is None else self.cache


@dataclass(frozen=True)
class ReconcileResult:
    """The end of one reconcile."""

    acted: bool = False
    """Children were made; their first changes should be seen together."""
    requeue_after: float | None = None
    """Seconds until something is due even if nothing happens."""
