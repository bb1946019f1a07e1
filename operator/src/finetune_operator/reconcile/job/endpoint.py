"""The endpoint of a FinetuneJob, read from its InferenceService. Pure."""

from dataclasses import dataclass
from datetime import datetime

from finetune_api.conditions import ConditionType
from finetune_api.v1alpha1 import AdapterStatus, Condition, FinetuneJob, InferenceService, ServedAdapterStatus
from finetune_operator.reconcile.conditions import find_condition
from finetune_operator.reconcile.ownership import Ownership, ownership


@dataclass(frozen=True)
class Endpoint:
    """An InferenceService, as far as it concerns the job's adapter."""

    service: InferenceService
    owner: Ownership
    has_version: bool
    """The service is to serve this very version."""
    ready: Condition | None
    """Ready; None while it describes an older spec."""
    verdict: ServedAdapterStatus | None
    """Verdict about the job's version of the adapter; None while there is none about the current spec."""
    started_time: datetime | None
    """Begin of the rollout."""

    @property
    def is_ready(self) -> bool:
        """The endpoint answers."""
        return self.ready is not None and self.ready.status == "True"


def read_endpoint(job: FinetuneJob, service: InferenceService, now: datetime) -> Endpoint:
    """Read the state of the endpoint that serves, or is to serve, the job's adapter."""
    adapter, old = job.status.adapter, job.status.serving
    owner = ownership(job, service.metadata.owner_references)
    is_current = service.status.observed_generation >= service.metadata.generation
    # An endpoint of somebody else may be years old; the job's time begins now.
    begin = service.metadata.creation_timestamp if owner is Ownership.OWN else None
    started = old.started_time if old is not None else begin or now
    return Endpoint(
        service,
        owner,
        has_version=adapter is not None and _has_version(service, adapter),
        ready=find_condition(service.status.conditions, ConditionType.READY) if is_current else None,
        verdict=_find_verdict(service, adapter) if is_current and adapter is not None else None,
        started_time=started.replace(microsecond=0) if started else None,
    )


def _has_version(service: InferenceService, adapter: AdapterStatus) -> bool:
    return any(
        a.name == adapter.name and a.source == adapter.uri and a.digest == adapter.digest for a in service.spec.adapters
    )


def _find_verdict(service: InferenceService, adapter: AdapterStatus) -> ServedAdapterStatus | None:
    return next((a for a in service.status.adapters if a.name == adapter.name and a.digest == adapter.digest), None)
