"""One pass over an InferenceService: observe -> decide -> apply, probe if asked to, decide once more."""

import logging
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from finetune_api.constants import INFERENCE_SERVICE_KIND
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import InferenceService
from finetune_operator.cluster import BUDGETS, DEPLOYMENTS, INFERENCE_SERVICES, PODS, SERVICES, Raw
from finetune_operator.errors import ClusterError
from finetune_operator.probe import ProbeResult, probe_adapter
from finetune_operator.reconcile.context import Context, Pass
from finetune_operator.reconcile.decide_service import ServiceObserved, ServicePlan, decide_service, stalled
from finetune_operator.reconcile.malformed import report_malformed
from finetune_operator.reconcile.reporting import write_status
from finetune_operator.reconcile.rollout import observe_rollout
from finetune_operator.reconcile.views import parse_pod
from finetune_operator.resources.labels import serving_selector
from finetune_operator.resources.names import deployment_name
from finetune_operator.resources.serving import SERVER_CONTAINER, model_name, probe_url

logger = logging.getLogger(__name__)


async def reconcile_inference_service(context: Context, namespace: str, name: str) -> Pass:
    """Bring one InferenceService a step further. Raises ClusterError if the API server does not play along."""
    raw = await context.cluster.get(INFERENCE_SERVICES, namespace, name)
    if raw is None:
        return Pass()
    try:
        service = InferenceService.model_validate(raw)
    except ValidationError as problem:
        await report_malformed(context, INFERENCE_SERVICES, raw, problem)
        return Pass()
    seen = await observe(context, service)
    plan = decide_service(service, seen, {}, datetime.now(UTC), context.settings)
    try:
        await _act(context, service, plan)
    except ClusterError as error:
        if not error.is_invalid:
            raise
        plan = stalled(service, datetime.now(UTC), Reason.SPEC_INVALID, str(error))
    await write_status(
        context, INFERENCE_SERVICES, raw, INFERENCE_SERVICE_KIND, service.status, plan.status, plan.events
    )
    if plan.probes:
        return await _verify(context, plan, namespace, name)
    return Pass(acted=bool(plan.apply), requeue_after=plan.requeue_after)


async def observe(context: Context, service: InferenceService) -> ServiceObserved:
    """The children of the service, and its pods while they are not all ready."""
    cluster, namespace = context.cluster, service.metadata.namespace
    server_name = deployment_name(service.metadata.name)
    found = {
        "Deployment": await cluster.get(DEPLOYMENTS, namespace, server_name),
        "Service": await cluster.get(SERVICES, namespace, service.metadata.name),
        "PodDisruptionBudget": await cluster.get(BUDGETS, namespace, server_name),
    }
    live = {kind: {"kind": kind, **raw} for kind, raw in found.items() if raw is not None}
    deployment = live.get("Deployment")
    if deployment is None or observe_rollout(service, deployment, ()).is_complete:
        return ServiceObserved(live=live)
    selector = ",".join(f"{key}={value}" for key, value in serving_selector(service.metadata.name).items())
    pods = tuple(parse_pod(raw, SERVER_CONTAINER) for raw in await cluster.list(PODS, namespace, selector))
    return ServiceObserved(live=live, pods=pods)


async def _act(context: Context, service: InferenceService, plan: ServicePlan) -> None:
    name = f"{service.metadata.namespace}/{service.metadata.name}"
    for manifest in plan.apply:
        await context.cluster.apply(manifest)
        child = f"{manifest['kind']}/{manifest['metadata']['name']}"
        logger.info("applied", extra={"service": name, "child": child})
    if plan.delete_budget is not None:
        metadata: dict[str, Any] = plan.delete_budget["metadata"]
        await context.cluster.delete(BUDGETS, metadata["namespace"], metadata["name"], metadata["uid"])


async def _verify(context: Context, plan: ServicePlan, namespace: str, name: str) -> Pass:
    """Replay the fingerprints, then judge what is there *now*: a probe takes seconds, and the object may have changed."""
    before = await context.cluster.get(INFERENCE_SERVICES, namespace, name)
    if before is None:
        return Pass()
    service = InferenceService.model_validate(before)
    verdicts = {a.name: r for a in plan.probes if (r := await _probe(context, service, a.name)) is not None}
    after: Raw | None = await context.cluster.get(INFERENCE_SERVICES, namespace, name)
    if after is None or after["metadata"].get("generation") != before["metadata"].get("generation"):
        return Pass(requeue_after=0.0)
    service = InferenceService.model_validate(after)
    seen = await observe(context, service)
    plan = decide_service(service, seen, verdicts, datetime.now(UTC), context.settings)
    if plan.apply:
        # The rollout changed under the probe; its verdict is about something that is gone.
        return Pass(requeue_after=0.0)
    await write_status(
        context, INFERENCE_SERVICES, after, INFERENCE_SERVICE_KIND, service.status, plan.status, plan.events
    )
    return Pass(requeue_after=plan.requeue_after)


async def _probe(context: Context, service: InferenceService, adapter_name: str) -> ProbeResult | None:
    adapter = next((a for a in service.spec.adapters if a.name == adapter_name), None)
    if adapter is None or adapter.fingerprint is None:
        return None
    settings = context.settings
    result = await probe_adapter(
        probe_url(service, settings),
        adapter.name,
        model_name(service),
        adapter.fingerprint,
        settings.probe_timeout_seconds,
    )
    fields = {"service": f"{service.metadata.namespace}/{service.metadata.name}", "adapter": adapter.name}
    logger.info("probed", extra={**fields, "reason": result.reason, "detail": result.message})
    return result
