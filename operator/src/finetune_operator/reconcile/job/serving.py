"""The serve stage of a FinetuneJob: apply its InferenceService, or add the adapter to one that exists, and follow it. Pure.

With `serve.into` the adapter goes into an InferenceService of somebody else, if that takes it and `serve.gate` allows it.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import AdapterStatus, FinetuneJob, InferenceService, Serve
from finetune_operator.reconcile.conditions import known_reason
from finetune_operator.reconcile.job.endpoint import Endpoint
from finetune_operator.reconcile.job.findings import JobEnd, Serving
from finetune_operator.reconcile.job.plan import Observed, Plan
from finetune_operator.reconcile.job.regression_gate import find_regression
from finetune_operator.reconcile.ownership import PREDECESSOR_SECONDS, Ownership
from finetune_operator.resources import Manifest
from finetune_operator.resources.drift import is_subset
from finetune_operator.resources.inference_service import build_addition, build_inference_service
from finetune_operator.resources.serving import adapter_claim

FOLLOW_SECONDS: Final = 1.0
"""Pause between two reads of an endpoint that is not the job's own."""
TERMINAL_REASONS: Final = frozenset({Reason.CHILD_CONFLICT, Reason.SPEC_INVALID})
"""Reasons of an endpoint that waiting cannot mend."""


def serve_adapter(job: FinetuneJob, seen: Observed, endpoint: Endpoint | None, now: datetime) -> Plan:
    """Return the next plan for a job whose adapter is published and that is not finished."""
    serve, adapter = job.spec.serve, job.status.adapter
    if job.spec.cancel:
        message = "The job was cancelled with spec.cancel; its adapter stays."
        return Plan(end=JobEnd(Reason.CANCELLED_BY_USER, message))
    if serve is None or adapter is None:
        return Plan(end=JobEnd(Reason.COMPLETED, "The adapter is published.", is_success=True))
    if seen.unreadable is not None:
        name = f"InferenceService {job.service_name} in namespace {job.metadata.namespace}"
        return Plan(end=JobEnd(Reason.CHILD_CONFLICT, f"{name} exists and cannot be read: {seen.unreadable}"))
    if serve.into is not None:
        return _serve_into(job, endpoint, serve, adapter, now)
    return _serve_own(job, endpoint, serve, adapter, now)


def _serve_own(
    job: FinetuneJob, endpoint: Endpoint | None, serve: Serve, adapter: AdapterStatus, now: datetime
) -> Plan:
    """Apply an endpoint of the job's own, and follow it until its adapter is verified."""
    if endpoint is not None and endpoint.owner is Ownership.PREDECESSOR:
        return Plan(requeue_after=PREDECESSOR_SECONDS)
    if endpoint is not None and endpoint.owner is Ownership.FOREIGN:
        name = f"InferenceService {job.service_name} in namespace {job.metadata.namespace}"
        message = f"{name} exists and belongs to somebody else; choose another spec.serve.name."
        return Plan(end=JobEnd(Reason.CHILD_CONFLICT, message))
    desired = build_inference_service(job, serve, adapter)
    if endpoint is None:
        return Plan(apply=(desired,))
    if not is_subset(endpoint.service.spec.to_dict(), desired["spec"]):
        # Not the spec of the job, so its verdict proves nothing; but whoever edits it cannot stop the clock.
        return _wait(endpoint, serve, now, "Its spec was changed.", apply=(desired,))
    return _judge(endpoint, serve, now)


def _serve_into(
    job: FinetuneJob, endpoint: Endpoint | None, serve: Serve, adapter: AdapterStatus, now: datetime
) -> Plan:
    """Add the adapter once, then follow its state like that of an endpoint of the job's own."""
    problem = _why_not_into(job, endpoint.service if endpoint is not None else None)
    if endpoint is None or problem is not None:
        return Plan(end=JobEnd(Reason.CHILD_CONFLICT, problem or ""))
    if endpoint.has_version:
        plan = _judge(endpoint, serve, now)
        # Its changes are not marked with this job's name.
        return plan if plan.end is not None else replace(plan, requeue_after=FOLLOW_SECONDS)
    if job.status.serving is not None:
        message = (
            f"InferenceService {job.service_name} does not list this version of adapter {adapter.name} any more: it was "
            "replaced or removed meanwhile."
        )
        return Plan(end=JobEnd(Reason.CHILD_CONFLICT, message))
    served = next((a.served for a in endpoint.service.status.adapters if a.name == adapter.name), None)
    if serve.gate is not None and served is not None:
        regression = find_regression(serve.gate, job.status.metrics, served.metrics)
        if regression is not None:
            return Plan(Serving(endpoint, regression), end=JobEnd(Reason.EVAL_REGRESSION, regression))
    # Reported in the same reconcile: of two jobs that bring one name at the same time, the first then finds itself replaced.
    return Plan(Serving(endpoint), add=(build_addition(job, adapter),), requeue_after=FOLLOW_SECONDS)


def _why_not_into(job: FinetuneJob, service: InferenceService | None) -> str | None:
    """Explain why the adapter cannot go into the service that serve.into names; None if it can."""
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


def _judge(endpoint: Endpoint, serve: Serve, now: datetime) -> Plan:
    """End the job with the endpoint's verdict, or wait for one."""
    verdict, ready = endpoint.verdict, endpoint.ready
    end = None
    if verdict is not None and verdict.verified == "True":
        end = JobEnd(
            Reason.COMPLETED, f"The adapter is served and verified. {verdict.message}".strip(), is_success=True
        )
    elif verdict is not None and verdict.verified == "False":
        end = JobEnd(known_reason(verdict.reason), verdict.message)
    elif endpoint.is_ready and verdict is not None and verdict.reason == Reason.NO_FINGERPRINT:
        message = "The adapter is served; it carries no fingerprint, so nothing about it could be verified."
        end = JobEnd(Reason.COMPLETED, message, is_success=True)
    elif ready is not None and ready.reason in TERMINAL_REASONS:
        end = JobEnd(known_reason(ready.reason), ready.message)
    if end is not None:
        return Plan(Serving(endpoint), end=end)
    detail = verdict.message if endpoint.is_ready and verdict else ready.message if ready else ""
    return _wait(endpoint, serve, now, detail.strip())


def _wait(endpoint: Endpoint, serve: Serve, now: datetime, detail: str, apply: tuple[Manifest, ...] = ()) -> Plan:
    """Give the endpoint the rest of its time, or fail the job."""
    remaining = float(serve.timeout_seconds)
    if endpoint.started_time is not None:
        remaining = (endpoint.started_time + timedelta(seconds=serve.timeout_seconds) - now).total_seconds()
    if remaining <= 0:
        message = f"The endpoint was not ready and verified within {serve.timeout_seconds} s. {detail}".strip()
        return Plan(Serving(endpoint), end=JobEnd(Reason.ROLLOUT_TIMEOUT, message))
    return Plan(Serving(endpoint), apply=apply, requeue_after=remaining)
