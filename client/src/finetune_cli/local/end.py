"""End of a run: the job is terminal, and the server of this run is verified. Pure except for the objects that it reads."""

from dataclasses import dataclass

from finetune_api.conditions import Phase
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import FinetuneJob, InferenceService
from finetune_cli.local.store import LocalCluster
from finetune_operator.io.cluster import FINETUNE_JOBS, INFERENCE_SERVICES, PODS


@dataclass(frozen=True)
class End:
    """How a job ended."""

    is_success: bool
    reason: str
    message: str


def find_end(cluster: LocalCluster, namespace: str, name: str) -> End | None:
    """Return how the job ended; None while it goes on, or while the server of this run is not proven yet."""
    raw = cluster.read(FINETUNE_JOBS, namespace, name)
    if raw is None:
        return End(is_success=False, reason=Reason.CANCELLED_BY_USER, message="The job was deleted.")
    job = FinetuneJob.model_validate(raw)
    status = job.status
    if status.phase in (Phase.FAILED, Phase.CANCELLED):
        return End(is_success=False, reason=status.reason or "", message=status.message or "")
    if status.phase != Phase.SUCCEEDED:
        return None
    service = cluster.read(INFERENCE_SERVICES, namespace, job.service_name)
    if job.spec.serve is None or status.adapter is None:
        return End(is_success=True, reason=status.reason or "", message=status.message or "")
    if service is None:
        return End(
            is_success=False, reason=Reason.CHILD_CONFLICT, message=f"InferenceService {job.service_name} is gone."
        )
    adapters = InferenceService.model_validate(service).status.adapters
    verdict = next((a for a in adapters if (a.name, a.digest) == (job.adapter_name, status.adapter.digest)), None)
    pods = {pod["metadata"]["name"] for pod in cluster.all(PODS)}
    for replica in verdict.replicas if verdict is not None else ():
        # A verdict about a pod of an earlier run proves nothing about the server that runs now.
        if verdict is not None and replica.pod in pods and verdict.served is not None:
            is_good = verdict.verified == "True" or verdict.reason == Reason.NO_FINGERPRINT
            if is_good or verdict.verified == "False":
                return End(is_success=is_good, reason=verdict.reason, message=verdict.message)
    return None
