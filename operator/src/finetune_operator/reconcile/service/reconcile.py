"""Reconcile one InferenceService: observe -> decide -> act -> report -> write; then probe, and decide on the answers."""

import asyncio
import logging
import time
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import ValidationError

from finetune_api.contract import INFERENCE_SERVICE_KIND
from finetune_api.reasons import Reason
from finetune_api.serving import PromotionRequest
from finetune_api.v1alpha1 import InferenceService
from finetune_operator.errors import ClusterError, UnreadableObjectError
from finetune_operator.io.cache import Cache
from finetune_operator.io.cluster import BY_KIND, INFERENCE_SERVICES, PODS, Cluster
from finetune_operator.io.probe import ProbeResult, Served, ask_served, not_loaded, probe_adapter, promote
from finetune_operator.kubernetes_types import Raw
from finetune_operator.reconcile.context import Context, ReconcileResult
from finetune_operator.reconcile.door import read_children, read_live
from finetune_operator.reconcile.malformed import report_malformed, report_unreadable_child
from finetune_operator.reconcile.reporting import write_status
from finetune_operator.reconcile.service.adapter_verdicts import ProbeRequest
from finetune_operator.reconcile.service.decide import decide_service
from finetune_operator.reconcile.service.desired import build_desired
from finetune_operator.reconcile.service.plan import ServiceObserved, ServicePlan, ServiceReport, Stalled
from finetune_operator.reconcile.service.readiness_gates import ReadinessGate, build_gate_condition
from finetune_operator.reconcile.service.report import report_service
from finetune_operator.reconcile.service.server_pod import ServerPod, parse_server_pod
from finetune_operator.resources.annotations import ANNOTATION_ADAPTER_LIST
from finetune_operator.resources.labels import serving_selector
from finetune_operator.resources.names import adapter_list_name, deployment_name
from finetune_operator.resources.serving import model_name, server_url

logger = logging.getLogger(__name__)

LOADING_POLL_SECONDS: Final = 0.05
"""Pause between two reads of the models of a server that is about to load an adapter."""
LOADING_SECONDS: Final = 5.0
"""Longest wait for loading in one reconcile; a server that needs longer (a large adapter, a slow volume) is probed by the next."""
PROMOTION_SECONDS: Final = 2.0
"""Time of a server to promote a candidate; its list arrives about as soon."""
PROBING_SECONDS: Final = 240.0
"""Time after which one reconcile probes no further adapter; the next one probes the rest, and no answer is lost to the end of a
reconcile that took too long."""


async def reconcile_inference_service(context: Context, namespace: str, name: str) -> ReconcileResult:
    """Bring one InferenceService a step further. Raises ClusterError if the API server cannot be reached or refuses a write."""
    raw = await context.reads.get(INFERENCE_SERVICES, namespace, name)
    if raw is None:
        return ReconcileResult()
    try:
        service = InferenceService.model_validate(raw)
    except ValidationError as problem:
        await report_malformed(context, INFERENCE_SERVICES, raw, problem)
        return ReconcileResult()
    try:
        seen = await observe(context.reads, service)
    except UnreadableObjectError as problem:
        return await report_unreadable_child(context, INFERENCE_SERVICES, raw, problem)
    desired = build_desired(service, context.settings)
    plan = decide_service(service, desired, seen, {}, context.settings)
    refusal = await _act(context, service, plan)
    await _write(context, raw, service, report_service(service, desired, plan, refusal, datetime.now(UTC)))
    if refusal is not None:
        return ReconcileResult()
    await _set_gates(context, service, plan.gates)
    if plan.probes:
        return await _verify(context, plan, service)
    return ReconcileResult(acted=plan.is_rollout, requeue_after=plan.requeue_after)


async def _write(context: Context, raw: Raw, service: InferenceService, report: ServiceReport) -> None:
    await write_status(
        context, INFERENCE_SERVICES, raw, INFERENCE_SERVICE_KIND, service.status, report.status, report.events
    )


async def observe(cluster: Cluster | Cache, service: InferenceService) -> ServiceObserved:
    """Read the children of the service, and its pods, from a cache or from the API server."""
    namespace = service.metadata.namespace
    server_name = deployment_name(service.metadata.name)
    names = {
        "ConfigMap": adapter_list_name(service.metadata.name),
        "Deployment": server_name,
        "Service": service.metadata.name,
        "PodDisruptionBudget": server_name,
        "HorizontalPodAutoscaler": server_name,
    }
    selector = ",".join(f"{key}={value}" for key, value in serving_selector(service.metadata.name).items())
    # All at once: a new version of an adapter waits for each round trip.
    pods, found = await asyncio.gather(
        cluster.list(PODS, namespace, selector),
        asyncio.gather(*(cluster.get(BY_KIND[kind], namespace, name) for kind, name in names.items())),
    )
    live = {kind: read_live(kind, raw) for kind, raw in zip(names, found, strict=True) if raw is not None}
    return ServiceObserved(live=live, pods=read_children(parse_server_pod, "Pod", pods))


async def _act(context: Context, service: InferenceService, plan: ServicePlan) -> Stalled | None:
    """Carry out the plan; return the API server's answer to a child that can never be stored as it is."""
    try:
        await _carry_out(context, service, plan)
    except ClusterError as error:
        if not error.is_invalid:
            raise
        return Stalled(Reason.SPEC_INVALID, str(error))
    return None


async def _carry_out(context: Context, service: InferenceService, plan: ServicePlan) -> None:
    cluster, namespace = context.cluster, service.metadata.namespace
    fields = {"service": f"{namespace}/{service.metadata.name}"}
    for manifest in plan.apply:
        await cluster.apply(manifest)
        logger.info("applied", extra={**fields, "child": f"{manifest['kind']}/{manifest['metadata']['name']}"})
    for child in plan.delete:
        metadata: dict[str, Any] = child["metadata"]
        await cluster.delete(BY_KIND[child["kind"]], namespace, metadata["name"], metadata["uid"])
        logger.info("deleted", extra={**fields, "child": f"{child['kind']}/{metadata['name']}"})
    promotions = [(pod, request) for pod in plan.refresh if pod.is_answering for request in plan.promote]
    await asyncio.gather(
        *(_annotate(context, namespace, pod, plan.adapter_list) for pod in plan.refresh),
        *(_promote(context, service, pod, request) for pod, request in promotions),
    )


async def _promote(context: Context, service: InferenceService, pod: ServerPod, request: PromotionRequest) -> None:
    """Ask a server to promote a verified candidate to its adapter's own name.

    A server that does not confirm in time reads the promotion in its list a second later. It is probed under that name in any
    case, so that its objection gets into the status from there.
    """
    refusal = await promote(server_url(pod.address, pod.name, service, context.settings), request, PROMOTION_SECONDS)
    fields = {"service": f"{service.metadata.namespace}/{service.metadata.name}", "pod": pod.name}
    if refusal is None:
        logger.info("promoted", extra={**fields, "adapter": request.candidate})
    else:
        logger.warning("promotion not confirmed", extra={**fields, "adapter": request.candidate, "error": refusal})


async def _annotate(context: Context, namespace: str, pod: ServerPod, adapter_list: str) -> None:
    """Annotate a pod with the current list. Where a policy forbids that, the pod sees the list up to a minute later."""
    try:
        await context.cluster.annotate(PODS, namespace, pod.name, pod.uid, {ANNOTATION_ADAPTER_LIST: adapter_list})
    except ClusterError as error:
        if not error.is_refusal:
            raise
        logger.warning(
            "pod was not annotated with its list", extra={"pod": f"{namespace}/{pod.name}", "error": str(error)}
        )


async def _set_gates(context: Context, service: InferenceService, gates: tuple[ReadinessGate, ...]) -> None:
    """Open or close the readiness gates of pods."""
    namespace = service.metadata.namespace
    for gate in gates:
        condition, pod = build_gate_condition(gate, datetime.now(UTC)), gate.pod
        await context.cluster.patch_condition(PODS, namespace, pod.name, pod.uid, pod.resource_version, condition)
        fields = {"service": f"{namespace}/{service.metadata.name}", "pod": pod.name}
        logger.info("readiness gate opened" if gate.is_open else "readiness gate closed", extra=fields)


async def _verify(context: Context, plan: ServicePlan, service: InferenceService) -> ReconcileResult:
    """Probe the pods, then judge the object as it is *now*: probes take seconds, and it may have changed meanwhile."""
    asked = (service.metadata.uid, service.metadata.generation)
    answers = await _probe(context, service, plan.probes)
    after = await context.cluster.get(INFERENCE_SERVICES, service.metadata.namespace, service.metadata.name)
    if after is None or (after["metadata"].get("uid"), after["metadata"].get("generation")) != asked:
        return ReconcileResult(requeue_after=0.0)
    service = InferenceService.model_validate(after)
    # Live: a new pod that the cache does not show yet must be proven, too, before a name changes its meaning.
    desired, seen = build_desired(service, context.settings), await observe(context.cluster, service)
    plan = decide_service(service, desired, seen, answers, context.settings)
    if plan.apply:
        # The rollout changed under the probe; its verdict is about something that is gone.
        return ReconcileResult(requeue_after=0.0)
    report = report_service(service, desired, plan, None, datetime.now(UTC))
    await _write(context, after, service, report)
    await _set_gates(context, service, plan.gates)
    if plan.is_switch:
        # Clients wait for the new version: the next reconcile would read all of this once more, to do the same.
        service = service.model_copy(update={"status": report.status})
        switch = decide_service(service, build_desired(service, context.settings), seen, {}, context.settings)
        await _carry_out(context, service, switch)
    return ReconcileResult(requeue_after=plan.requeue_after)


async def _probe(
    context: Context, service: InferenceService, requests: tuple[ProbeRequest, ...]
) -> dict[tuple[str, int, str], ProbeResult]:
    """Probe all pods at once, each for one adapter after the other."""
    by_pod = defaultdict(list)
    for request in requests:
        by_pod[request.pod.name].append(request)
    answers = await asyncio.gather(*(_probe_pod(context, service, asked) for asked in by_pod.values()))
    return {key: result for answer in answers for key, result in answer.items()}


async def _probe_pod(
    context: Context, service: InferenceService, requests: list[ProbeRequest]
) -> dict[tuple[str, int, str], ProbeResult]:
    pod, timeout = requests[0].pod, context.settings.probe_timeout_seconds
    url = server_url(pod.address, pod.name, service, context.settings)
    served = await _wait_loaded(url, requests, timeout)
    answers: dict[tuple[str, int, str], ProbeResult] = {}
    deadline = time.monotonic() + PROBING_SECONDS
    for request in requests:
        if answers and time.monotonic() > deadline:
            break
        if served is None or not served.has(request.name, request.digest):
            result = not_loaded(served, request.name)
        elif request.adapter.fingerprint is None:
            result = ProbeResult("Unknown", Reason.NO_FINGERPRINT, "The adapter was given without a fingerprint.")
        else:
            result = await probe_adapter(url, request.name, model_name(service), request.adapter.fingerprint, timeout)
        digest = served.digests.get(request.name) if served is not None else None
        answers[request.key] = replace(result, digest=digest)
        fields = {"service": f"{service.metadata.namespace}/{service.metadata.name}", "pod": pod.name}
        logger.info("probed", extra={**fields, "adapter": request.name, "reason": result.reason})
    return answers


async def _wait_loaded(url: str, requests: list[ProbeRequest], seconds: float) -> Served | None:
    """Read what the server serves, until it has loaded or refused every requested adapter, or the time is over."""
    deadline = time.monotonic() + LOADING_SECONDS
    while True:
        served = await ask_served(url, seconds)
        if served is None or time.monotonic() > deadline:
            return served
        if not any(served.lacks(request.name, request.digest) for request in requests):
            return served
        await asyncio.sleep(LOADING_POLL_SECONDS)
