"""Common parts of all children of an InferenceService: labels, owner, and the hash of the manifest."""

import hashlib
import json
from typing import Any

from finetune_api.v1alpha1 import InferenceService
from finetune_operator.resources import Manifest
from finetune_operator.resources.annotations import ANNOTATION_DESIRED_HASH
from finetune_operator.resources.labels import owner_reference, serving_labels


def build_child(service: InferenceService, api_version: str, kind: str, name: str, **content: Any) -> Manifest:
    """Build a manifest with the service's labels and owner reference; `content` is `spec` or `data`."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": service.metadata.namespace,
            "labels": serving_labels(service.metadata.name),
            "ownerReferences": [owner_reference(service)],
        },
        **content,
    }


def with_hash(manifest: Manifest) -> Manifest:
    """Return the manifest with its own hash as an annotation."""
    annotations = {**manifest["metadata"].get("annotations", {}), ANNOTATION_DESIRED_HASH: content_hash(manifest)}
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}


def content_hash(content: Any) -> str:
    """Return a short hash of JSON-like data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
