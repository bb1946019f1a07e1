"""Pods as decisions read them: the facts that training and server pods share, parsed at the border."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypedDict

from finetune_operator.kubernetes_types import Raw


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
    metadata, status = raw["metadata"], raw.get("status") or {}
    state = container_status(raw, container).get("state") or {}
    end = parse_end(state.get("terminated"))
    containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    return PodFields(
        name=metadata["name"],
        phase=status.get("phase") or "Pending",
        annotations=metadata.get("annotations") or {},
        is_deleting="deletionTimestamp" in metadata,
        unschedulable=words_of(pod_condition(raw, "PodScheduled"), "False"),
        waiting=_first_waiting(containers),
        started_at=started_at(state, end),
        end=end,
    )


def container_status(raw: Raw, name: str, kind: str = "containerStatuses") -> Raw:
    """Return the status of a container; empty if there is none yet."""
    states = (raw.get("status") or {}).get(kind) or []
    found: Raw = next((state for state in states if state.get("name") == name), {})
    return found


def pod_condition(raw: Raw, kind: str) -> Raw:
    """Return a condition of a pod; empty if there is none."""
    conditions = (raw.get("status") or {}).get("conditions") or []
    found: Raw = next((condition for condition in conditions if condition["type"] == kind), {})
    return found


def words_of(condition: Raw, status: str) -> tuple[str, str] | None:
    """Return reason and message of a condition with this `status`, or None."""
    if condition.get("status") != status:
        return None
    return condition.get("reason") or "", condition.get("message") or ""


def parse_end(terminated: Raw | None) -> ContainerEnd | None:
    """Parse `state.terminated` of a container."""
    if not terminated:
        return None
    return ContainerEnd(
        exit_code=int(terminated.get("exitCode", -1)),
        reason=terminated.get("reason") or "",
        message=terminated.get("message") or "",
        started_at=parse_time(terminated.get("startedAt")),
        finished_at=parse_time(terminated.get("finishedAt")),
    )


def started_at(state: Raw, end: ContainerEnd | None) -> datetime | None:
    """Return when a container in this state started, or None if it has not."""
    return parse_time((state.get("running") or {}).get("startedAt")) or (end.started_at if end else None)


def parse_time(text: str | None) -> datetime | None:
    """Parse a metav1.Time or MicroTime."""
    return datetime.fromisoformat(text) if text else None


def _first_waiting(containers: list[Raw]) -> tuple[str, str] | None:
    for status in containers:
        if waiting := (status.get("state") or {}).get("waiting"):
            return waiting.get("reason") or "", waiting.get("message") or ""
    return None
