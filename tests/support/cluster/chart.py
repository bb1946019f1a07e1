"""The chart, as helm renders and installs it."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lab.kubernetes.binaries import binary_path

REPOSITORY = Path(__file__).resolve().parents[3]
CHART = REPOSITORY / "helm" / "finetune-operator"
RELEASE = "finetune"
NAMESPACE = "finetune-system"

Raw = dict[str, Any]

MISSING_HELM = None if binary_path("helm").exists() else "helm is not built; run `make binaries`"
"""Why tests of the chart cannot run now."""

VALUES: dict[str, Raw] = {
    "defaults": {},
    "namespaced": {"watchNamespaces": ["team-a", "team-b"], "monitoring": {"podMonitor": {"enabled": True}}},
    "external redis": {"redis": {"enabled": False, "external": {"urlSecretRef": {"name": "my-redis", "key": "url"}}}},
    "nothing optional": {
        "crds": {"enabled": False},
        "gateway": {"enabled": False},
        "redis": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "admissionPolicy": {"enabled": False},
        "rbac": {"aggregateToDefaultRoles": False},
    },
    "everything set": {
        "fullnameOverride": "tuning",
        "imagePullSecrets": [{"name": "registry"}],
        "image": {"repository": "r.example/operator", "digest": f"sha256:{'0' * 64}", "pullPolicy": "Always"},
        "trainer": {
            "image": {"repository": "r.example/trainer", "digest": f"sha256:{'1' * 64}"},
            "gpuMemory": "80Gi",
        },
        "inference": {"image": {"repository": "r.example/inference", "tag": "1.2.3"}},
        "operator": {
            "logLevel": "DEBUG",
            "env": {"FINETUNE_OPERATOR_RESYNC_SECONDS": "30"},
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"key": "control", "operator": "Exists"}],
            "priorityClassName": "system-cluster-critical",
        },
        "workloads": {
            "imagePullSecrets": ["registry"],
            "serviceAccount": "tuner",
            "nodeSelector": {"gpu": "yes"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "runtimeClassName": "nvidia",
            "allowPrivateSources": True,
            "scratchSize": "50Gi",
            "adapters": {"size": "1Ti", "storageClass": "fast", "accessMode": "ReadWriteMany"},
        },
        "gateway": {
            "replicas": 2,
            "defaultNamespace": "ml",
            "env": {"FINETUNE_GATEWAY_REQUEST_SECONDS": "5"},
            "service": {"type": "NodePort", "port": 8080, "annotations": {"a": "b"}},
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"key": "web", "operator": "Exists"}],
        },
        "redis": {"nodeSelector": {"kubernetes.io/os": "linux"}, "maxMemory": "64mb"},
        "broker": {"namespaces": ["team-c"]},
        "monitoring": {
            "dashboard": {"enabled": True, "labels": {"grafana_dashboard": "yes"}},
            "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "interval": "15s"},
        },
        "admissionPolicy": {"extraImagePrefixes": ["mirror.example/"]},
    },
}
"""Sets of values that between them reach every line of the templates."""


def helm(*arguments: str, kubeconfig: Path | None = None, values: Raw | None = None, check: bool = True) -> str:
    """Run helm with these values on its standard input; returns what it printed, raises AssertionError if it fails."""
    command = [str(binary_path("helm")), *arguments, *(["--values=-"] if values is not None else [])]
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig or "/dev/null")}
    result = subprocess.run(command, input=json.dumps(values), env=environment, capture_output=True, text=True)
    assert not check or result.returncode == 0, f"{' '.join(command)}: {result.stderr}"
    return result.stdout + result.stderr


def render(values: Raw, namespace: str = NAMESPACE) -> list[Raw]:
    """All manifests for these values, with default namespaces filled in as helm would."""
    text = helm("template", RELEASE, str(CHART), f"--namespace={namespace}", values=values)
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def of_kind(manifests: list[Raw], kind: str) -> list[Raw]:
    return [m for m in manifests if m["kind"] == kind]


def named(manifests: list[Raw], kind: str, suffix: str) -> Raw:
    """The one manifest of a kind whose name ends like this."""
    (found,) = (m for m in of_kind(manifests, kind) if m["metadata"]["name"].endswith(suffix))
    return found


def containers(manifests: list[Raw]) -> Iterator[tuple[str, Raw]]:
    """Every container with the name of its Deployment."""
    for deployment in of_kind(manifests, "Deployment"):
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            yield deployment["metadata"]["name"], container


def environment_of(container: Raw) -> dict[str, str | None]:
    """Variables by name; None for those that come from a Secret."""
    return {entry["name"]: entry.get("value") for entry in container.get("env", [])}
