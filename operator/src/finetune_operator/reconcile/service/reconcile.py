"""One pass over an InferenceService: observe -> decide -> apply, probe if asked to, decide once more."""

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
from finetune_operator.errors import ClusterError
from finetune_operator.io.cluster import BY_KIND, INFERENCE_SERVICES, PODS
from finetune_operator.io.probe import ProbeResult, Served, ask_served, not_loaded, probe_adapter, promote
from finetune_operator.reconcile.context import Context, ReconcileResult
from finetune_operator.reconcile.malformed import report_malformed
from finetune_operator.reconcile.reporting import write_status
from finetune_operator.reconcile.service.adapter_verdicts import ProbeRequest
from finetune_operator.reconcile.service.decide import (
    ReadinessGate,
    ServiceObserved,
    ServicePlan,
    decide_service,
    stalled,
)
from finetune_operator.reconcile.views import PodView, parse_pod
from finetune_operator.resources.annotations import ANNOTATION_ADAPTER_LIST, CONDITION_ADAPTERS_VERIFIED
from finetune_operator.resources.labels import serving_selector
from finetune_operator.resources.names import adapter_list_name, deployment_name
from finetune_operator.resources.serving import SERVER_CONTAINER, model_name, server_url

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.05
"""Pause between two looks at a server that is about to load an adapter."""
LOADING_SECONDS: Final = 5.0
"""How long one pass looks; a server that needs longer (a large adapter, a slow volume) is asked by the next."""
PROMOTION_SECONDS: Final = 2.0
"""How long a server has to promote a candidate; its list comes about as soon."""
ASKING_SECONDS: Final = 240.0
"""How long one pass goes on to the next adapter; those that are left are asked by the next pass, and no answer is lost to
the end of a pass that took too long."""


async def reconcile_inference_service(context: Context, namespace: str, name: str) -> ReconcileResult:
    """Bring one InferenceService a step further. Raises ClusterError if the API server does not play along."""
    raw = await context.cluster.get(INFERENCE_SERVICES, namespace, name)
    if raw is None:
        return ReconcileResult()
    try:
        service = InferenceService.model_validate(raw)
    except ValidationError as problem:
        await report_malformed(context, INFERENCE_SERVICES, raw, problem)
        return ReconcileResult()
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
    await _set_gates(context, service, plan.gates)
    if plan.probes:
        return await _verify(context, plan, service)
    return ReconcileResult(acted=plan.is_rollout, requeue_after=plan.requeue_after)


async def observe(context: Context, service: InferenceService) -> ServiceObserved:
    """The children of the service, and its pods."""
    cluster, namespace = context.cluster, service.metadata.namespace
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
    live = {kind: {"kind": kind, **raw} for kind, raw in zip(names, found, strict=True) if raw is not None}
    return ServiceObserved(live=live, pods=tuple(parse_pod(raw, SERVER_CONTAINER) for raw in pods))


async def _act(context: Context, service: InferenceService, plan: ServicePlan) -> None:
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
        *(_tell(context, namespace, pod, plan.adapter_list) for pod in plan.refresh),
        *(_promote(context, service, pod, request) for pod, request in promotions),
    )


async def _promote(context: Context, service: InferenceService, pod: PodView, request: PromotionRequest) -> None:
    """Have a server give a proven candidate its name.

    One that does not, or that does not say so in time, reads it in its list a second later, and is asked for the version under
    that name in any case: whatever it has against it comes into the status from there.
    """
    refusal = await promote(server_url(pod.address, pod.name, service, context.settings), request, PROMOTION_SECONDS)
    fields = {"service": f"{service.metadata.namespace}/{service.metadata.name}", "pod": pod.name}
    if refusal is None:
        logger.info("promoted", extra={**fields, "adapter": request.candidate})
    else:
        logger.warning("promotion not confirmed", extra={**fields, "adapter": request.candidate, "error": refusal})


async def _tell(context: Context, namespace: str, pod: PodView, adapter_list: str) -> None:
    """Note the current list on a pod. Where a policy forbids that, the pod sees the list a minute later all the same."""
    try:
        await context.cluster.annotate(PODS, namespace, pod.name, pod.uid, {ANNOTATION_ADAPTER_LIST: adapter_list})
    except ClusterError as error:
        if not error.is_refusal:
            raise
        logger.warning("pod was not told of its list", extra={"pod": f"{namespace}/{pod.name}", "error": str(error)})


async def _set_gates(context: Context, service: InferenceService, gates: tuple[ReadinessGate, ...]) -> None:
    """Say of each pod whether it may have traffic."""
    namespace = service.metadata.namespace
    for gate in gates:
        condition = {
            "type": CONDITION_ADAPTERS_VERIFIED,
            "status": "True" if gate.is_open else "False",
            "reason": Reason.COMPLETED if gate.is_open else Reason.VERIFYING,
            "message": gate.message,
        }
        if gate.is_transition:
            condition["lastTransitionTime"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        await context.cluster.patch_condition(
            PODS, namespace, gate.pod.name, gate.pod.uid, gate.pod.resource_version, condition
        )
        fields = {"service": f"{namespace}/{service.metadata.name}", "pod": gate.pod.name}
        logger.info("let in" if gate.is_open else "kept out", extra=fields)


async def _verify(context: Context, plan: ServicePlan, service: InferenceService) -> ReconcileResult:
    """Ask the pods, then judge what is there *now*: that takes seconds, and the object may have changed."""
    asked = (service.metadata.uid, service.metadata.generation)
    answers = await _ask(context, service, plan.probes)
    after = await context.cluster.get(INFERENCE_SERVICES, service.metadata.namespace, service.metadata.name)
    if after is None or (after["metadata"].get("uid"), after["metadata"].get("generation")) != asked:
        return ReconcileResult(requeue_after=0.0)
    service = InferenceService.model_validate(after)
    seen = await observe(context, service)
    plan = decide_service(service, seen, answers, datetime.now(UTC), context.settings)
    if plan.apply:
        # The rollout changed under the probe; its verdict is about something that is gone.
        return ReconcileResult(requeue_after=0.0)
    await write_status(
        context, INFERENCE_SERVICES, after, INFERENCE_SERVICE_KIND, service.status, plan.status, plan.events
    )
    await _set_gates(context, service, plan.gates)
    if plan.is_switch:
        # Clients wait for it: the next pass would read all of this once more, to do the same.
        service = service.model_copy(update={"status": plan.status})
        await _act(context, service, decide_service(service, seen, {}, datetime.now(UTC), context.settings))
    return ReconcileResult(requeue_after=plan.requeue_after)


async def _ask(
    context: Context, service: InferenceService, requests: tuple[ProbeRequest, ...]
) -> dict[tuple[str, int, str], ProbeResult]:
    """Ask all pods at once, each for one adapter after the other."""
    by_pod = defaultdict(list)
    for request in requests:
        by_pod[request.pod.name].append(request)
    answers = await asyncio.gather(*(_ask_pod(context, service, asked) for asked in by_pod.values()))
    return {key: result for answer in answers for key, result in answer.items()}


async def _ask_pod(
    context: Context, service: InferenceService, requests: list[ProbeRequest]
) -> dict[tuple[str, int, str], ProbeResult]:
    pod, timeout = requests[0].pod, context.settings.probe_timeout_seconds
    url = server_url(pod.address, pod.name, service, context.settings)
    served = await _wait_loaded(url, requests, timeout)
    answers: dict[tuple[str, int, str], ProbeResult] = {}
    give_up = time.monotonic() + ASKING_SECONDS
    for request in requests:
        if answers and time.monotonic() > give_up:
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
    """What the server serves, once it has (or refused) everything that it is asked for, or at the end of patience."""
    give_up = time.monotonic() + LOADING_SECONDS
    while True:
        served = await ask_served(url, seconds)
        if served is None or time.monotonic() > give_up:
            return served
        if not any(served.lacks(request.name, request.digest) for request in requests):
            return served
        await asyncio.sleep(LOOK_SECONDS)
