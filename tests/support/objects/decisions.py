"""Decisions as tests look at them: the plan, and the report once its actions were taken, side by side."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetune_api.v1alpha1 import FinetuneJob, FinetuneJobStatus, InferenceService, InferenceServiceStatus
from finetune_operator.errors import StalledError
from finetune_operator.reconcile.events import EventDraft
from finetune_operator.reconcile.job.attempt_start import build_attempt
from finetune_operator.reconcile.job.decide import decide
from finetune_operator.reconcile.job.findings import JobEnd
from finetune_operator.reconcile.job.plan import ActionOutcome, Observed
from finetune_operator.reconcile.job.report import report
from finetune_operator.reconcile.job.training_pod import ChildJob
from finetune_operator.reconcile.service.adapter_verdicts import Answers, ProbeRequest
from finetune_operator.reconcile.service.decide import decide_service
from finetune_operator.reconcile.service.desired import build_desired
from finetune_operator.reconcile.service.plan import ServiceObserved, Stalled
from finetune_operator.reconcile.service.readiness_gates import ReadinessGate
from finetune_operator.reconcile.service.report import report_service
from finetune_operator.reconcile.service.server_pod import ServerPod
from finetune_operator.resources import Manifest
from finetune_operator.settings import Settings
from support.objects.operator_objects import NOW, SETTINGS

DONE = ActionOutcome()


@dataclass(frozen=True)
class JobDecision:
    """A FinetuneJob's plan and report."""

    status: FinetuneJobStatus
    create: tuple[Manifest, ...] = ()
    apply: tuple[Manifest, ...] = ()
    add: tuple[Manifest, ...] = ()
    delete_jobs: tuple[ChildJob, ...] = ()
    delete_service: InferenceService | None = None
    delete_self: bool = False
    events: tuple[EventDraft, ...] = ()
    requeue_after: float | None = None


def decide_job(
    job: FinetuneJob,
    seen: Observed,
    now: datetime = NOW,
    settings: Settings = SETTINGS,
    outcome: ActionOutcome = DONE,
) -> JobDecision:
    """The decision, `outcome` being what came of making the children."""
    plan = decide(job, seen, now, settings)
    create: tuple[Manifest, ...] = ()
    try:
        create = build_attempt(job, plan.start, settings) if plan.start is not None else ()
    except StalledError as problem:
        outcome = ActionOutcome(stalled=JobEnd(problem.reason, problem.message, is_invalid=True))
    done = report(job, plan, outcome, now)
    made = {"create": create, "apply": plan.apply, "add": plan.add} if outcome.is_done else {}
    return JobDecision(
        status=done.status,
        delete_jobs=plan.delete_jobs,
        delete_service=plan.delete_service,
        delete_self=plan.delete_self,
        events=done.events,
        requeue_after=done.requeue_after,
        **made,
    )


@dataclass(frozen=True)
class ServiceDecision:
    """An InferenceService's plan and report."""

    status: InferenceServiceStatus
    apply: tuple[Manifest, ...] = ()
    is_rollout: bool = False
    delete: tuple[Manifest, ...] = ()
    refresh: tuple[ServerPod, ...] = ()
    adapter_list: str = ""
    promote: tuple[Any, ...] = ()
    gates: tuple[ReadinessGate, ...] = ()
    probes: tuple[ProbeRequest, ...] = ()
    is_switch: bool = False
    events: tuple[EventDraft, ...] = ()
    requeue_after: float | None = None


def decide_for(
    service: InferenceService,
    seen: ServiceObserved,
    answers: Answers | None = None,
    now: datetime = NOW,
    settings: Settings = SETTINGS,
    refusal: Stalled | None = None,
) -> ServiceDecision:
    """The decision, `refusal` being the API server's answer to a child."""
    desired = build_desired(service, settings)
    plan = decide_service(service, desired, seen, answers or {}, settings)
    done = report_service(service, desired, plan, refusal, now)
    return ServiceDecision(
        status=done.status,
        apply=plan.apply,
        is_rollout=plan.is_rollout,
        delete=plan.delete,
        refresh=plan.refresh,
        adapter_list=plan.adapter_list,
        promote=plan.promote,
        gates=plan.gates,
        probes=plan.probes,
        is_switch=plan.is_switch,
        events=done.events,
        requeue_after=plan.requeue_after,
    )
