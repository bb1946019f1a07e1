"""Typed views of raw children, parsed at the border. Fields we do not decide on are not read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from finetune_operator.resources.annotations import CONDITION_ADAPTERS_VERIFIED
from finetune_operator.resources.labels import LABEL_ATTEMPT
from finetune_operator.resources.training_job import TRAINER_CONTAINER, VALIDATE_CONTAINER

Raw = Mapping[str, Any]


@dataclass(frozen=True)
class ContainerEnd:
    """How a container ended."""

    exit_code: int
    reason: str = ""
    message: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True)
class PodView:
    """A pod, as far as decisions need it."""

    name: str
    attempt: int = 0
    phase: str = "Pending"
    uid: str = ""
    resource_version: str = ""
    """What a write that must not overlook a change names."""
    address: str = ""
    """IP address, once it has one."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    created: datetime | None = None
    is_deleting: bool = False
    reason: str = ""
    """status.reason: Evicted, NodeLost, OutOfcpu, ..."""
    message: str = ""
    unschedulable: tuple[str, str] | None = None
    """Reason and message of PodScheduled=False."""
    is_scheduled: bool = False
    disruption: tuple[str, str] | None = None
    """Reason and message of DisruptionTarget=True."""
    waiting: tuple[str, str] | None = None
    """Reason and message of the first container that waits."""
    started_at: datetime | None = None
    """When the main container started, if it runs or ran."""
    end: ContainerEnd | None = None
    """How the main container ended, if it did."""
    validation_started_at: datetime | None = None
    """When `validate`, which runs before the main container, started (training pods only)."""
    validation_end: ContainerEnd | None = None
    """How it ended, if it did."""
    last_end: ContainerEnd | None = None
    """How the previous run of a restarted container ended (server pods only)."""
    is_ready: bool = False
    """It gets traffic."""
    are_containers_ready: bool = False
    """It answers, and gets traffic unless a readiness gate keeps it from it."""
    has_readiness_gate: bool = False
    """It gets no traffic before the operator lets it in (pods of a Rolling service)."""
    let_in: str | None = None
    """What the operator said when it did so: `proof` of the process that ran then. None if it is kept out."""
    restarts: int = 0
    """How often the main container was started again."""

    @property
    def proof(self) -> str:
        """What the operator says when it lets in the process that runs now."""
        return f"Shown to answer with its adapters; restarts of its server so far: {self.restarts}."

    @property
    def is_answering(self) -> bool:
        """Its containers are ready, whether or not it gets traffic."""
        return self.is_ready or self.are_containers_ready

    @property
    def is_finished(self) -> bool:
        """No process of this pod runs or will run again."""
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True)
class ChildJobView:
    """A Kubernetes Job of one attempt."""

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
    """`Complete`, `Failed`, or empty while it is not decided."""
    message: str = ""

    @property
    def is_finished(self) -> bool:
        """The Job controller will make no further pod."""
        return bool(self.outcome)


def parse_pod(raw: Raw, container: str = TRAINER_CONTAINER) -> PodView:
    """View of a raw Pod; `container` is the one whose state matters."""
    metadata, status = raw["metadata"], raw.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    states = status.get("containerStatuses") or []
    main: Raw = next((s for s in states if s.get("name") == container), {})
    state = main.get("state") or {}
    end = _parse_end(state.get("terminated"))
    before = status.get("initContainerStatuses") or []
    validation: Raw = next((s.get("state") or {} for s in before if s.get("name") == VALIDATE_CONTAINER), {})
    validation_end = _parse_end(validation.get("terminated"))
    gates = (raw.get("spec") or {}).get("readinessGates") or []
    return PodView(
        name=metadata["name"],
        attempt=parse_attempt(metadata),
        phase=status.get("phase") or "Pending",
        uid=metadata.get("uid", ""),
        resource_version=metadata.get("resourceVersion", ""),
        address=status.get("podIP") or "",
        annotations=metadata.get("annotations") or {},
        created=parse_time(metadata.get("creationTimestamp")),
        is_deleting="deletionTimestamp" in metadata,
        reason=status.get("reason") or "",
        message=status.get("message") or "",
        unschedulable=_when(conditions.get("PodScheduled"), "False"),
        is_scheduled=_is_true(conditions, "PodScheduled"),
        disruption=_when(conditions.get("DisruptionTarget"), "True"),
        waiting=_waiting([*before, *states]),
        started_at=_started_at(state, end),
        end=end,
        validation_started_at=_started_at(validation, validation_end),
        validation_end=validation_end,
        last_end=_parse_end((main.get("lastState") or {}).get("terminated")),
        is_ready=_is_true(conditions, "Ready"),
        are_containers_ready=_is_true(conditions, "ContainersReady"),
        has_readiness_gate=any(gate["conditionType"] == CONDITION_ADAPTERS_VERIFIED for gate in gates),
        let_in=(_when(conditions.get(CONDITION_ADAPTERS_VERIFIED), "True") or ("", None))[1],
        restarts=int(main.get("restartCount") or 0),
    )


def parse_child_job(raw: Raw) -> ChildJobView:
    """View of a raw batch/v1 Job."""
    metadata, status = raw["metadata"], raw.get("status") or {}
    ended: Raw = next(
        (c for c in status.get("conditions") or [] if c["type"] in ("Complete", "Failed") and c["status"] == "True"), {}
    )
    return ChildJobView(
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
    """Attempt number from the labels; 0 for a child that somebody relabelled."""
    text = (metadata.get("labels") or {}).get(LABEL_ATTEMPT, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0


def parse_time(text: str | None) -> datetime | None:
    """metav1.Time or MicroTime."""
    return datetime.fromisoformat(text) if text else None


def _parse_end(terminated: Raw | None) -> ContainerEnd | None:
    if not terminated:
        return None
    return ContainerEnd(
        exit_code=int(terminated.get("exitCode", -1)),
        reason=terminated.get("reason") or "",
        message=terminated.get("message") or "",
        started_at=parse_time(terminated.get("startedAt")),
        finished_at=parse_time(terminated.get("finishedAt")),
    )


def _started_at(state: Raw, end: ContainerEnd | None) -> datetime | None:
    return parse_time((state.get("running") or {}).get("startedAt")) or (end.started_at if end else None)


def _is_true(conditions: Mapping[str, Raw], kind: str) -> bool:
    return (conditions.get(kind) or {}).get("status") == "True"


def _when(condition: Raw | None, status: str) -> tuple[str, str] | None:
    if not condition or condition.get("status") != status:
        return None
    return condition.get("reason") or "", condition.get("message") or ""


def _waiting(states: list[Raw]) -> tuple[str, str] | None:
    for state in states:
        if waiting := (state.get("state") or {}).get("waiting"):
            return waiting.get("reason") or "", waiting.get("message") or ""
    return None
