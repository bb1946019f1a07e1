"""The status of an InferenceService after a plan was carried out: a pure function of the plan and of what came of it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from finetune_api.conditions import ConditionType, Phase
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import Condition, InferenceService, InferenceServiceStatus, ServedAdapterStatus
from finetune_operator.kubernetes_types import Truth
from finetune_operator.reconcile.conditions import is_true, known_reason, set_condition
from finetune_operator.reconcile.events import EventDraft
from finetune_operator.reconcile.service.adapter_verdicts import PENDING, SHOWN_DIGEST
from finetune_operator.reconcile.service.plan import Assessment, Desired, ServicePlan, ServiceReport, Stalled
from finetune_operator.reconcile.service.rollout import Rollout
from finetune_operator.resources.adapter_list import is_rolling

READY_PHASE: Final = "Ready"


def report_service(
    service: InferenceService, desired: Desired | None, plan: ServicePlan, refusal: Stalled | None, now: datetime
) -> ServiceReport:
    """Return the status to write: the plan's assessment, or the obstacle; `refusal` is that of the plan's actions."""
    obstacle = refusal or plan.stalled
    if obstacle is not None:
        return ServiceReport(_stamped(service.status, _stalled(service, obstacle, now), now))
    if plan.assessment is None or desired is None:
        return ServiceReport(service.status)
    status = _assessed(service, desired, plan.assessment, now)
    return ServiceReport(_stamped(service.status, status, now), _events(service.status, status))


def _stalled(service: InferenceService, obstacle: Stalled, now: datetime) -> InferenceServiceStatus:
    generation, old = service.metadata.generation, service.status
    conditions = set_condition(
        old.conditions, ConditionType.READY, "False", obstacle.reason, obstacle.message, generation, now
    )
    update = {"conditions": conditions, "phase": Phase.FAILED, "observed_generation": generation}
    status: InferenceServiceStatus = old.model_copy(update=update)
    return status


def _assessed(
    service: InferenceService, desired: Desired, assessment: Assessment, now: datetime
) -> InferenceServiceStatus:
    rollout, adapters = assessment.rollout, assessment.adapters
    verified = sum(adapter.verified == "True" for adapter in adapters)
    return InferenceServiceStatus(
        observed_generation=service.metadata.generation,
        phase=_phase(rollout, adapters),
        conditions=_conditions(service, rollout, adapters, now),
        url=desired.url,
        model_name=desired.model_name,
        replicas=rollout.replicas,
        ready_replicas=rollout.ready_replicas,
        adapters=list(adapters),
        proven_config=assessment.proven_config,
        adapters_summary=f"{verified}/{len(adapters)}" if adapters else None,
    )


def _stamped(old: InferenceServiceStatus, new: InferenceServiceStatus, now: datetime) -> InferenceServiceStatus:
    """Return `new` with the time of the write; the very same status if nothing else changes."""
    unchanged = new.model_copy(update={"last_update_time": old.last_update_time})
    return unchanged if unchanged == old else new.model_copy(update={"last_update_time": now.replace(microsecond=0)})


def _conditions(
    service: InferenceService, rollout: Rollout, adapters: Sequence[ServedAdapterStatus], now: datetime
) -> list[Condition]:
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
        conditions, ConditionType.ADAPTER_VERIFIED, truth, known_reason(worst.reason), message, generation, now
    )


def _halting(
    service: InferenceService, rollout: Rollout, adapters: Sequence[ServedAdapterStatus]
) -> ServedAdapterStatus | None:
    """Return the disproven adapter that halts a rollout of its pods."""
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
        return "False", known_reason(disproven.reason), message
    return "True", Reason.ROLLING_OUT, ""


def _readiness(rollout: Rollout, was_ready: bool, disproven: ServedAdapterStatus | None) -> tuple[Truth, Reason, str]:
    if rollout.is_answering:
        return "True", Reason.ENDPOINT_READY, "The endpoint answers."
    if rollout.ready_replicas > 0 and was_ready and disproven is not None:
        message = f"Pods without the new version of adapter {disproven.name} answer: the new one was disproven."
        return "True", Reason.ENDPOINT_READY, message
    if disproven is not None:
        return "False", known_reason(disproven.reason), f"Adapter {disproven.name}: {disproven.message}"
    if rollout.ready_replicas > 0 and was_ready:
        return "True", Reason.ENDPOINT_READY, "The previous rollout answers while the new one starts."
    return "False", rollout.reason, rollout.message


def _worst(adapters: Sequence[ServedAdapterStatus]) -> tuple[Truth, ServedAdapterStatus]:
    """Return the truth about all adapters, and the adapter that explains it."""
    for truth in ("False", "Unknown"):
        for adapter in adapters:
            if adapter.verified == truth:
                return adapter.verified, adapter
    return "True", adapters[0]


def _phase(rollout: Rollout, adapters: Sequence[ServedAdapterStatus]) -> str:
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
            message = f"Adapter {adapter.name}: {adapter.message}" if adapter.message else f"Adapter {adapter.name}."
            events.append(EventDraft(adapter.reason, message, is_warning=adapter.verified == "False"))
        if _version(before) is not None and _version(adapter) != _version(before) and adapter.served is not None:
            version = (adapter.served.digest or adapter.served.source)[:SHOWN_DIGEST]
            events.append(EventDraft(Reason.ADAPTER_SWITCHED, f"Clients get version {version} of {adapter.name}."))
    return tuple(events)


def _version(adapter: ServedAdapterStatus | None) -> tuple[str, str | None] | None:
    """Return the version that clients get by the adapter's name."""
    served = adapter.served if adapter is not None else None
    return (served.source, served.digest) if served is not None else None
