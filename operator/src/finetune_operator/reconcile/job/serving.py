"""The last part of a FinetuneJob with `serve`: its InferenceService is applied, and its state mirrored. Pure.

With `serve.into` the adapter goes into an InferenceService of somebody else, if that takes it and `serve.gate` lets it.
"""

from dataclasses import replace
from datetime import timedelta
from typing import Final

from finetune_api.reasons import ConditionType, Reason
from finetune_api.v1alpha1 import (
    AdapterStatus,
    Condition,
    FinetuneJob,
    InferenceService,
    Serve,
    ServedAdapterStatus,
    ServingStatus,
)
from finetune_operator.reconcile.conditions import Truth, find_condition
from finetune_operator.reconcile.job.draft import Draft
from finetune_operator.reconcile.job.phase import is_terminal
from finetune_operator.reconcile.job.regression_gate import find_regression
from finetune_operator.reconcile.plan import Observed, Plan, Refusal
from finetune_operator.resources import Manifest
from finetune_operator.resources.drift import is_subset
from finetune_operator.resources.inference_service import build_addition, build_inference_service
from finetune_operator.resources.serving import adapter_claim

PREDECESSOR_SECONDS: Final = 2.0
"""How often to look whether the garbage collector has removed the endpoint of a deleted namesake."""
REFUSED_SECONDS: Final = 15.0
"""How often a child is offered again that a quota or policy forbade."""
FOLLOW_SECONDS: Final = 1.0
"""How often to look at an endpoint that is not the job's own."""
TERMINAL_REASONS: Final = frozenset({Reason.CHILD_CONFLICT, Reason.SPEC_INVALID})
"""Reasons of an endpoint that waiting cannot mend."""


def decide_endpoint(draft: Draft, seen: Observed) -> Plan:
    """The next plan for a job whose adapter is published and that is not finished."""
    job, serve, adapter = draft.job, draft.job.spec.serve, draft.job.status.adapter
    if job.spec.cancel:
        draft.fail(Reason.CANCELLED_BY_USER, "The job was cancelled with spec.cancel; its adapter stays.")
        return draft.plan()
    if serve is None or adapter is None:
        draft.succeed("The adapter is published.")
        return draft.plan()
    if seen.unreadable is not None:
        name = f"InferenceService {job.service_name} in namespace {job.metadata.namespace}"
        draft.fail(Reason.CHILD_CONFLICT, f"{name} exists and cannot be read: {seen.unreadable}")
        return draft.plan()
    if serve.into is not None:
        return _decide_addition(draft, seen, serve, adapter)
    if seen.service is not None and not is_owned(seen.service, job):
        return _decide_foreign(draft, seen.service)
    desired = build_inference_service(job, serve, adapter)
    if seen.refusal is not None:
        return decide_refused(draft, seen.refusal, ConditionType.SERVING_READY)
    if seen.service is None:
        return Plan(status=job.status, apply=(desired,))
    mirror_endpoint(draft, seen.service)
    if not is_subset(seen.service.spec.to_dict(), desired["spec"]):
        # Not what the job asked for, so its verdict proves nothing; but whoever edits it cannot stop the clock.
        return _wait(draft, serve, "Its spec was changed.", apply=(desired,))
    return _judge(draft, seen.service, serve, adapter)


def _decide_addition(draft: Draft, seen: Observed, serve: Serve, adapter: AdapterStatus) -> Plan:
    """Add the adapter once, then follow its state like that of an endpoint of the job's own."""
    job, service = draft.job, seen.service
    if seen.refusal is not None:
        return decide_refused(draft, seen.refusal, ConditionType.SERVING_READY)
    problem = _why_not_into(job, service)
    if service is None or problem is not None:
        draft.fail(Reason.CHILD_CONFLICT, problem or "")
        return draft.plan()
    if has_version(service, adapter):
        mirror_endpoint(draft, service)
        plan = _judge(draft, service, serve, adapter)
        # Its changes are not marked with this job's name.
        return plan if is_terminal(plan.status) else replace(plan, requeue_after=FOLLOW_SECONDS)
    if job.status.serving is not None:
        message = (
            f"InferenceService {service.metadata.name} does not list this version of adapter {adapter.name} any more: it was "
            "replaced or removed meanwhile."
        )
        draft.fail(Reason.CHILD_CONFLICT, message)
        return draft.plan()
    if serve.gate is not None:
        served = next((a.served for a in service.status.adapters if a.name == adapter.name), None)
        regression = find_regression(serve.gate, job.status.metrics, served.metrics) if served is not None else None
        if regression is not None:
            draft.condition(ConditionType.SERVING_READY, "False", Reason.EVAL_REGRESSION, regression)
            draft.fail(Reason.EVAL_REGRESSION, regression)
            return draft.plan()
    # Noted in the same pass: of two jobs that bring one name at the same time, the first then finds itself replaced.
    mirror_endpoint(draft, service)
    return draft.plan(add=(build_addition(job, adapter),), requeue_after=FOLLOW_SECONDS)


def has_version(service: InferenceService, adapter: AdapterStatus) -> bool:
    """Whether the service is to serve this very version."""
    return any(
        a.name == adapter.name and a.source == adapter.uri and a.digest == adapter.digest for a in service.spec.adapters
    )


def _why_not_into(job: FinetuneJob, service: InferenceService | None) -> str | None:
    """Why the adapter cannot go into the service that serve.into names."""
    name = f"serve.into: InferenceService {job.service_name} in namespace {job.metadata.namespace}"
    if service is None:
        return f"{name} does not exist; the adapter is stored."
    if service.spec.adapters_from != "Jobs":
        return f"{name} takes no adapters of jobs; set its spec.adaptersFrom to Jobs."
    if service.spec.model != job.spec.model:
        return f"{name} serves {service.spec.model.source}; the adapter is for {job.spec.model.source}."
    claim = adapter_claim(service)
    if claim not in (None, job.spec.output.claim):
        return f"{name} serves adapters of claim {claim}; the adapter is on {job.spec.output.claim}."
    return None


def decide_refused(draft: Draft, refusal: Refusal, kind: ConditionType) -> Plan:
    """A child was not taken: for good, or until a quota or policy changes; either way in the API server's words."""
    if refusal.is_final:
        draft.fail(Reason.SPEC_INVALID, refusal.message)
        return draft.plan()
    draft.condition(kind, "False", Reason.QUOTA_PENDING, refusal.message)
    return draft.plan(requeue_after=REFUSED_SECONDS)


def is_owned(service: InferenceService, job: FinetuneJob) -> bool:
    """Whether this very job made the InferenceService."""
    return any(owner.uid == job.metadata.uid for owner in service.metadata.owner_references)


def report_loss(draft: Draft, serving: ServingStatus, service: InferenceService | None) -> None:
    """Say that the endpoint of a finished job is gone, or that `service` has another version of the adapter by now."""
    draft.update(serving=serving.model_copy(update={"ready": False, "verified": False, "url": None, "state": None}))
    reason, what = Reason.ENDPOINT_UNREACHABLE, "was deleted."
    if service is not None:
        reason, what = Reason.ADAPTER_SWITCHED, "serves another version of the adapter by now, or none."
    draft.condition(ConditionType.SERVING_READY, "False", reason, f"InferenceService {serving.name} {what}")


def mirror_endpoint(draft: Draft, service: InferenceService) -> None:
    """Copy the endpoint's state into `serving`, ServingReady and AdapterVerified."""
    old, adapter = draft.status.serving, draft.status.adapter
    ready = _ready_condition(service)
    verdict = _verdict(service, adapter)
    if ready is not None:
        status: Truth = "True" if ready.status == "True" else "False"
        draft.condition(ConditionType.SERVING_READY, status, known_reason(ready.reason), ready.message)
    else:
        draft.condition(ConditionType.SERVING_READY, "False", Reason.ROLLING_OUT, "The endpoint is being deployed.")
    if verdict is not None:
        draft.condition(ConditionType.ADAPTER_VERIFIED, verdict.verified, known_reason(verdict.reason), verdict.message)
    # An endpoint of somebody else may be years old; the job's time begins now.
    begin = service.metadata.creation_timestamp if is_owned(service, draft.job) else None
    started = old.started_time if old is not None else begin or draft.now
    draft.update(
        serving=ServingStatus(
            name=service.metadata.name,
            url=service.status.url,
            ready=ready is not None and ready.status == "True",
            verified=verdict is not None and verdict.verified == "True",
            state=_state(ready, verdict),
            started_time=started.replace(microsecond=0) if started else None,
        )
    )


def known_reason(text: str) -> Reason:
    """A reason from another object's status; one of a newer release becomes the most general one."""
    try:
        return Reason(text)
    except ValueError:
        return Reason.ROLLING_OUT


def _decide_foreign(draft: Draft, service: InferenceService) -> Plan:
    job = draft.job
    owner = next((o for o in service.metadata.owner_references if o.controller), None)
    if owner is not None and owner.kind == job.kind and owner.name == job.metadata.name:
        # Of a deleted job of the same name; the garbage collector is about to remove it.
        return Plan(status=job.status, requeue_after=PREDECESSOR_SECONDS)
    name = f"InferenceService {service.metadata.name} in namespace {job.metadata.namespace}"
    draft.fail(Reason.CHILD_CONFLICT, f"{name} exists and belongs to somebody else; choose another spec.serve.name.")
    return draft.plan()


def _judge(draft: Draft, service: InferenceService, serve: Serve, adapter: AdapterStatus) -> Plan:
    verdict, ready = _verdict(service, adapter), _ready_condition(service)
    serving = draft.status.serving
    is_ready = serving is not None and serving.ready
    if verdict is not None and verdict.verified == "True":
        draft.succeed(f"The adapter is served and verified. {verdict.message}".strip())
        return draft.plan()
    if verdict is not None and verdict.verified == "False":
        draft.fail(known_reason(verdict.reason), verdict.message)
        return draft.plan()
    if is_ready and verdict is not None and verdict.reason == Reason.NO_FINGERPRINT:
        draft.succeed("The adapter is served; it carries no fingerprint, so nothing about it could be proven.")
        return draft.plan()
    if ready is not None and ready.reason in TERMINAL_REASONS:
        draft.fail(known_reason(ready.reason), ready.message)
        return draft.plan()
    detail = verdict.message if is_ready and verdict else ready.message if ready else ""
    return _wait(draft, serve, detail.strip())


def _wait(draft: Draft, serve: Serve, detail: str, apply: tuple[Manifest, ...] = ()) -> Plan:
    """Give the endpoint the rest of its time, or up."""
    serving = draft.status.serving
    started = serving.started_time if serving is not None else None
    remaining = float(serve.timeout_seconds)
    if started is not None:
        remaining = (started + timedelta(seconds=serve.timeout_seconds) - draft.now).total_seconds()
    if remaining <= 0:
        message = f"The endpoint was not ready and verified within {serve.timeout_seconds} s. {detail}".strip()
        draft.fail(Reason.ROLLOUT_TIMEOUT, message)
        return draft.plan()
    return draft.plan(apply=apply, requeue_after=remaining)


def _ready_condition(service: InferenceService) -> Condition | None:
    """Ready, unless it tells about an older spec."""
    if service.status.observed_generation < service.metadata.generation:
        return None
    return find_condition(service.status.conditions, ConditionType.READY)


def _verdict(service: InferenceService, adapter: AdapterStatus | None) -> ServedAdapterStatus | None:
    if adapter is None or service.status.observed_generation < service.metadata.generation:
        return None
    return next((a for a in service.status.adapters if a.name == adapter.name and a.digest == adapter.digest), None)


def _state(ready: Condition | None, verdict: ServedAdapterStatus | None) -> str:
    if verdict is not None and verdict.verified == "False":
        return "Failed"
    if ready is None or ready.status != "True":
        return "Deploying"
    return "Verified" if verdict is not None and verdict.verified == "True" else "Ready"
