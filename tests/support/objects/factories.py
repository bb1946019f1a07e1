"""Test objects that default everything but the point of the test."""

from typing import Any

Raw = dict[str, Any]


def a_finetune_job(name: str = "tone", namespace: str = "ml", **spec: Any) -> Raw:
    """Manifest of a valid FinetuneJob; keyword arguments replace whole fields of spec, None removes one."""
    fields: Raw = {
        "model": {"source": "pvc://models/tiny"},
        "dataset": {"inline": '{"prompt": "a", "completion": "b"}'},
        **spec,
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FinetuneJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {key: value for key, value in fields.items() if value is not None},
    }


def an_inference_service(name: str = "tone", namespace: str = "ml", **spec: Any) -> Raw:
    """Manifest of a valid InferenceService without adapters."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"model": {"source": "pvc://models/tiny"}, **spec},
    }


def a_claim(name: str, namespace: str) -> Raw:
    """Manifest of a PersistentVolumeClaim."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
