"""The next plan for an InferenceService: a pure function of the object, its desired and live children, and verdicts.

`report` makes the status from the plan once its actions were taken.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import InferenceService, ServedAdapterStatus
from finetune_operator.reconcile.ownership import PREDECESSOR_SECONDS, Ownership, owner_references, ownership
from finetune_operator.reconcile.service.adapter_verdicts import (
    Answers,
    Replicas,
    has_shown,
    judge_adapter,
    probe_requests,
)
from finetune_operator.reconcile.service.plan import Assessment, Desired, ServiceObserved, ServicePlan, Stalled
from finetune_operator.reconcile.service.readiness_gates import decide_gates
from finetune_operator.reconcile.service.rollout import observe_rollout
from finetune_operator.reconcile.service.served_versions import listed_adapters, promotions, requested_version
from finetune_operator.reconcile.service.server_pod import ServerPod
from finetune_operator.resources import Manifest
from finetune_operator.resources.adapter_list import is_rolling
from finetune_operator.resources.annotations import ANNOTATION_ADAPTER_LIST, ANNOTATION_CONFIG
from finetune_operator.resources.drift import has_drifted, is_outdated
from finetune_operator.resources.serving import config_hash, with_replicas
from finetune_operator.settings import Settings

REPAIR_SECONDS: Final = 10.0
"""Pause between two repairs of children that somebody else edits."""
UNLOADED_ADAPTER_SECONDS: Final = 30.0
"""Pause before a server is probed again that could not load an adapter: its folder may have come meanwhile."""
NO_VLLM_IMAGE: Final = (
    "spec.engine is VLLM, and this operator has no image of it. Set engine to Transformers, or have the administrator set "
    "inference.vllm.image.repository of the chart (FINETUNE_OPERATOR_INFERENCE_VLLM_IMAGE)."
)
LIST_KIND: Final = "ConfigMap"
"""Kind of the child that changes without any other."""


def decide_service(
    service: InferenceService,
    desired: Desired | None,
    seen: ServiceObserved,
    answers: Answers,
    settings: Settings,
) -> ServicePlan:
    """Return the next plan. Never raises; the same input gives the same plan."""
    if service.metadata.deletion_timestamp is not None:
        return ServicePlan()
    if desired is None:
        return ServicePlan(stalled=Stalled(Reason.ENGINE_NOT_AVAILABLE, NO_VLLM_IMAGE))
    owners = {kind: ownership(service, owner_references(live)) for kind, live in seen.live.items()}
    if (obstacle := _foreign_child(service, desired, seen, owners)) is not None:
        return obstacle
    apply = tuple(_with_live_replicas(service, child, seen) for child in desired.children if _needs_apply(child, seen))
    new = [child["kind"] for child in apply if _is_new(child, seen)]
    surplus = _surplus(desired, seen, owners)
    if surplus or any(kind != LIST_KIND for kind in new):
        return ServicePlan(apply=apply, delete=surplus, is_rollout=bool(apply))
    assessment = _assess(service, desired, seen, answers)
    plan = ServicePlan(
        assessment,
        apply=apply,
        adapter_list=desired.list_hash,
        gates=decide_gates(_live_pods(seen), assessment.replicas, assessment.adapters, assessment.proven_config),
    )
    if not is_rolling(service):
        stale = tuple(pod for pod in seen.pods if _is_stale(pod, desired.list_hash))
        plan = replace(plan, refresh=stale, promote=promotions(service, seen.live.get(LIST_KIND), settings))
        if listed_adapters(service, assessment.adapters, settings) != desired.listed:
            plan = replace(plan, is_switch=True, requeue_after=0.0)
    if len(new) < len(apply):
        # Whoever edited our children may do so again and again; the status stays true meanwhile.
        return replace(plan, requeue_after=REPAIR_SECONDS)
    return plan if plan.is_switch else _with_probes(plan, service, assessment, settings, has_answers=bool(answers))


def _foreign_child(
    service: InferenceService, desired: Desired, seen: ServiceObserved, owners: Mapping[str, Ownership]
) -> ServicePlan | None:
    """Wait, or stall, if an object of a desired child's name belongs to somebody else."""
    for child in desired.children:
        kind = child["kind"]
        if owners.get(kind) is Ownership.PREDECESSOR:
            return ServicePlan(requeue_after=PREDECESSOR_SECONDS)
        if owners.get(kind) is Ownership.FOREIGN:
            name = f"{kind} {seen.live[kind]['metadata']['name']} in namespace {service.metadata.namespace}"
            message = f"{name} exists and belongs to somebody else; delete or rename it."
            return ServicePlan(stalled=Stalled(Reason.CHILD_CONFLICT, message))
    return None


def _needs_apply(child: Manifest, seen: ServiceObserved) -> bool:
    return child["kind"] not in seen.live or has_drifted(child, seen.live[child["kind"]])


def _is_new(child: Manifest, seen: ServiceObserved) -> bool:
    """Tell whether the spec, or a verdict, asks for something that does not exist yet."""
    return child["kind"] not in seen.live or is_outdated(child, seen.live[child["kind"]])


def _with_live_replicas(service: InferenceService, child: Manifest, seen: ServiceObserved) -> Manifest:
    return with_replicas(child, service, seen.live.get("Deployment")) if child["kind"] == "Deployment" else child


def _surplus(desired: Desired, seen: ServiceObserved, owners: Mapping[str, Ownership]) -> tuple[Manifest, ...]:
    """Find children to delete. A list stays when the service becomes Rolling: older pods read it until they are gone."""
    kept = {LIST_KIND, *(child["kind"] for child in desired.children)}
    return tuple(o for kind, o in seen.live.items() if kind not in kept and owners[kind] is Ownership.OWN)


def _live_pods(seen: ServiceObserved) -> tuple[ServerPod, ...]:
    return tuple(pod for pod in seen.pods if not pod.is_deleting and not pod.is_finished)


def _is_stale(pod: ServerPod, adapter_list: str) -> bool:
    """Tell whether a running server was not notified of the current list. One that starts finds it."""
    if pod.has_readiness_gate:
        # From when the service was a Rolling one; it never reads a list.
        return False
    is_running = pod.started_at is not None and pod.end is None and not pod.is_deleting and not pod.is_finished
    return is_running and pod.annotations.get(ANNOTATION_ADAPTER_LIST) != adapter_list


def _assess(service: InferenceService, desired: Desired, seen: ServiceObserved, answers: Answers) -> Assessment:
    """Judge the rollout and each adapter."""
    pods = _live_pods(seen)
    rollout = observe_rollout(service, seen.live["Deployment"], seen.pods)
    current = tuple(pod for pod in pods if pod.annotations.get(ANNOTATION_CONFIG) == desired.config)
    has_others = any(pod.is_ready or pod.is_open for pod in pods if pod not in current)
    replicas = Replicas(desired=rollout.desired, pods=current, has_others=has_others)
    known = {status.name: status for status in service.status.adapters}
    adapters = tuple(
        judge_adapter(
            requested_version(service, adapter, known.get(adapter.name)), known.get(adapter.name), replicas, answers
        )
        for adapter in service.spec.adapters
    )
    proven_config = service.status.proven_config
    if is_rolling(service) and _is_proven(replicas, adapters):
        proven_config = config_hash(desired.config)
    return Assessment(rollout, replicas, adapters, proven_config)


def _is_proven(replicas: Replicas, adapters: Iterable[ServedAdapterStatus]) -> bool:
    """Tell whether every pod that gets traffic was verified with the current configuration."""
    if not replicas.ready or replicas.has_others:
        return False
    return all(has_shown(adapter, pod) for adapter in adapters for pod in replicas.ready)


def _with_probes(
    plan: ServicePlan, service: InferenceService, assessment: Assessment, settings: Settings, *, has_answers: bool
) -> ServicePlan:
    """Add the probes to send, and the time of the next reconcile."""
    requests = [
        request
        for adapter, status in zip(service.spec.adapters, assessment.adapters, strict=True)
        for request in probe_requests(requested_version(service, adapter, status), status, assessment.replicas)
    ]
    if not requests:
        return plan
    known = {(a.name, verdict.pod, verdict.restarts) for a in assessment.adapters for verdict in a.replicas}
    is_refused = all((r.adapter.name, r.pod.name, r.pod.restarts) in known for r in requests)
    wait = UNLOADED_ADAPTER_SECONDS if is_refused else settings.probe_retry_seconds
    return replace(plan, probes=() if has_answers else tuple(requests), requeue_after=wait)
