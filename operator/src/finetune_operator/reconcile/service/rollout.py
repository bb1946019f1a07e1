"""The progress of a Deployment's rollout, and the obstacle that it meets. Pure."""

from dataclasses import dataclass

from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import InferenceService
from finetune_operator.reconcile.pod_reasons import CONFIG_REASONS, IMAGE_REASONS, MISSING_REFERENCE, redact
from finetune_operator.reconcile.service.server_pod import ServerPod
from finetune_operator.resources import Manifest
from finetune_operator.resources.serving import is_autoscaled

MAX_DETAIL = 600
"""Characters of a crashed server's last log lines: the end of a traceback names the error."""


@dataclass(frozen=True)
class Rollout:
    """State of the Deployment as a whole."""

    desired: int
    replicas: int
    ready_replicas: int
    is_complete: bool
    """Every wanted pod is of the current template and ready, and no other is left."""
    is_answering: bool
    """At least one pod of the current template is ready, and no pod of an older one is left."""
    reason: Reason
    message: str


def observe_rollout(service: InferenceService, deployment: Manifest, pods: tuple[ServerPod, ...]) -> Rollout:
    """Read the Deployment's status; `pods` explain why it waits."""
    status, wanted = deployment.get("status") or {}, service.spec.replicas
    if is_autoscaled(service):
        wanted = deployment["spec"].get("replicas", 1)
    is_current = status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
    total, updated = status.get("replicas", 0), status.get("updatedReplicas", 0)
    ready = status.get("readyReplicas", 0)
    reason, message = _explain(service, pods)
    if wanted == 0:
        reason, message = Reason.ROLLING_OUT, "spec.replicas is 0."
    return Rollout(
        desired=wanted,
        replicas=total,
        ready_replicas=ready,
        is_complete=is_current and total == updated == ready == wanted,
        is_answering=is_current and wanted > 0 and ready > 0 and total == updated,
        reason=reason,
        message=message,
    )


def _explain(service: InferenceService, pods: tuple[ServerPod, ...]) -> tuple[Reason, str]:
    for pod in pods:
        if pod.is_answering or pod.is_deleting:
            continue
        if pod.unschedulable is not None:
            return Reason.UNSCHEDULABLE, f"Pod {pod.name}: {pod.unschedulable[1]}"
        waiting, message = pod.waiting or ("", "")
        if waiting in IMAGE_REASONS:
            # Without the kubelet's message, which alternates.
            return Reason.IMAGE_PULL_FAILED, f"Pod {pod.name} cannot pull its image."
        if waiting in CONFIG_REASONS:
            is_secret = waiting == MISSING_REFERENCE and service.spec.model.secret_ref is not None
            return Reason.MODEL_ACCESS_DENIED if is_secret else Reason.ROLLING_OUT, f"Pod {pod.name}: {message}"
        ended = pod.end or pod.last_end
        if ended is not None:
            words = redact(ended.message.strip())[-MAX_DETAIL:]
            cause = Reason.HOST_OUT_OF_MEMORY if ended.reason == "OOMKilled" else Reason.ROLLING_OUT
            return cause, f"The server in pod {pod.name} exited with code {ended.exit_code}. {words}".strip()
    return Reason.ROLLING_OUT, "The endpoint is being deployed."
