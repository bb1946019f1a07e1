"""What should happen to an InferenceService now: a pure function of the object, its children, verdicts and the clock."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from finetune_api.reasons import ConditionType, Phase, Reason
from finetune_api.v1alpha1 import (
    AdapterReference,
    InferenceService,
    InferenceServiceStatus,
    ServedAdapterStatus,
)
from finetune_operator.errors import StalledError
from finetune_operator.probe import ProbeResult
from finetune_operator.reconcile.conditions import Truth, find_condition, is_true, set_condition
from finetune_operator.reconcile.plan import EventDraft
from finetune_operator.reconcile.rollout import Rollout, observe_rollout
from finetune_operator.reconcile.views import PodView
from finetune_operator.resources import Manifest
from finetune_operator.resources.drift import has_drifted, is_outdated
from finetune_operator.resources.serving import (
    build_serving_children,
    model_name,
    needs_budget,
    rollout_hash,
    service_url,
)
from finetune_operator.settings import Settings

PREDECESSOR_SECONDS: Final = 2.0
"""How often to look whether the garbage collector has removed the children of a deleted namesake."""
REPAIR_SECONDS: Final = 10.0
"""How often to look at children that somebody else edits."""
READY_PHASE: Final = "Ready"


@dataclass(frozen=True)
class ServiceObserved:
    """The children of an InferenceService, read at decision time."""

    live: Mapping[str, Manifest] = field(default_factory=dict)
    """Objects of the children's names by kind, whoever owns them."""
    pods: tuple[PodView, ...] = ()
    """Server pods; read only while a rollout is under way."""


@dataclass(frozen=True)
class ServicePlan:
    """What to do now: make children, or report (and repair what others edited), or probe."""

    status: InferenceServiceStatus
    apply: tuple[Manifest, ...] = ()
    delete_budget: Manifest | None = None
    probes: tuple[AdapterReference, ...] = ()
    """Adapters to probe once the status is written; then decide again with the results."""
    events: tuple[EventDraft, ...] = ()
    requeue_after: float | None = None


def decide_service(
    service: InferenceService,
    seen: ServiceObserved,
    verdicts: Mapping[str, ProbeResult],
    now: datetime,
    settings: Settings,
) -> ServicePlan:
    """The next plan. Never raises; the same input gives the same plan."""
    if service.metadata.deletion_timestamp is not None:
        return ServicePlan(status=service.status)
    try:
        children = build_serving_children(service, settings)
    except StalledError as problem:
        return stalled(service, now, problem.reason, problem.message)
    for child in children:
        live = seen.live.get(child["kind"])
        if live is not None and not _is_owned(live, service):
            return _decide_foreign(service, live, now)
    apply = tuple(c for c in children if c["kind"] not in seen.live or has_drifted(c, seen.live[c["kind"]]))
    budget = seen.live.get("PodDisruptionBudget")
    is_surplus = budget is not None and not needs_budget(service) and _is_owned(budget, service)
    is_new = any(c["kind"] not in seen.live or is_outdated(c, seen.live[c["kind"]]) for c in apply)
    if is_new or is_surplus:
        return ServicePlan(status=service.status, apply=apply, delete_budget=budget if is_surplus else None)
    report = _report(service, children[0], seen, verdicts, now, settings)
    if apply:
        # Whoever edited our children may do so again and again; the status stays true meanwhile.
        return replace(report, apply=apply, probes=(), requeue_after=REPAIR_SECONDS)
    return report


def _report(
    service: InferenceService,
    deployment: Manifest,
    seen: ServiceObserved,
    verdicts: Mapping[str, ProbeResult],
    now: datetime,
    settings: Settings,
) -> ServicePlan:
    rollout = observe_rollout(service, seen.live["Deployment"], seen.pods)
    adapters = [
        _adapter_status(service, adapter, rollout_hash(deployment, adapter), rollout, verdicts.get(adapter.name))
        for adapter in service.spec.adapters
    ]
    conditions = _conditions(service, rollout, adapters, now)
    verified = sum(a.verified == "True" for a in adapters)
    status = InferenceServiceStatus(
        observed_generation=service.metadata.generation,
        phase=_phase(rollout, adapters),
        conditions=conditions,
        url=service_url(service, settings),
        model_name=model_name(service),
        replicas=rollout.replicas,
        ready_replicas=rollout.ready_replicas,
        adapters=adapters,
        adapters_summary=f"{verified}/{len(adapters)}" if adapters else None,
    )
    to_probe = {a.name for a in adapters if a.reason in (Reason.VERIFYING, Reason.ENDPOINT_UNREACHABLE)}
    is_fresh = not verdicts and bool(to_probe)
    return ServicePlan(
        status=_stamped(service.status, status, now),
        probes=tuple(a for a in service.spec.adapters if a.name in to_probe) if is_fresh else (),
        events=_events(service.status, status),
        requeue_after=settings.probe_retry_seconds if to_probe else None,
    )


def _adapter_status(
    service: InferenceService,
    adapter: AdapterReference,
    probed_hash: str,
    rollout: Rollout,
    result: ProbeResult | None,
) -> ServedAdapterStatus:
    """What is known about one adapter at the current rollout."""
    old = next((a for a in service.status.adapters if a.name == adapter.name), None)
    base: dict[str, Any] = {"name": adapter.name, "digest": adapter.digest}
    if adapter.fingerprint is None:
        message = "The adapter was given without a fingerprint."
        return ServedAdapterStatus(**base, verified="Unknown", reason=Reason.NO_FINGERPRINT, message=message)
    if old is not None and old.probed_hash == probed_hash and old.digest == adapter.digest:
        # Judged already; a restarted or added pod of the same rollout serves the same weights.
        return old
    if not rollout.is_complete:
        message = "The fingerprint is replayed when the rollout is complete."
        return ServedAdapterStatus(**base, verified="Unknown", reason=Reason.ROLLING_OUT, message=message)
    if result is None:
        if old is not None and old.reason == Reason.ENDPOINT_UNREACHABLE and old.digest == adapter.digest:
            return old
        return ServedAdapterStatus(**base, verified="Unknown", reason=Reason.VERIFYING)
    message = result.message[:1024]
    done = probed_hash if result.verified != "Unknown" else None
    return ServedAdapterStatus(
        **base, verified=result.verified, reason=result.reason, message=message, probed_hash=done
    )


def _conditions(
    service: InferenceService, rollout: Rollout, adapters: list[ServedAdapterStatus], now: datetime
) -> list[Any]:
    generation, conditions = service.metadata.generation, service.status.conditions
    was_ready = is_true(conditions, ConditionType.READY)
    ready, reason, message = _readiness(rollout, was_ready)
    conditions = set_condition(conditions, ConditionType.READY, ready, reason, message, generation, now)
    moving: Truth = "False" if rollout.is_complete else "True"
    why = Reason.COMPLETED if rollout.is_complete else Reason.ROLLING_OUT
    conditions = set_condition(conditions, ConditionType.PROGRESSING, moving, why, "", generation, now)
    if not adapters:
        return [c for c in conditions if c.type != ConditionType.ADAPTER_VERIFIED]
    truth, worst = _worst(adapters)
    return set_condition(
        conditions, ConditionType.ADAPTER_VERIFIED, truth, Reason(worst.reason), worst.message, generation, now
    )


def _readiness(rollout: Rollout, was_ready: bool) -> tuple[Truth, Reason, str]:
    if rollout.is_answering:
        return "True", Reason.ENDPOINT_READY, "The endpoint answers."
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
    pending = (Reason.VERIFYING, Reason.ENDPOINT_UNREACHABLE, Reason.ROLLING_OUT)
    return Phase.VERIFYING if any(a.reason in pending for a in adapters) else READY_PHASE


def _events(old: InferenceServiceStatus, new: InferenceServiceStatus) -> tuple[EventDraft, ...]:
    events = []
    if is_true(new.conditions, ConditionType.READY) and not is_true(old.conditions, ConditionType.READY):
        events.append(EventDraft(Reason.ENDPOINT_READY, f"The endpoint answers at {new.url}."))
    verdict, before = (find_condition(s.conditions, ConditionType.ADAPTER_VERIFIED) for s in (new, old))
    if verdict is not None and verdict.status != "Unknown" and (before is None or before.status != verdict.status):
        events.append(EventDraft(verdict.reason, verdict.message, is_warning=verdict.status == "False"))
    return tuple(events)


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
