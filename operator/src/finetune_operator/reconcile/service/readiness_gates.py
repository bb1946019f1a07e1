"""The readiness gates of a Rolling service's pods. Pure.

A pod opens after every adapter was verified on it, and stays open until its server restarts, so that a lost status cannot cause
an outage. A pod of the last verified configuration opens at once, because its adapters cannot be probed any more (its server
checks their digests) and it takes the place of one that answered. Pods of any other configuration stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import ServedAdapterStatus
from finetune_api.v1alpha1.common import metav1_time
from finetune_operator.kubernetes_types import Raw
from finetune_operator.reconcile.service.adapter_verdicts import Replicas, has_shown
from finetune_operator.reconcile.service.server_pod import ServerPod
from finetune_operator.resources.annotations import ANNOTATION_CONFIG, CONDITION_ADAPTERS_VERIFIED
from finetune_operator.resources.serving import config_hash


@dataclass(frozen=True)
class ReadinessGate:
    """A pod whose readiness gate is to be set."""

    pod: ServerPod
    is_open: bool

    @property
    def is_transition(self) -> bool:
        """The pod begins or ceases to get traffic."""
        return self.is_open != self.pod.is_open

    @property
    def is_change(self) -> bool:
        """The pod's condition says something else."""
        return self.is_transition or (self.is_open and self.pod.verified_process != self.pod.process)


def decide_gates(
    pods: Sequence[ServerPod],
    replicas: Replicas,
    adapters: Sequence[ServedAdapterStatus],
    proven_config: str | None,
) -> tuple[ReadinessGate, ...]:
    """Decide which gates to set."""
    gates = []
    for pod in pods:
        if not pod.has_readiness_gate:
            continue
        if pod in replicas.pods:
            is_verified = all(has_shown(adapter, pod) for adapter in adapters)
            gates.append(ReadinessGate(pod, is_open=is_verified or pod.verified_process == pod.process))
        elif config_hash(pod.annotations.get(ANNOTATION_CONFIG, "")) == proven_config:
            gates.append(ReadinessGate(pod, is_open=True))
    return tuple(gate for gate in gates if gate.is_change)


def build_gate_condition(gate: ReadinessGate, now: datetime) -> Raw:
    """Build the pod condition. Its reason identifies the process that was verified, and is compared; its message is not."""
    message = "The server restarted; its adapters are not verified yet."
    if gate.is_open:
        message = f"Every adapter was verified on this server process (restarts: {gate.pod.restarts})."
    condition: Raw = {
        "type": CONDITION_ADAPTERS_VERIFIED,
        "status": "True" if gate.is_open else "False",
        "reason": gate.pod.process if gate.is_open else Reason.VERIFYING.value,
        "message": message,
    }
    if gate.is_transition:
        condition["lastTransitionTime"] = metav1_time(now)
    return condition
