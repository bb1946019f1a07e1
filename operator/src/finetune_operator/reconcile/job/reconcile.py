"""One pass over a FinetuneJob: observe -> decide -> apply. All I/O of the pass is here, all judgement in `decide`."""

import logging
from dataclasses import replace
from datetime import UTC, datetime

from pydantic import ValidationError

from finetune_api.contract import FINETUNE_JOB_KIND
from finetune_api.outcome import Progress
from finetune_api.sources import parse_source
from finetune_api.v1alpha1 import FinetuneJob, FinetuneJobStatus, InferenceService
from finetune_operator.errors import ClusterError
from finetune_operator.io.cluster import (
    BY_KIND,
    CLAIMS,
    FIELD_MANAGER,
    FINETUNE_JOBS,
    INFERENCE_SERVICES,
    JOBS,
    PODS,
    Cluster,
    Raw,
)
from finetune_operator.io.progress import ProgressReader
from finetune_operator.reconcile.context import Context, ReconcileResult
from finetune_operator.reconcile.job.attempts import find_attempt
from finetune_operator.reconcile.job.continuation import awaited_job
from finetune_operator.reconcile.job.decide import decide
from finetune_operator.reconcile.job.phase import is_terminal
from finetune_operator.reconcile.malformed import describe, report_malformed
from finetune_operator.reconcile.plan import Observed, Plan, Refusal
from finetune_operator.reconcile.reporting import write_status
from finetune_operator.reconcile.views import parse_child_job, parse_pod
from finetune_operator.resources.labels import job_selector

logger = logging.getLogger(__name__)


async def reconcile_finetune_job(context: Context, namespace: str, name: str) -> ReconcileResult:
    """Bring one FinetuneJob a step further. Raises ClusterError if the API server does not play along."""
    raw = await context.cluster.get(FINETUNE_JOBS, namespace, name)
    if raw is None:
        return ReconcileResult()
    try:
        job = FinetuneJob.model_validate(raw)
    except ValidationError as problem:
        await report_malformed(context, FINETUNE_JOBS, raw, problem)
        return ReconcileResult()
    seen = await observe(context.cluster, context.progress, job)
    plan = decide(job, seen, datetime.now(UTC), context.settings)
    answered = await _apply_children(context.cluster, job, plan, seen)
    if answered != seen:
        plan = decide(job, answered, datetime.now(UTC), context.settings)
    await _delete_children(context.cluster, job, plan)
    await write_status(context, FINETUNE_JOBS, raw, FINETUNE_JOB_KIND, job.status, plan.status, plan.events)
    if plan.delete_self:
        logger.info("finished job has expired", extra={"job": f"{namespace}/{name}"})
        await context.cluster.delete(FINETUNE_JOBS, namespace, name, job.metadata.uid)
    return ReconcileResult(acted=bool(plan.create or plan.apply or plan.add), requeue_after=plan.requeue_after)


async def observe(cluster: Cluster, progress: ProgressReader, job: FinetuneJob) -> Observed:
    """Everything a decision needs, read now: no cache could say for certain that no trainer is alive."""
    namespace, selector = job.metadata.namespace, job_selector(job.metadata.uid)
    # Pods after Jobs: a pod that appears in between belongs to a Job that was seen.
    children = tuple(parse_child_job(raw) for raw in await cluster.list(JOBS, namespace, selector))
    pods = tuple(parse_pod(raw) for raw in await cluster.list(PODS, namespace, selector))
    seen = Observed(children=children, pods=pods)
    try:
        seen = replace(seen, service=await _read_service(cluster, job))
    except ValidationError as problem:
        seen = replace(seen, unreadable=describe(problem))
    return replace(
        seen,
        claims=await _read_claims(cluster, job, seen),
        earlier=await _read_earlier(cluster, job),
        progress=await _read_progress(progress, job, seen),
    )


async def _read_service(cluster: Cluster, job: FinetuneJob) -> InferenceService | None:
    if job.spec.serve is None or job.status.adapter is None:
        return None
    raw = await cluster.get(INFERENCE_SERVICES, job.metadata.namespace, job.service_name)
    return None if raw is None else InferenceService.model_validate(raw)


async def _read_claims(cluster: Cluster, job: FinetuneJob, seen: Observed) -> dict[str, bool]:
    """Whether the claims exist that the spec names; asked only if an attempt may be about to start."""
    if is_terminal(job.status) or job.status.adapter is not None or job.spec.suspend or seen.has_live_trainer:
        return {}
    spec = job.spec
    evaluation = spec.evaluation.source if spec.evaluation else None
    uris = (spec.model.source, spec.dataset.source, evaluation, job.initial_adapter_uri)
    sources = [parse_source(uri) for uri in uris if uri]
    names = {source.name for source in sources if source.scheme == "pvc"} | {spec.output.claim}
    namespace = job.metadata.namespace
    return {name: await cluster.get(CLAIMS, namespace, name) is not None for name in sorted(names)}


async def _read_earlier(cluster: Cluster, job: FinetuneJob) -> FinetuneJobStatus | None:
    name = awaited_job(job)
    if name is None or is_terminal(job.status):
        return None
    raw = await cluster.get(FINETUNE_JOBS, job.metadata.namespace, name)
    return None if raw is None else FinetuneJobStatus.model_validate(raw.get("status") or {})


async def _read_progress(reader: ProgressReader, job: FinetuneJob, seen: Observed) -> Progress | None:
    if is_terminal(job.status) or job.status.adapter is not None:
        return None
    attempt = find_attempt(job.status, seen)
    if attempt.pod is None or attempt.pod.is_finished or attempt.pod.started_at is None:
        return None
    return await reader.read(job.metadata.uid, attempt.number)


async def _apply_children(cluster: Cluster, job: FinetuneJob, plan: Plan, seen: Observed) -> Observed:
    """Make children. Answers what was seen, with what stood in the way: a foreign object of the name, a refusal."""
    try:
        for manifest in plan.create:
            if await cluster.create(manifest) is None and not await _is_ours(cluster, job, manifest):
                return replace(seen, conflict=f"{manifest['kind']} {manifest['metadata']['name']}")
            logger.info("created", extra=_fields(job, manifest))
        for manifest in plan.apply:
            await cluster.apply(manifest)
            logger.info("applied", extra=_fields(job, manifest))
        for manifest in plan.add:
            adapter = manifest["spec"]["adapters"][0]["name"]
            await cluster.apply(manifest, manager=f"{FIELD_MANAGER}/{adapter}")
            logger.info("added", extra={**_fields(job, manifest), "adapter": adapter})
    except ClusterError as error:
        if not error.is_refusal:
            raise
        logger.warning("child was refused", extra={"error": str(error)})
        return replace(seen, refusal=Refusal(str(error), error.is_invalid))
    return seen


async def _is_ours(cluster: Cluster, job: FinetuneJob, manifest: Raw) -> bool:
    """Whether an object that exists already is the child we meant: a pass before this one made it and then died."""
    if not manifest["metadata"].get("ownerReferences"):
        return True
    metadata = manifest["metadata"]
    live = await cluster.get(BY_KIND[manifest["kind"]], metadata["namespace"], metadata["name"])
    owners = (live or {}).get("metadata", {}).get("ownerReferences") or []
    return live is None or any(owner["uid"] == job.metadata.uid for owner in owners)


async def _delete_children(cluster: Cluster, job: FinetuneJob, plan: Plan) -> None:
    for child in plan.delete_jobs:
        logger.info("deleting Job", extra={"job": f"{job.metadata.namespace}/{job.metadata.name}", "child": child.name})
        await cluster.delete(JOBS, job.metadata.namespace, child.name, child.uid)
    if plan.delete_service is not None:
        metadata = plan.delete_service.metadata
        await cluster.delete(INFERENCE_SERVICES, metadata.namespace, metadata.name, metadata.uid)


def _fields(job: FinetuneJob, manifest: Raw) -> dict[str, str]:
    child = f"{manifest['kind']}/{manifest['metadata']['name']}"
    return {"job": f"{job.metadata.namespace}/{job.metadata.name}", "child": child}
