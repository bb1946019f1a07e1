"""Names of all children. They are deterministic, so that creating a child twice is a conflict, not a second child."""

import hashlib
from typing import Final

MAX_NAME: Final = 63
"""Longest name in characters, because names of Jobs and Services become labels and host names."""
UID_CHARACTERS: Final = 8
"""Characters of the owner's uid in a name: enough to tell a new job from a deleted one of the same name."""


def training_job_name(job_name: str, uid: str, attempt: int) -> str:
    """Return the name of an attempt's Kubernetes Job."""
    return bounded(job_name, f"-{uid[:UID_CHARACTERS]}-a{attempt}")


def deployment_name(service_name: str) -> str:
    """Return the name of an InferenceService's Deployment and PodDisruptionBudget. Its Service has the bare name, for the URL."""
    return bounded(service_name, "-server")


def adapter_list_name(service_name: str) -> str:
    """Return the name of the ConfigMap with an InferenceService's adapters."""
    return bounded(service_name, "-adapters")


def bounded(stem: str, suffix: str) -> str:
    """Return `stem` + `suffix`; a stem that is too long is shortened and gets a hash, so that names stay unique."""
    if len(stem) + len(suffix) <= MAX_NAME:
        return stem + suffix
    digest = hashlib.sha256(stem.encode()).hexdigest()[:6]
    keep = MAX_NAME - len(suffix) - len(digest) - 1
    return f"{stem[:keep].rstrip('-.')}-{digest}{suffix}"
