"""The claim that receives adapters where a namespace has none."""

from finetune_api.contract import DEFAULT_ADAPTERS_CLAIM
from finetune_operator.resources import Manifest
from finetune_operator.resources.labels import LABEL_MANAGED_BY, MANAGED_BY
from finetune_operator.settings import Settings


def build_adapters_claim(namespace: str, settings: Settings) -> Manifest:
    """The default output claim. Nobody owns it: adapters outlive the jobs that made them."""
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
