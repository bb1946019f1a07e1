"""Default output claim of a namespace."""

from finetune_api.contract import DEFAULT_ADAPTERS_CLAIM
from finetune_operator.resources import Manifest
from finetune_operator.resources.labels import LABEL_MANAGED_BY, MANAGED_BY
from finetune_operator.settings import Settings


def build_adapters_claim(namespace: str, settings: Settings) -> Manifest:
    """Build the default output claim. It has no owner, because adapters outlive their jobs."""
    spec: Manifest = {
        "accessModes": [settings.adapters_access_mode],
        "resources": {"requests": {"storage": settings.adapters_size}},
    }
    if settings.adapters_storage_class is not None:
        spec["storageClassName"] = settings.adapters_storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": DEFAULT_ADAPTERS_CLAIM,
            "namespace": namespace,
            "labels": {LABEL_MANAGED_BY: MANAGED_BY},
        },
        "spec": spec,
    }
