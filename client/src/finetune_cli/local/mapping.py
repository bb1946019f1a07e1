"""Paths of a pod as paths of this machine. Pure.

A pod finds its volumes at absolute paths such as /adapters. Mounting there would need root, so the paths are replaced where
they are written: in the pod's configuration, its environment and its arguments. Rows and other texts of users stay as they are.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from finetune_api.contract import CONFIG_DIRECTORY
from finetune_cli.local.folders import Folders
from finetune_operator.kubernetes_types import Raw

PATH_FIELDS: Final = frozenset({"path", "directory"})
"""Fields of a TrainingConfig, a ServingConfig and an AdapterList that hold a path inside the pod."""


def mounted_folders(pod: Raw, folders: Folders) -> dict[str, Path]:
    """Return the folder of this machine for each mount path of a pod's containers.

    Claims, ConfigMaps and the scratch volume have one folder for all pods, so that the next attempt finds the same paths.
    """
    name, spec = pod["metadata"]["name"], pod["spec"]
    volumes = {volume["name"]: _volume_folder(volume, name, folders) for volume in spec["volumes"]}
    containers = [*spec.get("initContainers", []), *spec["containers"]]
    return {mount["mountPath"]: volumes[mount["name"]] for c in containers for mount in c["volumeMounts"]}


def _volume_folder(volume: Raw, pod_name: str, folders: Folders) -> Path:
    if claim := volume.get("persistentVolumeClaim"):
        return folders.claim(claim["claimName"])
    if config_map := volume.get("configMap"):
        return folders.config_map(config_map["name"])
    if "emptyDir" in volume:
        return folders.scratch
    return folders.pod(pod_name) / Path(CONFIG_DIRECTORY).name


def local_path(text: str, mounts: Mapping[str, Path]) -> str:
    """Return `text` with its mount path replaced if it is one or lies below one; the deepest mount counts."""
    for mount in sorted(mounts, key=len, reverse=True):
        if text == mount:
            return str(mounts[mount])
        if text.startswith(f"{mount}/"):
            return str(mounts[mount] / text.removeprefix(f"{mount}/"))
    return text


def local_config(text: str, mounts: Mapping[str, Path]) -> str:
    """Return a configuration (JSON) with its paths replaced; nothing but the fields PATH_FIELDS is read as a path."""
    return json.dumps(_replaced(json.loads(text), mounts), ensure_ascii=False)


def _replaced(value: Any, mounts: Mapping[str, Path]) -> Any:
    if isinstance(value, list):
        return [_replaced(item, mounts) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: local_path(item, mounts) if key in PATH_FIELDS and isinstance(item, str) else _replaced(item, mounts)
        for key, item in value.items()
    }
