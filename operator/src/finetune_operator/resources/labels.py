"""Labels and owner references of all children."""

from typing import Final

from finetune_api.contract import API_VERSION, GROUP
from finetune_api.v1alpha1 import FinetuneJob, InferenceService
from finetune_operator.resources import Manifest

LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
"""Label with the value `MANAGED_BY` on every child; the operator's watches select on it."""
MANAGED_BY: Final = "finetune-operator"
LABEL_NAME: Final = "app.kubernetes.io/name"
"""Label with the value finetune-trainer or finetune-inference; network policies of the chart select on it."""
TRAINER_APP: Final = "finetune-trainer"
SERVER_APP: Final = "finetune-inference"
LABEL_JOB_NAME: Final = f"{GROUP}/job-name"
"""Name of the FinetuneJob that a child belongs to."""
LABEL_JOB_UID: Final = f"{GROUP}/job-uid"
"""Uid of the FinetuneJob. Children are found by uid, so that a new job of the same name never adopts old children."""
LABEL_ATTEMPT: Final = f"{GROUP}/attempt"
"""Attempt number of a training Job and its pod, from 1."""
LABEL_SERVICE_NAME: Final = f"{GROUP}/service-name"
"""Name of the InferenceService that a child belongs to."""
LABEL_QUEUE_NAME: Final = "kueue.x-k8s.io/queue-name"
"""Kueue's label: a Job that carries it is admitted by Kueue."""
MANAGED_SELECTOR: Final = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
"""Label selector of all children that the operator creates."""


def training_labels(job: FinetuneJob, attempt: int) -> dict[str, str]:
    """Return the labels of an attempt's Job and pod."""
    return {
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_NAME: TRAINER_APP,
        LABEL_JOB_NAME: job.metadata.name,
        LABEL_JOB_UID: job.metadata.uid,
        LABEL_ATTEMPT: str(attempt),
    }


def job_selector(uid: str) -> str:
    """Return the selector for the children of one FinetuneJob, by uid."""
    return f"{LABEL_JOB_UID}={uid}"


def serving_selector(service_name: str) -> dict[str, str]:
    """Return the matchLabels of an InferenceService's pods: few, because a Deployment's selector can never change."""
    return {LABEL_NAME: SERVER_APP, LABEL_SERVICE_NAME: service_name}


def serving_labels(service_name: str) -> dict[str, str]:
    """Return the labels of an InferenceService's children."""
    return {LABEL_MANAGED_BY: MANAGED_BY, **serving_selector(service_name)}


def owner_reference(owner: FinetuneJob | InferenceService) -> Manifest:
    """Build a controller reference, by which the garbage collector removes the child with its owner.

    It has no blockOwnerDeletion, which would need the right to update the owner's finalizers.
    """
    return {
        "apiVersion": API_VERSION,
        "kind": owner.kind,
        "name": owner.metadata.name,
        "uid": owner.metadata.uid,
        "controller": True,
    }
