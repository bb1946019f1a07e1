"""Pods as decisions read them: the facts that training and server pods share, parsed at the border."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypedDict

from finetune_operator.kubernetes_types import Raw, map_of, maps_of, number_of, text_of, texts_of


@dataclass(frozen=True)
class ContainerEnd:
    """The end of a container."""

    exit_code: int
    reason: str = ""
    message: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True)
class Pod:
    """A pod of either kind."""

    name: str
    phase: str = "Pending"
    annotations: Mapping[str, str] = field(default_factory=dict)
    is_deleting: bool = False
    unschedulable: tuple[str, str] | None = None
    """Reason and message of PodScheduled=False."""
    waiting: tuple[str, str] | None = None
    """Reason and message of the first container that waits."""
    started_at: datetime | None = None
    """Start of the main container, if it runs or ran."""
    end: ContainerEnd | None = None
    """End of the main container, if it has ended."""

    @property
    def is_finished(self) -> bool:
        """No process of this pod runs or will run again."""
        return self.phase in ("Succeeded", "Failed")


class PodFields(TypedDict):
    """Keyword arguments of `Pod`."""

    name: str
    phase: str
    annotations: Mapping[str, str]
    is_deleting: bool
    unschedulable: tuple[str, str] | None
    waiting: tuple[str, str] | None
    started_at: datetime | None
    end: ContainerEnd | None


def parse_common(raw: Raw, container: str) -> PodFields:
    """Parse the facts of a raw Pod that both kinds of pods have; `container` names the main one."""
    metadata, status = map_of(raw, "metadata"), map_of(raw, "status")
    state = map_of(container_status(raw, container), "state")
    end = parse_end(map_of(state, "terminated"))
    containers = [*maps_of(status, "initContainerStatuses"), *maps_of(status, "containerStatuses")]
    return PodFields(
        name=text_of(metadata, "name"),
        phase=text_of(status, "phase") or "Pending",
        annotations=texts_of(metadata, "annotations"),
        is_deleting="deletionTimestamp" in metadata,
        unschedulable=words_of(pod_condition(raw, "PodScheduled"), "False"),
        waiting=_first_waiting(containers),
        started_at=started_at(state, end),
        end=end,
    )


def container_status(raw: Raw, name: str, kind: str = "containerStatuses") -> Raw:
    """Return the status of a container; empty if there is none yet."""
    states = maps_of(map_of(raw, "status"), kind)
    return next((state for state in states if state.get("name") == name), {})


def pod_condition(raw: Raw, kind: str) -> Raw:
    """Return a condition of a pod; empty if there is none."""
    conditions = maps_of(map_of(raw, "status"), "conditions")
    return next((condition for condition in conditions if condition.get("type") == kind), {})


def words_of(condition: Raw, status: str) -> tuple[str, str] | None:
    """Return reason and message of a condition with this `status`, or None."""
    if condition.get("status") != status:
        return None
    return text_of(condition, "reason"), text_of(condition, "message")


def parse_end(terminated: Raw | None) -> ContainerEnd | None:
    """Parse `state.terminated` of a container."""
    if not terminated:
        return None
    return ContainerEnd(
        exit_code=number_of(terminated, "exitCode", -1),
        reason=text_of(terminated, "reason"),
        message=text_of(terminated, "message"),
        started_at=parse_time(text_of(terminated, "startedAt")),
        finished_at=parse_time(text_of(terminated, "finishedAt")),
    )


def started_at(state: Raw, end: ContainerEnd | None) -> datetime | None:
    """Return when a container in this state started, or None if it has not."""
    return parse_time(text_of(map_of(state, "running"), "startedAt")) or (end.started_at if end else None)


def parse_time(text: str | None) -> datetime | None:
    """Parse a metav1.Time or MicroTime."""
    if not text:
        return None
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"the time {text!r} has no time zone")
    return moment


def _first_waiting(containers: list[Raw]) -> tuple[str, str] | None:
    for status in containers:
        if waiting := map_of(map_of(status, "state"), "waiting"):
            return text_of(waiting, "reason"), text_of(waiting, "message")
    return None
