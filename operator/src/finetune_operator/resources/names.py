"""Names of all children in one place. They are deterministic, so creating a child twice is a conflict, not a second child."""

import hashlib
from typing import Final

MAX_NAME: Final = 63
"""Jobs and Services put their name into labels and host names, which end at 63 characters."""
UID_CHARACTERS: Final = 8
"""Of the owner's uid: enough to tell a new job from a deleted one of the same name."""


def training_job_name(job_name: str, uid: str, attempt: int) -> str:
    """Name of the Kubernetes Job of one attempt."""
    return bounded(job_name, f"-{uid[:UID_CHARACTERS]}-a{attempt}")


def deployment_name(service_name: str) -> str:
    """Name of an InferenceService's Deployment and PodDisruptionBudget. Its Service has the bare name: it is in the URL."""
    return bounded(service_name, "-server")


def adapter_list_name(service_name: str) -> str:
    """Name of the ConfigMap with an InferenceService's adapters."""
    return bounded(service_name, "-adapters")


def bounded(stem: str, suffix: str) -> str:
    """`stem` + `suffix`, shortened in the stem (with a hash, so that different stems stay different)."""
    if len(stem) + len(suffix) <= MAX_NAME:
        return stem + suffix
    digest = hashlib.sha256(stem.encode()).hexdigest()[:6]
    keep = MAX_NAME - len(suffix) - len(digest) - 1
    return f"{stem[:keep].rstrip('-.')}-{digest}{suffix}"
