"""Common parts of training and server pods: volumes for source URIs, configuration mount, security, resources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from finetune_api.contract import (
    ALLOW_PRIVATE_SOURCES_ENV,
    CONFIG_DIRECTORY,
    CONFIG_PATH,
    DATASET_TOKEN_ENV,
    DOWNLOADS_ENV,
)
from finetune_api.sources import MOUNTED, parse_source
from finetune_api.v1alpha1 import ModelReference, Resources, Tracking
from finetune_api.v1alpha1.common import LocalSecretReference
from finetune_operator.resources import Manifest
from finetune_operator.resources.annotations import ANNOTATION_CONFIG
from finetune_operator.resources.environment import MLFLOW_LOGIN_ENV, MLFLOW_TOKEN_ENV, OBJECT_STORE_ENV, WANDB_KEY_ENV
from finetune_operator.resources.mounts import (
    DATASETS_MOUNT,
    EVALUATION_MOUNT,
    MODELS_MOUNT,
    SCRATCH_MOUNT,
)
from finetune_operator.settings import Settings

USER_ID: Final = 10001
"""Uid, gid and fsGroup of all containers; the images create this user."""
GPU_RESOURCE: Final = "nvidia.com/gpu"


@dataclass
class Volumes:
    """Volumes and mounts of a pod, collected while it is built. A claim that is used twice is one volume."""

    volumes: list[Manifest] = field(default_factory=list)
    mounts: list[Manifest] = field(default_factory=list)
    _by_claim: dict[str, str] = field(default_factory=dict)

    def claim(self, name: str, claim: str, path: str, *, read_only: bool) -> None:
        """Mount a claim. Only the mount is read-only, because another mount may write to the volume."""
        if claim not in self._by_claim:
            self._by_claim[claim] = name
            self.volumes.append({"name": name, "persistentVolumeClaim": {"claimName": claim}})
        self.mounts.append({"name": self._by_claim[claim], "mountPath": path, "readOnly": read_only})

    def config_map(self, name: str, config_map: str, key: str, path: str) -> None:
        """Mount one key of a ConfigMap, optionally, so that the pod starts and reports a missing key itself."""
        items = [{"key": key, "path": key}]
        self.volumes.append({"name": name, "configMap": {"name": config_map, "items": items, "optional": True}})
        self.mounts.append({"name": name, "mountPath": path, "readOnly": True})

    def configuration(self) -> None:
        """Mount the configuration, an annotation of the pod, as a file."""
        file = CONFIG_PATH.removeprefix(f"{CONFIG_DIRECTORY}/")
        reference = {"fieldPath": f"metadata.annotations['{ANNOTATION_CONFIG}']"}
        self.volumes.append({"name": "config", "downwardAPI": {"items": [{"path": file, "fieldRef": reference}]}})
        self.mounts.append({"name": "config", "mountPath": CONFIG_DIRECTORY, "readOnly": True})

    def scratch(self, size: str) -> None:
        """Mount the scratch volume, the only writable one besides the adapters."""
        self.volumes.append({"name": "scratch", "emptyDir": {"sizeLimit": size}})
        self.mounts.append({"name": "scratch", "mountPath": SCRATCH_MOUNT, "readOnly": False})

    def model(self, model: ModelReference) -> None:
        """Mount the claim of a base model that is on a claim."""
        source = parse_source(model.source)
        if source.scheme == "pvc":
            self.claim("models", source.name, MODELS_MOUNT, read_only=True)

    def rows(self, name: str, uri: str | None, path: str) -> None:
        """Mount the claim or ConfigMap of a dataset. Inline rows (None) are in the configuration, others are downloaded."""
        if uri is None:
            return
        source = parse_source(uri)
        if source.scheme == "configmap":
            self.config_map(name, source.name, source.path, path)
        elif source.scheme == "pvc":
            self.claim(name, source.name, path, read_only=True)


def model_path(model: ModelReference) -> str:
    """Return the base model as a pod sees it: a path, or ORG/NAME of the hub."""
    source = parse_source(model.source)
    return f"{MODELS_MOUNT}/{source.path}" if source.scheme == "pvc" else f"{source.name}/{source.path}"


def source_mount(index: int) -> str:
    """Return the mount point of one of several sources."""
    return f"{DATASETS_MOUNT}/{index}"


def rows_path(uri: str, mount: str) -> str:
    """Return the rows of a dataset as a pod sees them: a path or a URI; `mount` is below DATASETS_MOUNT or EVALUATION_MOUNT."""
    if not mount.startswith((DATASETS_MOUNT, EVALUATION_MOUNT)):
        raise ValueError(f"{mount} is not a mount point of rows")
    source = parse_source(uri)
    return f"{mount}/{source.path}" if source.scheme in MOUNTED else uri


def common_env(model: ModelReference, *, other_sources: Sequence[str] = ()) -> list[Manifest]:
    """Return the environment of every container: caches on the scratch volume, and hub access only if a source needs it."""
    env: list[Manifest] = [
        {"name": "HOME", "value": SCRATCH_MOUNT},
        {"name": "TMPDIR", "value": SCRATCH_MOUNT},
        {"name": "HF_HOME", "value": f"{SCRATCH_MOUNT}/huggingface"},
    ]
    if all(parse_source(uri).scheme != "hf" for uri in (model.source, *other_sources)):
        return [*env, {"name": "HF_HUB_OFFLINE", "value": "1"}]
    if model.secret_ref is not None:
        reference = {"name": model.secret_ref.name, "key": model.secret_ref.key}
        env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}})
    return env


def dataset_env(
    sources: Sequence[str], secret: LocalSecretReference | None, settings: Settings, *, tracked: bool = False
) -> list[Manifest]:
    """Return the environment for downloading rows: credentials by reference, and limits on addresses.

    The same limits apply to experiment trackers, if the job is `tracked`.
    """
    schemes = {parse_source(uri).scheme for uri in sources} - set(MOUNTED)
    env: list[Manifest] = [{"name": DOWNLOADS_ENV, "value": f"{SCRATCH_MOUNT}/downloads"}] if schemes else []
    if (schemes or tracked) and settings.allow_private_sources:
        env.append({"name": ALLOW_PRIVATE_SOURCES_ENV, "value": "true"})
    if secret is None:
        return env
    # Optional: no source needs all of them, and a refused download has a message, unlike a pod that waits for a Secret.
    keys = {DATASET_TOKEN_ENV: secret.key} if schemes & {"hf", "https"} else {}
    if "s3" in schemes:
        keys |= {name: name for name in OBJECT_STORE_ENV}
    for name, key in keys.items():
        reference: Manifest = {"name": secret.name, "key": key, "optional": True}
        env.append({"name": name, "valueFrom": {"secretKeyRef": reference}})
    return env


def tracking_env(tracking: Tracking | None) -> list[Manifest]:
    """Return the environment for experiment trackers: credentials by reference, under the libraries' own names."""
    references: dict[str, tuple[str, str]] = {}
    if tracking and tracking.mlflow and (secret := tracking.mlflow.secret_ref):
        references[MLFLOW_TOKEN_ENV] = (secret.name, secret.key)
        references |= {name: (secret.name, name) for name in MLFLOW_LOGIN_ENV}
    if tracking and tracking.wandb and (secret := tracking.wandb.secret_ref):
        references[WANDB_KEY_ENV] = (secret.name, secret.key)
    # Optional: a tracker without credentials loses metrics; a pod that waits for a Secret would never train.
    return [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret_name, "key": key, "optional": True}}}
        for name, (secret_name, key) in references.items()
    ]


def container_resources(resources: Resources) -> Manifest:
    """Return requests and limits. There is no CPU limit, so that a pod can use idle cores."""
    memory = str(resources.memory)
    requests = {"cpu": str(resources.cpu), "memory": memory}
    limits = {"memory": memory}
    if resources.gpu:
        # Kubernetes requires equal request and limit for an extended resource.
        requests[GPU_RESOURCE] = limits[GPU_RESOURCE] = str(resources.gpu)
    return {"requests": requests, "limits": limits}


CONTAINER_SECURITY: Final[Mapping[str, Any]] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
"""Security context of a container: Pod Security `restricted`, and a read-only root file system."""

POD_SECURITY: Final[Mapping[str, Any]] = {
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "fsGroup": USER_ID,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""Security context of a pod: Pod Security `restricted`. OnRootMismatch avoids a recursive chown, which takes minutes for a model."""


def pod_spec(
    settings: Settings,
    container: Manifest,
    volumes: Volumes,
    *,
    grace_seconds: int,
    tolerations: list[Manifest],
    before: Manifest | None = None,
) -> Manifest:
    """Build a pod spec with one container and one that runs `before` it. `tolerations` precede those of the settings."""
    spec: Manifest = {
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_seconds,
        "securityContext": dict(POD_SECURITY),
        "containers": [container],
        "volumes": volumes.volumes,
    }
    if before is not None:
        spec["initContainers"] = [before]
    if settings.node_selector:
        spec["nodeSelector"] = dict(settings.node_selector)
    if all_tolerations := [*tolerations, *settings.tolerations]:
        spec["tolerations"] = all_tolerations
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    if settings.runtime_class_name:
        spec["runtimeClassName"] = settings.runtime_class_name
    return spec
