"""The children of a FinetuneJob's attempts: the Kubernetes Job and its pod, parsed at the border."""

from dataclasses import dataclass
from datetime import datetime

from finetune_operator.kubernetes_types import Raw, map_of, maps_of, text_of, texts_of
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
    metadata, status = map_of(raw, "metadata"), map_of(raw, "status")
    validation = map_of(container_status(raw, VALIDATE_CONTAINER, "initContainerStatuses"), "state")
    validation_end = parse_end(map_of(validation, "terminated"))
    return TrainingPod(
        **parse_common(raw, TRAINER_CONTAINER),
        attempt=parse_attempt(metadata),
        created=parse_time(text_of(metadata, "creationTimestamp")),
        is_scheduled=pod_condition(raw, "PodScheduled").get("status") == "True",
        reason=text_of(status, "reason"),
        message=text_of(status, "message"),
        disruption=words_of(pod_condition(raw, "DisruptionTarget"), "True"),
        validation_started_at=started_at(validation, validation_end),
        validation_end=validation_end,
    )


def parse_child_job(raw: Raw) -> ChildJob:
    """Parse a raw batch/v1 Job."""
    metadata, status = map_of(raw, "metadata"), map_of(raw, "status")
    ended: Raw = next(
        (
            c
            for c in maps_of(status, "conditions")
            if c.get("type") in ("Complete", "Failed") and c.get("status") == "True"
        ),
        {},
    )
    return ChildJob(
        name=text_of(metadata, "name"),
        attempt=parse_attempt(metadata),
        uid=text_of(metadata, "uid"),
        created=parse_time(text_of(metadata, "creationTimestamp")),
        started=parse_time(text_of(status, "startTime")),
        is_deleting="deletionTimestamp" in metadata,
        is_suspended=bool(map_of(raw, "spec").get("suspend")),
        outcome=text_of(ended, "type"),
        message=text_of(ended, "message"),
    )


def parse_attempt(metadata: Raw) -> int:
    """Parse the attempt number from the labels; 0 for a child that somebody relabelled."""
    text = texts_of(metadata, "labels").get(LABEL_ATTEMPT, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
