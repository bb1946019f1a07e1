"""Persistent volumes: directories of this machine, handed to claims of the StorageClass `standard`.

There is no provisioner. `VOLUMES` directories wait for claims; when a claim is deleted its volume is cleaned and
offered again by `recycle_volumes`, which `up` and the command `volumes` call. Base models are one directory that any
namespace may claim under the name `models`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lab.kubernetes.api import ApiClient, Manifest, object_path
from lab.kubernetes.layout import NODE_NAME, Layout

VOLUMES = 24
"""Enough for several namespaces of tests at once."""

STORAGE_CLASS = "standard"
MODELS_CLAIM = "models"

_PURPOSE_LABEL = "local-cluster/purpose"
_CAPACITY = "10Gi"
_ACCESS_MODES = ["ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany"]
"""One machine can serve them all: every pod sees the same directory."""


def create_storage_class(api: ApiClient) -> None:
    api.apply(
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": STORAGE_CLASS,
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer",
            "reclaimPolicy": "Retain",
        }
    )


def recycle_volumes(api: ApiClient, layout: Layout) -> int:
    """Offer every volume that no claim holds, with an empty directory; returns how many had been used before.

    A claim is gone only after the last pod that used it, so nobody still writes to a Released volume.
    """
    existing = {volume["metadata"]["name"]: volume for volume in api.list("/api/v1/persistentvolumes")}
    recycled = 0
    for number in range(VOLUMES):
        name = f"local-{number:02}"
        directory = layout.volumes / name
        volume = existing.get(name)
        if volume is not None and is_released(volume):
            api.delete(object_path(volume))
            _empty(directory)
            recycled += 1
        if volume is None or is_released(volume):
            directory.mkdir(parents=True, exist_ok=True)
            api.apply(_local_volume(name, directory, "claims", STORAGE_CLASS))
    for volume in existing.values():
        if volume["metadata"].get("labels", {}).get(_PURPOSE_LABEL) == MODELS_CLAIM and is_released(volume):
            api.delete(object_path(volume))
            recycled += 1
    return recycled


def claim_models(api: ApiClient, layout: Layout, namespace: str) -> None:
    """Create the namespace if need be and in it the claim `models`, bound to the directory of base models."""
    layout.models.mkdir(parents=True, exist_ok=True)
    name = f"{MODELS_CLAIM}-{namespace}"
    # Server-side apply cannot take a Released volume back: its claimRef names the uid of the deleted claim.
    for volume in api.list("/api/v1/persistentvolumes"):
        if volume["metadata"]["name"] == name and is_released(volume):
            api.delete(object_path(volume))
    volume = _local_volume(name, layout.models, MODELS_CLAIM, storage_class="")
    volume["spec"]["claimRef"] = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "namespace": namespace,
        "name": MODELS_CLAIM,
    }
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    api.apply(volume)
    api.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": MODELS_CLAIM, "namespace": namespace},
            "spec": {
                "accessModes": ["ReadOnlyMany"],
                "storageClassName": "",
                "volumeName": name,
                "resources": {"requests": {"storage": _CAPACITY}},
            },
        }
    )


def is_released(volume: Manifest) -> bool:
    """Return whether the claim that held the volume is gone; Kubernetes itself never offers such a volume again."""
    return volume.get("status", {}).get("phase") in ("Released", "Failed")


def _local_volume(name: str, directory: Path, purpose: str, storage_class: str) -> Manifest:
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE_NAME]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "labels": {_PURPOSE_LABEL: purpose}},
        "spec": {
            "capacity": {"storage": _CAPACITY},
            "accessModes": _ACCESS_MODES,
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": storage_class,
            "local": {"path": str(directory)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        },
    }


def _empty(directory: Path) -> None:
    """Remove what is in the directory and what its last user did to its owner and mode."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
