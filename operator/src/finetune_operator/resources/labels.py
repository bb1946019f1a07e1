"""Labels and owner references of all children, written once."""

from typing import Final

from finetune_api.contract import API_VERSION, GROUP
from finetune_api.v1alpha1 import FinetuneJob, InferenceService
from finetune_operator.resources import Manifest

LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
"""Set to `MANAGED_BY` on every child; the operator's watches select on it."""
MANAGED_BY: Final = "finetune-operator"
LABEL_NAME: Final = "app.kubernetes.io/name"
"""`finetune-trainer` or `finetune-inference` on children; network policies of the chart select on it."""
TRAINER_APP: Final = "finetune-trainer"
SERVER_APP: Final = "finetune-inference"
LABEL_JOB_NAME: Final = f"{GROUP}/job-name"
"""Name of the FinetuneJob that a child belongs to."""
LABEL_JOB_UID: Final = f"{GROUP}/job-uid"
"""Uid of the FinetuneJob: children are found by uid, so that a new job of an old name never adopts old children."""
LABEL_ATTEMPT: Final = f"{GROUP}/attempt"
"""Attempt number of a training Job and its pod, from 1."""
LABEL_SERVICE_NAME: Final = f"{GROUP}/service-name"
"""Name of the InferenceService that a child belongs to."""
LABEL_QUEUE_NAME: Final = "kueue.x-k8s.io/queue-name"
"""Kueue's label: a Job that carries it is admitted by Kueue."""
MANAGED_SELECTOR: Final = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
"""Label selector of everything that the operator made."""


def training_labels(job: FinetuneJob, attempt: int) -> dict[str, str]:
    """Labels of an attempt's Job and pod."""
    return {
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_NAME: TRAINER_APP,
        LABEL_JOB_NAME: job.metadata.name,
        LABEL_JOB_UID: job.metadata.uid,
        LABEL_ATTEMPT: str(attempt),
    }


def job_selector(uid: str) -> str:
    """Selects the children of one FinetuneJob, never those of a namesake."""
    return f"{LABEL_JOB_UID}={uid}"


def serving_selector(service_name: str) -> dict[str, str]:
    """The matchLabels of an InferenceService's pods. A Deployment's selector can never change, so there is little in it."""
    return {LABEL_NAME: SERVER_APP, LABEL_SERVICE_NAME: service_name}


def serving_labels(service_name: str) -> dict[str, str]:
    """Labels of everything that belongs to an InferenceService."""
    return {LABEL_MANAGED_BY: MANAGED_BY, **serving_selector(service_name)}


def owner_reference(owner: FinetuneJob | InferenceService) -> Manifest:
    """Controller reference: the garbage collector removes the child with its owner, so no finalizer is needed.

    Without blockOwnerDeletion, which would need the right to update the owner's finalizers.
    """
    return {
        "apiVersion": API_VERSION,
        "kind": owner.kind,
        "name": owner.metadata.name,
        "uid": owner.metadata.uid,
        "controller": True,
    }
