"""What should happen to an InferenceService now: a pure function of the object, its children, verdicts and the clock."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from finetune_api.reasons import ConditionType, Phase, Reason
from finetune_api.serving import PromotionRequest
from finetune_api.v1alpha1 import InferenceService, InferenceServiceStatus, ServedAdapterStatus
from finetune_operator.reconcile.conditions import Truth, is_true, set_condition
from finetune_operator.reconcile.plan import EventDraft
from finetune_operator.reconcile.service.adapter_verdicts import (
    PENDING,
    SHOWN_DIGEST,
    Answers,
    ProbeRequest,
    Replicas,
    has_shown,
    judge_adapter,
    probe_requests,
)
from finetune_operator.reconcile.service.rollout import Rollout, observe_rollout
from finetune_operator.reconcile.views import PodView
from finetune_operator.resources import Manifest
from finetune_operator.resources.adapter_list import build_adapter_list, is_rolling, list_hash, promotions
from finetune_operator.resources.annotations import ANNOTATION_ADAPTER_LIST, ANNOTATION_CONFIG
from finetune_operator.resources.drift import has_drifted, is_outdated
from finetune_operator.resources.serving import (
    build_serving_children,
    config_hash,
    encoded_config,
    model_name,
    server_image,
    service_url,
    with_replicas,
)
from finetune_operator.settings import Settings

PREDECESSOR_SECONDS: Final = 2.0
"""How often to look whether the garbage collector has removed the children of a deleted namesake."""
REPAIR_SECONDS: Final = 10.0
"""How often to look at children that somebody else edits."""
REFUSED_SECONDS: Final = 30.0
"""How often to ask a server again that could not load an adapter: its folder may have come meanwhile."""
READY_PHASE: Final = "Ready"
NO_VLLM_IMAGE: Final = (
    "spec.engine is VLLM, and this operator has no image of it. Set engine to Transformers, or have the administrator set "
    "inference.vllm.image.repository of the chart (FINETUNE_OPERATOR_INFERENCE_VLLM_IMAGE)."
)
LIST_KIND: Final = "ConfigMap"
"""The kind of the child that changes without any other."""


@dataclass(frozen=True)
class ServiceObserved:
    """The children of an InferenceService, read at decision time."""

    live: Mapping[str, Manifest] = field(default_factory=dict)
    """Objects of the children's names by kind, whoever owns them."""
    pods: tuple[PodView, ...] = ()
    """Server pods."""


@dataclass(frozen=True)
class ReadinessGate:
    """A pod of a Rolling service that is to get traffic from now on, or no more, and why."""

    pod: PodView
    is_open: bool
    message: str

    @property
    def is_transition(self) -> bool:
        """Whether it is not so already."""
        return self.is_open != (self.pod.let_in is not None)


@dataclass(frozen=True)
class ServicePlan:
    """What to do now: make children, or report (and repair what others edited), or probe."""

    status: InferenceServiceStatus
    apply: tuple[Manifest, ...] = ()
    is_rollout: bool = False
    """`apply` has what is asked for now and was not before; its first changes should be seen together."""
    delete: tuple[Manifest, ...] = ()
    """Children that are not asked for any more."""
    refresh: tuple[PodView, ...] = ()
    """Pods to be given `adapter_list` as an annotation after that, so that they see the new list at once."""
    adapter_list: str = ""
    """Hash of the list of adapters; empty if there is none."""
    promote: tuple[PromotionRequest, ...] = ()
    """What to tell those pods directly, because the kubelet's way to them takes a second."""
    gates: tuple[ReadinessGate, ...] = ()
    """To be set once the status is written: they follow from it."""
    probes: tuple[ProbeRequest, ...] = ()
    """What to ask pods once the status is written; then decide again with the answers."""
    is_switch: bool = False
    """The status names other versions than servers were told of: they are to be told once it is written."""
    events: tuple[EventDraft, ...] = ()
    requeue_after: float | None = None


def decide_service(
    service: InferenceService,
    seen: ServiceObserved,
    answers: Answers,
    now: datetime,
    settings: Settings,
) -> ServicePlan:
    """The next plan. Never raises; the same input gives the same plan."""
    if service.metadata.deletion_timestamp is not None:
        return ServicePlan(status=service.status)
    if server_image(service, settings) is None:
        return stalled(service, now, Reason.ENGINE_NOT_AVAILABLE, NO_VLLM_IMAGE)
    children = build_serving_children(service, settings)
    for child in children:
        live = seen.live.get(child["kind"])
        if live is not None and not _is_owned(live, service):
            return _decide_foreign(service, live, now)
    deployment = seen.live.get("Deployment")
    apply = tuple(
        with_replicas(child, service, deployment) if child["kind"] == "Deployment" else child
        for child in children
        if child["kind"] not in seen.live or has_drifted(child, seen.live[child["kind"]])
    )
    wanted = {child["kind"] for child in children}
    # A list stays when the service becomes a Rolling one: pods from before read it until they are gone.
    surplus = tuple(o for kind, o in seen.live.items() if kind not in {*wanted, LIST_KIND} and _is_owned(o, service))
    if surplus or any(c["kind"] != LIST_KIND and _is_new(c, seen) for c in apply):
        return ServicePlan(status=service.status, apply=apply, delete=surplus, is_rollout=bool(apply))
    report = replace(_report(service, seen, answers, now, settings), apply=apply)
    if not is_rolling(service):
        adapter_list = list_hash(build_adapter_list(service, settings))
        stale = tuple(pod for pod in seen.pods if _is_stale(pod, adapter_list))
        promote = promotions(service, seen.live.get(LIST_KIND), settings)
        report = replace(report, refresh=stale, adapter_list=adapter_list, promote=promote)
    if any(not _is_new(child, seen) for child in apply):
        # Whoever edited our children may do so again and again; the status stays true meanwhile.
        return replace(report, probes=(), requeue_after=REPAIR_SECONDS)
    return report


def _is_new(child: Manifest, seen: ServiceObserved) -> bool:
    """Whether the spec, or what was proven, asks for something that is not there."""
    return child["kind"] not in seen.live or is_outdated(child, seen.live[child["kind"]])


def _is_stale(pod: PodView, adapter_list: str) -> bool:
    """Whether a server runs that was not told of the current list. One that starts finds it."""
    if pod.has_readiness_gate:
        # From when the service was a Rolling one; it never reads a list.
        return False
    is_running = pod.started_at is not None and pod.end is None and not pod.is_deleting and not pod.is_finished
    return is_running and pod.annotations.get(ANNOTATION_ADAPTER_LIST) != adapter_list


def _report(
    service: InferenceService, seen: ServiceObserved, answers: Answers, now: datetime, settings: Settings
) -> ServicePlan:
    rollout = observe_rollout(service, seen.live["Deployment"], seen.pods)
    pods = tuple(pod for pod in seen.pods if not pod.is_deleting and not pod.is_finished)
    replicas = _replicas(service, rollout, pods)
    adapters = [judge_adapter(service, adapter, replicas, answers) for adapter in service.spec.adapters]
    verified = sum(a.verified == "True" for a in adapters)
    status = InferenceServiceStatus(
        observed_generation=service.metadata.generation,
        phase=_phase(rollout, adapters),
        conditions=_conditions(service, rollout, adapters, now),
        url=service_url(service, settings),
        model_name=None if service.spec.merge_adapter else model_name(service),
        replicas=rollout.replicas,
        ready_replicas=rollout.ready_replicas,
        adapters=adapters,
        proven_config=_proven_config(service, replicas, adapters),
        adapters_summary=f"{verified}/{len(adapters)}" if adapters else None,
    )
    plan = ServicePlan(
        status=_stamped(service.status, status, now),
        gates=_gates(replicas, pods, status),
        events=_events(service.status, status),
    )
    return _with_next_look(plan, service, replicas, settings, has_answers=bool(answers))


def _replicas(service: InferenceService, rollout: Rollout, pods: tuple[PodView, ...]) -> Replicas:
    config = encoded_config(service)
    current = tuple(pod for pod in pods if pod.annotations.get(ANNOTATION_CONFIG) == config)
    has_others = any(pod.is_ready or pod.let_in is not None for pod in pods if pod not in current)
    return Replicas(desired=rollout.desired, pods=current, has_others=has_others)


def _proven_config(service: InferenceService, replicas: Replicas, adapters: list[ServedAdapterStatus]) -> str | None:
    """The configuration that was proven last on every pod that gets traffic."""
    is_proven = all(has_shown(adapter, pod) for adapter in adapters for pod in replicas.ready)
    if not is_rolling(service) or not replicas.ready or replicas.has_others or not is_proven:
        return service.status.proven_config
    return config_hash(encoded_config(service))


def _gates(replicas: Replicas, pods: tuple[PodView, ...], status: InferenceServiceStatus) -> tuple[ReadinessGate, ...]:
    """Whom to let in, and whom no more: a process that was not shown to answer with each of its adapters gets no traffic.

    One that was let in stays so until it restarts, whatever becomes of the record about it: all of them at once would be an
    outage. What the spec does not ask for any more cannot be asked for: a pod of the configuration that was proven last is
    let in as it is (its server checks the digests), because it takes the place of one that answered; others stay as they are.
    """
    gates = []
    for pod in pods:
        if not pod.has_readiness_gate:
            continue
        if pod in replicas.pods:
            is_open = pod.let_in == pod.proof or all(has_shown(adapter, pod) for adapter in status.adapters)
        elif config_hash(pod.annotations.get(ANNOTATION_CONFIG, "")) == status.proven_config:
            is_open = True
        else:
            continue
        gate = ReadinessGate(
            pod, is_open, pod.proof if is_open else "Its server restarted and was not asked for its adapters yet."
        )
        if gate.is_transition or (is_open and pod.let_in != pod.proof):
            gates.append(gate)
    return tuple(gates)


def _with_next_look(
    plan: ServicePlan, service: InferenceService, replicas: Replicas, settings: Settings, *, has_answers: bool
) -> ServicePlan:
    """The plan that also says whom to ask next, and when to look again."""
    adapters, after = plan.status.adapters, service.model_copy(update={"status": plan.status})
    if not is_rolling(service) and build_adapter_list(after, settings) != build_adapter_list(service, settings):
        return replace(plan, is_switch=True, requeue_after=0.0)
    requests = tuple(
        request
        for adapter, status in zip(service.spec.adapters, adapters, strict=True)
        for request in probe_requests(service, adapter, status, replicas)
    )
    if not requests:
        return plan
    known = {(a.name, verdict.pod, verdict.restarts) for a in adapters for verdict in a.replicas}
    is_refused = all((r.adapter.name, r.pod.name, r.pod.restarts) in known for r in requests)
    wait = REFUSED_SECONDS if is_refused else settings.probe_retry_seconds
    return replace(plan, probes=() if has_answers else requests, requeue_after=wait)


def _conditions(
    service: InferenceService, rollout: Rollout, adapters: list[ServedAdapterStatus], now: datetime
) -> list[Any]:
    generation, conditions = service.metadata.generation, service.status.conditions
    was_ready = is_true(conditions, ConditionType.READY)
    disproven = _halting(service, rollout, adapters)
    ready, reason, message = _readiness(rollout, was_ready, disproven)
    conditions = set_condition(conditions, ConditionType.READY, ready, reason, message, generation, now)
    moving, why, message = _progress(rollout, disproven)
    conditions = set_condition(conditions, ConditionType.PROGRESSING, moving, why, message, generation, now)
    if not adapters:
        return [c for c in conditions if c.type != ConditionType.ADAPTER_VERIFIED]
    truth, worst = _worst(adapters)
    message = f"Adapter {worst.name}: {worst.message}" if truth == "False" else worst.message
    return set_condition(
        conditions, ConditionType.ADAPTER_VERIFIED, truth, Reason(worst.reason), message, generation, now
    )


def _halting(
    service: InferenceService, rollout: Rollout, adapters: list[ServedAdapterStatus]
) -> ServedAdapterStatus | None:
    """The disproven adapter that a rollout of its pods stops at."""
    if not is_rolling(service) or rollout.is_complete:
        return None
    return next((adapter for adapter in adapters if adapter.verified == "False"), None)


def _progress(rollout: Rollout, disproven: ServedAdapterStatus | None) -> tuple[Truth, Reason, str]:
    if rollout.is_complete:
        return "False", Reason.COMPLETED, ""
    if disproven is not None:
        message = (
            f"Adapter {disproven.name} was disproven: pods that have it get no traffic. Change it in spec.adapters."
        )
        return "False", Reason(disproven.reason), message
    return "True", Reason.ROLLING_OUT, ""


def _readiness(rollout: Rollout, was_ready: bool, disproven: ServedAdapterStatus | None) -> tuple[Truth, Reason, str]:
    if rollout.is_answering:
        return "True", Reason.ENDPOINT_READY, "The endpoint answers."
    if rollout.ready_replicas > 0 and was_ready and disproven is not None:
        message = f"Pods without the new version of adapter {disproven.name} answer: the new one was disproven."
        return "True", Reason.ENDPOINT_READY, message
    if disproven is not None:
        return "False", Reason(disproven.reason), f"Adapter {disproven.name}: {disproven.message}"
    if rollout.ready_replicas > 0 and was_ready:
        return "True", Reason.ENDPOINT_READY, "The previous rollout answers while the new one starts."
    return "False", rollout.reason, rollout.message


def _worst(adapters: list[ServedAdapterStatus]) -> tuple[Truth, ServedAdapterStatus]:
    """The truth about all adapters, and the adapter that says why."""
    for truth in ("False", "Unknown"):
        for adapter in adapters:
            if adapter.verified == truth:
                return adapter.verified, adapter
    return "True", adapters[0]


def _phase(rollout: Rollout, adapters: list[ServedAdapterStatus]) -> str:
    if any(a.verified == "False" for a in adapters):
        return Phase.FAILED
    if not rollout.is_answering:
        return Phase.DEPLOYING
    return Phase.VERIFYING if any(a.reason in PENDING for a in adapters) else READY_PHASE


def _events(old: InferenceServiceStatus, new: InferenceServiceStatus) -> tuple[EventDraft, ...]:
    events = []
    if is_true(new.conditions, ConditionType.READY) and not is_true(old.conditions, ConditionType.READY):
        events.append(EventDraft(Reason.ENDPOINT_READY, f"The endpoint answers at {new.url}."))
    known = {adapter.name: adapter for adapter in old.adapters}
    for adapter in new.adapters:
        before = known.get(adapter.name)
        if adapter.verified != "Unknown" and (
            before is None or (before.verified, before.probed_hash) != (adapter.verified, adapter.probed_hash)
        ):
            message = f"Adapter {adapter.name}: {adapter.message}"
            events.append(EventDraft(adapter.reason, message, is_warning=adapter.verified == "False"))
        if _version(before) is not None and _version(adapter) != _version(before) and adapter.served is not None:
            version = (adapter.served.digest or adapter.served.source)[:SHOWN_DIGEST]
            events.append(EventDraft(Reason.ADAPTER_SWITCHED, f"Clients get version {version} of {adapter.name}."))
    return tuple(events)


def _version(adapter: ServedAdapterStatus | None) -> tuple[str, str | None] | None:
    """What clients get by the adapter's name."""
    served = adapter.served if adapter is not None else None
    return (served.source, served.digest) if served is not None else None


def _decide_foreign(service: InferenceService, live: Manifest, now: datetime) -> ServicePlan:
    owner: Manifest = next((o for o in live["metadata"].get("ownerReferences") or [] if o.get("controller")), {})
    if owner.get("kind") == service.kind and owner.get("name") == service.metadata.name:
        # Of a deleted service of the same name; the garbage collector is about to remove it.
        return ServicePlan(status=service.status, requeue_after=PREDECESSOR_SECONDS)
    name = f"{live['kind']} {live['metadata']['name']} in namespace {service.metadata.namespace}"
    return stalled(service, now, Reason.CHILD_CONFLICT, f"{name} exists and belongs to somebody else.")


def stalled(service: InferenceService, now: datetime, reason: Reason, message: str) -> ServicePlan:
    """The plan that reports what only a person can change."""
    generation = service.metadata.generation
    conditions = set_condition(
        service.status.conditions, ConditionType.READY, "False", reason, message, generation, now
    )
    update = {"conditions": conditions, "phase": Phase.FAILED, "observed_generation": generation}
    return ServicePlan(status=_stamped(service.status, service.status.model_copy(update=update), now))


def _stamped(old: InferenceServiceStatus, new: InferenceServiceStatus, now: datetime) -> InferenceServiceStatus:
    """`new` with the time of the write; the very same status if nothing else changes."""
    unchanged = new.model_copy(update={"last_update_time": old.last_update_time})
    return unchanged if unchanged == old else new.model_copy(update={"last_update_time": now.replace(microsecond=0)})


def _is_owned(live: Manifest, service: InferenceService) -> bool:
    owners = live["metadata"].get("ownerReferences") or []
    return any(owner.get("uid") == service.metadata.uid for owner in owners)
