"""The children of a FinetuneJob's attempts: the Kubernetes Job and its pod, parsed at the border."""

from dataclasses import dataclass
from datetime import datetime

from finetune_operator.kubernetes_types import Raw
from finetune_operator.reconcile.pod import (
    ContainerEnd,
    Pod,
    container_status,
    parse_common,
    parse_end,
    parse_time,
    pod_condition,
    started_at,
    words_of,
)
from finetune_operator.resources.labels import LABEL_ATTEMPT
from finetune_operator.resources.training_job import TRAINER_CONTAINER, VALIDATE_CONTAINER


@dataclass(frozen=True)
class TrainingPod(Pod):
    """The pod of an attempt: `validate`, then the trainer, which is the main container."""

    attempt: int = 0
    created: datetime | None = None
    is_scheduled: bool = False
    reason: str = ""
    """status.reason: Evicted, NodeLost, OutOfcpu, ..."""
    message: str = ""
    disruption: tuple[str, str] | None = None
    """Reason and message of DisruptionTarget=True."""
    validation_started_at: datetime | None = None
    """Start of `validate`."""
    validation_end: ContainerEnd | None = None
    """End of `validate`, if it has ended."""

    @property
    def is_lost(self) -> bool:
        """The pod's node stopped reporting."""
        is_tainted = self.disruption is not None and self.disruption[0] == "DeletionByTaintManager"
        return self.reason == "NodeLost" or is_tainted


@dataclass(frozen=True)
class ChildJob:
    """The Kubernetes Job of an attempt."""

    name: str
    attempt: int = 0
    uid: str = ""
    created: datetime | None = None
    started: datetime | None = None
    """status.startTime: creation, or the moment when Kueue admitted it."""
    is_deleting: bool = False
    is_suspended: bool = False
    """Kueue has not admitted it."""
    outcome: str = ""
    """`Complete`, `Failed`, or empty while the Job is undecided."""
    message: str = ""

    @property
    def is_finished(self) -> bool:
        """The Job controller will make no further pod."""
        return bool(self.outcome)


def parse_training_pod(raw: Raw) -> TrainingPod:
    """Parse a raw Pod of a training Job."""
    metadata, status = raw["metadata"], raw.get("status") or {}
    validation = container_status(raw, VALIDATE_CONTAINER, "initContainerStatuses").get("state") or {}
    validation_end = parse_end(validation.get("terminated"))
    return TrainingPod(
        **parse_common(raw, TRAINER_CONTAINER),
        attempt=parse_attempt(metadata),
        created=parse_time(metadata.get("creationTimestamp")),
        is_scheduled=pod_condition(raw, "PodScheduled").get("status") == "True",
        reason=status.get("reason") or "",
        message=status.get("message") or "",
        disruption=words_of(pod_condition(raw, "DisruptionTarget"), "True"),
        validation_started_at=started_at(validation, validation_end),
        validation_end=validation_end,
    )


def parse_child_job(raw: Raw) -> ChildJob:
    """Parse a raw batch/v1 Job."""
    metadata, status = raw["metadata"], raw.get("status") or {}
    ended: Raw = next(
        (c for c in status.get("conditions") or [] if c["type"] in ("Complete", "Failed") and c["status"] == "True"), {}
    )
    return ChildJob(
        name=metadata["name"],
        attempt=parse_attempt(metadata),
        uid=metadata.get("uid", ""),
        created=parse_time(metadata.get("creationTimestamp")),
        started=parse_time(status.get("startTime")),
        is_deleting="deletionTimestamp" in metadata,
        is_suspended=bool((raw.get("spec") or {}).get("suspend")),
        outcome=ended.get("type", ""),
        message=ended.get("message") or "",
    )


def parse_attempt(metadata: Raw) -> int:
    """Parse the attempt number from the labels; 0 for a child that somebody relabelled."""
    text = (metadata.get("labels") or {}).get(LABEL_ATTEMPT, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
