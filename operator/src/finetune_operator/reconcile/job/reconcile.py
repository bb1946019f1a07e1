"""Reconcile one FinetuneJob: observe -> decide -> act -> report -> write. All I/O is here, all judgement in pure functions."""

import logging
from dataclasses import replace
from datetime import UTC, datetime

from pydantic import ValidationError

from finetune_api.contract import FINETUNE_JOB_KIND
from finetune_api.outcome import Progress
from finetune_api.v1alpha1 import FinetuneJob, FinetuneJobStatus, InferenceService
from finetune_operator.errors import ClusterError, StalledError, UnreadableObjectError
from finetune_operator.io.cache import Cache
from finetune_operator.io.cluster import (
    BY_KIND,
    CLAIMS,
    FIELD_MANAGER,
    FINETUNE_JOBS,
    INFERENCE_SERVICES,
    JOBS,
    PODS,
    Cluster,
)
from finetune_operator.io.progress import ProgressReader
from finetune_operator.kubernetes_types import Raw
from finetune_operator.reconcile.context import Context, ReconcileResult
from finetune_operator.reconcile.door import read_children, read_owners
from finetune_operator.reconcile.job.attempt_start import build_attempt
from finetune_operator.reconcile.job.attempts import find_attempt
from finetune_operator.reconcile.job.claims import named_claims
from finetune_operator.reconcile.job.confirmation import needs_current_children, needs_current_job
from finetune_operator.reconcile.job.continuation import awaited_job
from finetune_operator.reconcile.job.decide import decide
from finetune_operator.reconcile.job.findings import Following, JobEnd
from finetune_operator.reconcile.job.phase import is_terminal
from finetune_operator.reconcile.job.plan import ActionOutcome, Observed, Plan, Refusal
from finetune_operator.reconcile.job.report import report
from finetune_operator.reconcile.job.training_pod import parse_child_job, parse_training_pod
from finetune_operator.reconcile.malformed import describe, report_malformed, report_unreadable_child
from finetune_operator.reconcile.ownership import Ownership, ownership
from finetune_operator.reconcile.reporting import write_status
from finetune_operator.resources.labels import job_selector

logger = logging.getLogger(__name__)


async def reconcile_finetune_job(context: Context, namespace: str, name: str) -> ReconcileResult:
    """Bring one FinetuneJob a step further. Raises ClusterError if the API server cannot be reached or refuses a write."""
    raw = await context.reads.get(FINETUNE_JOBS, namespace, name)
    if raw is None:
        return ReconcileResult()
    try:
        job = FinetuneJob.model_validate(raw)
        seen = await observe(context.reads, context.progress, job)
        plan = decide(job, seen, datetime.now(UTC), context.settings)
        if context.cache is not None and (needs_current_job(plan) or needs_current_children(job, plan)):
            raw, job, plan = await _decide_live(context, job, seen, plan)
    except ValidationError as problem:
        await report_malformed(context, FINETUNE_JOBS, raw, problem)
        return ReconcileResult()
    except UnreadableObjectError as problem:
        return await report_unreadable_child(context, FINETUNE_JOBS, raw, problem)
    outcome = await make_children(context, job, plan)
    await _delete_children(context.cluster, job, plan)
    done = report(job, plan, outcome, datetime.now(UTC))
    is_written = await write_status(
        context, FINETUNE_JOBS, raw, FINETUNE_JOB_KIND, job.status, done.status, done.events
    )
    if plan.delete_self:
        logger.info("finished job has expired", extra={"job": f"{namespace}/{name}"})
        await context.cluster.delete(FINETUNE_JOBS, namespace, name, job.metadata.uid)
    # The next step may follow from the status alone; a pod that is followed reports itself.
    is_over = is_written and not (isinstance(plan.finding, Following) and not plan.finding.is_late)
    return ReconcileResult(
        acted=plan.makes_children and outcome.is_done, requeue_after=0.0 if is_over else done.requeue_after
    )


async def _decide_live(context: Context, job: FinetuneJob, seen: Observed, plan: Plan) -> tuple[Raw, FinetuneJob, Plan]:
    """Decide once more on what the API server says now. Raises ClusterError with `is_conflict` if the job is gone."""
    metadata = job.metadata
    raw = await context.cluster.get(FINETUNE_JOBS, metadata.namespace, metadata.name)
    if raw is None:
        # The event of its deletion is on the way.
        raise ClusterError("get", f"{FINETUNE_JOBS.plural} {metadata.namespace}/{metadata.name}", 409, "it was deleted")
    current = FinetuneJob.model_validate(raw)
    if needs_current_children(job, plan):
        seen = await observe(context.cluster, context.progress, current)
    elif current == job:
        return raw, job, plan
    return raw, current, decide(current, seen, datetime.now(UTC), context.settings)


async def observe(cluster: Cluster | Cache, progress: ProgressReader, job: FinetuneJob) -> Observed:
    """Read everything that a decision needs, from a cache or from the API server."""
    namespace, selector = job.metadata.namespace, job_selector(job.metadata.uid)
    # Pods after Jobs: a pod that appears in between belongs to a Job that was seen.
    children = read_children(parse_child_job, "Job", await cluster.list(JOBS, namespace, selector))
    pods = read_children(parse_training_pod, "Pod", await cluster.list(PODS, namespace, selector))
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


async def _read_service(cluster: Cluster | Cache, job: FinetuneJob) -> InferenceService | None:
    if job.spec.serve is None or job.status.adapter is None:
        return None
    raw = await cluster.get(INFERENCE_SERVICES, job.metadata.namespace, job.service_name)
    return None if raw is None else InferenceService.model_validate(raw)


async def _read_claims(cluster: Cluster | Cache, job: FinetuneJob, seen: Observed) -> dict[str, bool]:
    """Read whether the claims exist that the spec names, if an attempt may be about to start."""
    if is_terminal(job.status) or job.status.adapter is not None or job.spec.suspend or seen.has_live_trainer:
        return {}
    if find_attempt(job.status, seen.children, seen.pods).is_open:
        return {}
    names = {claim.name for claim in named_claims(job)}
    namespace = job.metadata.namespace
    return {name: await cluster.get(CLAIMS, namespace, name) is not None for name in sorted(names)}


async def _read_earlier(cluster: Cluster | Cache, job: FinetuneJob) -> FinetuneJobStatus | None:
    name = awaited_job(job)
    if name is None or is_terminal(job.status):
        return None
    raw = await cluster.get(FINETUNE_JOBS, job.metadata.namespace, name)
    return None if raw is None else read_children(_parse_status, FINETUNE_JOB_KIND, [raw])[0]


def _parse_status(raw: Raw) -> FinetuneJobStatus:
    return FinetuneJobStatus.model_validate(raw.get("status") or {})


async def _read_progress(reader: ProgressReader, job: FinetuneJob, seen: Observed) -> Progress | None:
    if is_terminal(job.status) or job.status.adapter is not None:
        return None
    attempt = find_attempt(job.status, seen.children, seen.pods)
    if attempt.pod is None or attempt.pod.is_finished or attempt.pod.started_at is None:
        return None
    return await reader.read(job.metadata.uid, attempt.number)


async def make_children(context: Context, job: FinetuneJob, plan: Plan) -> ActionOutcome:
    """Make the plan's children until one meets an obstacle: an object of its name that is not ours, or a refusal."""
    cluster = context.cluster
    try:
        for manifest in build_attempt(job, plan.start, context.settings) if plan.start is not None else ():
            if await cluster.create(manifest) is None and not await _is_ours(cluster, job, manifest):
                return ActionOutcome(conflict=f"{manifest['kind']} {manifest['metadata']['name']}")
            logger.info("created", extra=_fields(job, manifest))
        for manifest in plan.apply:
            await cluster.apply(manifest)
            logger.info("applied", extra=_fields(job, manifest))
        for manifest in plan.add:
            adapter = manifest["spec"]["adapters"][0]["name"]
            await cluster.apply(manifest, manager=f"{FIELD_MANAGER}/{adapter}")
            logger.info("added", extra={**_fields(job, manifest), "adapter": adapter})
    except StalledError as problem:
        return ActionOutcome(stalled=JobEnd(problem.reason, problem.message, is_invalid=True))
    except ClusterError as error:
        if not error.is_refusal:
            raise
        logger.warning("child was refused", extra={"error": str(error)})
        return ActionOutcome(refusal=Refusal(str(error), error.is_invalid))
    return ActionOutcome()


async def _is_ours(cluster: Cluster, job: FinetuneJob, manifest: Raw) -> bool:
    """Tell whether an object that exists already is the wanted child: an earlier reconcile made it and then died."""
    if not manifest["metadata"].get("ownerReferences"):
        return True
    metadata = manifest["metadata"]
    live = await cluster.get(BY_KIND[manifest["kind"]], metadata["namespace"], metadata["name"])
    return live is None or ownership(job, read_owners(manifest["kind"], live)) is Ownership.OWN


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
