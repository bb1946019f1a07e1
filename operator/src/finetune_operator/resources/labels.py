"""Labels and owner references of all children, written once."""

from finetune_api.contract import (
    API_VERSION,
    LABEL_ATTEMPT,
    LABEL_JOB_NAME,
    LABEL_JOB_UID,
    LABEL_MANAGED_BY,
    LABEL_NAME,
    LABEL_SERVICE_NAME,
    MANAGED_BY,
    SERVER_APP,
    TRAINER_APP,
)
from finetune_api.v1alpha1 import FinetuneJob, InferenceService
from finetune_operator.resources import Manifest

MANAGED_SELECTOR = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
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
