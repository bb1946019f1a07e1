"""The values between observing, deciding, acting and reporting: data only, so that they can be compared and fuzzed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_api.reasons import Reason
from finetune_api.serving import PromotionRequest, ServedAdapter
from finetune_api.v1alpha1 import InferenceServiceStatus, ServedAdapterStatus
from finetune_operator.reconcile.events import EventDraft
from finetune_operator.reconcile.service.adapter_verdicts import ProbeRequest, Replicas
from finetune_operator.reconcile.service.readiness_gates import ReadinessGate
from finetune_operator.reconcile.service.rollout import Rollout
from finetune_operator.reconcile.service.server_pod import ServerPod
from finetune_operator.resources import Manifest


@dataclass(frozen=True)
class Desired:
    """The objects that should exist for an InferenceService, as built from it."""

    children: tuple[Manifest, ...]
    """In the order in which they are applied, each with the hash of itself."""
    listed: tuple[ServedAdapter, ...]
    """Adapters in the list of a Hot service; none of a Rolling one."""
    list_hash: str
    """Hash of that list; empty if there is none."""
    config: str
    """The ServingConfig in the annotation of the pods."""
    url: str
    """Address for clients."""
    model_name: str | None
    """Name of the base model for clients; None if the adapter is merged into it."""


@dataclass(frozen=True)
class ServiceObserved:
    """The children of an InferenceService, read at decision time."""

    live: Mapping[str, Manifest] = field(default_factory=dict)
    """Objects of the children's names by kind, whoever owns them."""
    pods: tuple[ServerPod, ...] = ()
    """Server pods."""


@dataclass(frozen=True)
class Assessment:
    """The facts that the status is made from."""

    rollout: Rollout
    replicas: Replicas
    adapters: tuple[ServedAdapterStatus, ...]
    """Verdict about each adapter of the spec, in its order."""
    proven_config: str | None
    """Hash of the configuration that was verified last on every pod that gets traffic."""


@dataclass(frozen=True)
class Stalled:
    """An obstacle that only a person can remove."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class ServicePlan:
    """The actions to take now: make children, or report (and repair what others edited), or probe."""

    assessment: Assessment | None = None
    """To report; None if nothing can be said before the next reconcile."""
    stalled: Stalled | None = None
    """To report instead."""
    apply: tuple[Manifest, ...] = ()
    is_rollout: bool = False
    """`apply` holds something that is new; its first changes should be seen together."""
    delete: tuple[Manifest, ...] = ()
    """Children that are not desired any more."""
    refresh: tuple[ServerPod, ...] = ()
    """Pods to annotate with `adapter_list` after that, so that they see the new list at once."""
    adapter_list: str = ""
    """Hash of the list of adapters; empty if there is none."""
    promote: tuple[PromotionRequest, ...] = ()
    """Requests to send to those pods directly, because the kubelet brings the list a second later."""
    gates: tuple[ReadinessGate, ...] = ()
    """Readiness gates to set once the status is written, because they follow from it."""
    probes: tuple[ProbeRequest, ...] = ()
    """Probes to send once the status is written; the next decision gets the answers."""
    is_switch: bool = False
    """The verdicts change the list of adapters: servers are notified once the status is written."""
    requeue_after: float | None = None


@dataclass(frozen=True)
class ServiceReport:
    """The end of a reconcile: the status to write, and the Events to post after it."""

    status: InferenceServiceStatus
    events: tuple[EventDraft, ...] = ()
