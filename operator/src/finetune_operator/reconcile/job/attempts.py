"""The latest attempt of a job: its number, its end, and its account in status. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from pydantic import ValidationError

from finetune_api.conditions import ConditionType
from finetune_api.outcome import Outcome
from finetune_api.v1alpha1 import (
    AdapterReference,
    AdapterStatus,
    FinetuneJob,
    FinetuneJobStatus,
)
from finetune_operator.reconcile.conditions import is_true
from finetune_operator.reconcile.job.attempt_outcome import INTERRUPTIONS, AttemptEnd, find_end
from finetune_operator.reconcile.job.training_pod import ChildJob, TrainingPod

MAX_RETRY_SECONDS: Final = 300.0
"""Longest delay after a failure."""
INTERRUPTION_SECONDS: Final = 1.0
"""Delay after the first interruption; doubles with each."""
MAX_INTERRUPTION_SECONDS: Final = 60.0
"""Longest delay after an interruption: a node that evicts for ever must not make us start pods at full speed."""
SHOWN_DIGEST: Final = len("sha256:") + 12
"""Characters of a digest in a message."""


@dataclass(frozen=True)
class Attempt:
    """The latest attempt."""

    number: int
    """From 1; 0 if there was none."""
    child: ChildJob | None = None
    pod: TrainingPod | None = None
    end: AttemptEnd | None = None
    """Its end, until status records it."""
    is_open: bool = False
    """It still has to be reported on; closed attempts make room for the next."""

    @property
    def live_pod(self) -> TrainingPod | None:
        """Its pod, unless that has ended."""
        return self.pod if self.pod is not None and not self.pod.is_finished else None

    @property
    def was_training(self) -> bool:
        """The trainer of its pod started, so `validate` accepted the job."""
        return self.pod is not None and self.pod.started_at is not None


def find_attempt(status: FinetuneJobStatus, children: Sequence[ChildJob], all_pods: Sequence[TrainingPod]) -> Attempt:
    """Find the latest attempt in status and among the children, because a crash may lie between the two."""
    number = max([status.attempt, *(c.attempt for c in children), *(p.attempt for p in all_pods)])
    if number == 0:
        return Attempt(0)
    child = next((c for c in children if c.attempt == number), None)
    pods = [p for p in all_pods if p.attempt == number]
    pod = max(pods, key=lambda p: (not p.is_finished, p.created.timestamp() if p.created else 0.0), default=None)
    if _is_closed(status, number):
        return Attempt(number, child, pod)
    return Attempt(number, child, pod, find_end(child, pod, was_created=number <= status.attempt), is_open=True)


def _is_closed(status: FinetuneJobStatus, number: int) -> bool:
    if status.last_failure is not None and status.last_failure.attempt >= number:
        return True
    return is_true(status.conditions, ConditionType.SUSPENDED) and number <= status.attempt


def retry_due(status: FinetuneJobStatus, base_seconds: float) -> datetime | None:
    """Return when the next attempt may start; None means at once."""
    failure = status.last_failure
    if failure is None or failure.finish_time is None or failure.attempt < status.attempt:
        return None
    delay = retry_delay(failure.reason, status.attempt, status.failed_attempts, base_seconds)
    return failure.finish_time + timedelta(seconds=delay)


def retry_delay(reason: str, attempt: int, failed_attempts: int, base_seconds: float) -> float:
    """Return the seconds between the end of an attempt, for this reason, and the next; `failed_attempts` includes it."""
    if reason in INTERRUPTIONS:
        interruptions = max(1, attempt - failed_attempts)
        return min(INTERRUPTION_SECONDS * 2.0 ** min(interruptions - 1, 16), MAX_INTERRUPTION_SECONDS)
    return min(base_seconds * 2.0 ** min(max(0, failed_attempts - 1), 16), MAX_RETRY_SECONDS)


def adapter_status(job: FinetuneJob, outcome: Outcome | None) -> AdapterStatus | None:
    """Return the committed adapter, or None if its path or digest in the trainer's outcome cannot be used."""
    if outcome is None or outcome.adapter is None:
        return None
    committed = outcome.adapter
    uri = f"pvc://{job.spec.output.claim}/{committed.path}"
    try:
        # By the rules of the list of adapters that a served job's endpoint gets, so that what is published can be served.
        AdapterReference(name=job.adapter_name, source=uri, digest=committed.digest)
        return AdapterStatus(
            name=job.adapter_name,
            uri=uri,
            digest=committed.digest,
            size_bytes=committed.size_bytes,
            base_model=job.spec.model.source,
            base_revision=committed.base_revision,
            fingerprint=committed.fingerprint,
        )
    except (ValueError, ValidationError):
        return None


def published_message(adapter: AdapterStatus) -> str:
    """Say where the adapter is."""
    return f"Adapter {adapter.name} is at {adapter.uri} ({adapter.digest[:SHOWN_DIGEST]}…)."
