"""The pods of an InferenceService, parsed at the border."""

from dataclasses import dataclass
from typing import Final

from finetune_operator.kubernetes_types import Raw, map_of, maps_of, number_of, text_of
from finetune_operator.reconcile.pod import (
    ContainerEnd,
    Pod,
    container_status,
    parse_common,
    parse_end,
    parse_time,
    pod_condition,
)
from finetune_operator.resources.annotations import CONDITION_ADAPTERS_VERIFIED
from finetune_operator.resources.serving import SERVER_CONTAINER

VERIFIED_PROCESS: Final = "AdaptersVerified"
"""Start of the reason of an open readiness gate; the identity of the process follows."""
UNKNOWN_PROCESS: Final = "Unknown"
"""Process of an open gate whose condition does not identify it, and which has been replaced since."""


@dataclass(frozen=True)
class ServerPod(Pod):
    """A pod with an inference server, which is the main container."""

    uid: str = ""
    resource_version: str = ""
    """Precondition of a write that must not overlook a change."""
    address: str = ""
    """IP address, once it has one."""
    last_end: ContainerEnd | None = None
    """End of the previous process, if the container was restarted."""
    is_ready: bool = False
    """It gets traffic."""
    are_containers_ready: bool = False
    """It answers, and gets traffic unless its readiness gate is closed."""
    has_readiness_gate: bool = False
    """It gets no traffic until the operator opens its readiness gate (pods of a Rolling service)."""
    verified_process: str | None = None
    """Identity of the process that the readiness gate was opened for; None while the gate is closed."""
    restarts: int = 0
    """Restarts of the main container."""

    @property
    def process(self) -> str:
        """Identity of the process that runs now: another one after each restart of the container."""
        return process_identity(self.uid, self.restarts)

    @property
    def is_open(self) -> bool:
        """The readiness gate is open."""
        return self.verified_process is not None

    @property
    def is_answering(self) -> bool:
        """Its containers are ready, whether or not it gets traffic."""
        return self.is_ready or self.are_containers_ready


def process_identity(uid: str, restarts: int) -> str:
    """Return the reason of the readiness gate that was opened for this process: letters, digits, colons."""
    return f"{VERIFIED_PROCESS}:{uid.replace('-', '')}:{restarts}"


def parse_server_pod(raw: Raw) -> ServerPod:
    """Parse a raw Pod of a server Deployment."""
    metadata, status = map_of(raw, "metadata"), map_of(raw, "status")
    server = container_status(raw, SERVER_CONTAINER)
    gates = maps_of(map_of(raw, "spec"), "readinessGates")
    return ServerPod(
        **parse_common(raw, SERVER_CONTAINER),
        uid=text_of(metadata, "uid"),
        resource_version=text_of(metadata, "resourceVersion"),
        address=text_of(status, "podIP"),
        last_end=parse_end(map_of(map_of(server, "lastState"), "terminated")),
        is_ready=pod_condition(raw, "Ready").get("status") == "True",
        are_containers_ready=pod_condition(raw, "ContainersReady").get("status") == "True",
        has_readiness_gate=any(gate.get("conditionType") == CONDITION_ADAPTERS_VERIFIED for gate in gates),
        verified_process=_verified_process(raw, server),
        restarts=number_of(server, "restartCount"),
    )


def _verified_process(raw: Raw, server: Raw) -> str | None:
    """Read from the readiness gate which process it was opened for.

    The condition of an earlier release has no identity in its reason. It counts for the process that runs now if that process
    started before the gate was opened: a restart closed the gate, and opening it again moved lastTransitionTime.
    """
    gate = pod_condition(raw, CONDITION_ADAPTERS_VERIFIED)
    if gate.get("status") != "True":
        return None
    reason = text_of(gate, "reason")
    if reason.startswith(f"{VERIFIED_PROCESS}:"):
        return reason
    opened = parse_time(text_of(gate, "lastTransitionTime"))
    started = parse_time(text_of(map_of(map_of(server, "state"), "running"), "startedAt"))
    if opened is None or started is None or started > opened:
        return UNKNOWN_PROCESS
    return process_identity(text_of(map_of(raw, "metadata"), "uid"), number_of(server, "restartCount"))
