"""Children of an InferenceService: Deployment, Service, PodDisruptionBudget, and the ServingConfig of the pods."""

import hashlib
import json
from typing import Any, Final

from finetune_api.constants import (
    ADAPTERS_MOUNT,
    ANNOTATION_CONFIG,
    ANNOTATION_DESIRED_HASH,
    MAX_CONFIG_BYTES,
    SERVER_PORT,
)
from finetune_api.reasons import Reason
from finetune_api.serving import ServedAdapter, ServedModel, ServingConfig
from finetune_api.sources import parse_source
from finetune_api.v1alpha1 import AdapterReference, InferenceService
from finetune_operator.errors import StalledError
from finetune_operator.resources import Manifest
from finetune_operator.resources.labels import owner_reference, serving_labels, serving_selector
from finetune_operator.resources.names import deployment_name
from finetune_operator.resources.pods import (
    CONTAINER_SECURITY,
    Volumes,
    common_env,
    container_resources,
    model_path,
    pod_spec,
)
from finetune_operator.settings import Settings

SERVER_CONTAINER: Final = "server"
GRACE_SECONDS: Final = 30
"""Time for running answers after SIGTERM."""
STARTUP_PERIOD_SECONDS: Final = 5
STARTUP_FAILURES: Final = 360
"""Half an hour for downloading and loading a model before the kubelet gives up."""
SERVICE_PORT: Final = 80
"""Port of the Service, so that URLs need none."""


def build_serving_children(service: InferenceService, settings: Settings) -> list[Manifest]:
    """Everything that should exist for an InferenceService, each with the hash of what was asked for."""
    children = [build_deployment(service, settings), build_service(service)]
    if needs_budget(service):
        children.append(build_budget(service))
    return [with_hash(child) for child in children]


def build_deployment(service: InferenceService, settings: Settings) -> Manifest:
    """The server pods. A rollout never takes away a ready pod before its successor is ready."""
    labels = serving_labels(service.metadata.name)
    config = encoded_config(build_serving_config(service))
    return _child(
        service,
        "apps/v1",
        "Deployment",
        deployment_name(service.metadata.name),
        {
            "replicas": service.spec.replicas,
            "selector": {"matchLabels": serving_selector(service.metadata.name)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "revisionHistoryLimit": 2,
            # Longer than the startup probe, so that the pod's own reason is known before this one.
            "progressDeadlineSeconds": STARTUP_PERIOD_SECONDS * STARTUP_FAILURES + 600,
            "template": {
                "metadata": {"labels": labels, "annotations": {ANNOTATION_CONFIG: config}},
                "spec": build_server_pod_spec(service, settings),
            },
        },
    )


def build_server_pod_spec(service: InferenceService, settings: Settings) -> Manifest:
    """One server pod."""
    volumes = Volumes()
    volumes.model(service.spec.model)
    if service.spec.adapters:
        # One claim for all: the schema says so.
        claim = parse_source(service.spec.adapters[0].source).name
        volumes.claim("adapters", claim, ADAPTERS_MOUNT, read_only=True)
    volumes.configuration()
    volumes.scratch(settings.scratch_size)
    container = {
        "name": SERVER_CONTAINER,
        "image": settings.inference_image,
        "imagePullPolicy": settings.image_pull_policy,
        "env": common_env(service.spec.model),
        "ports": [{"name": "http", "containerPort": SERVER_PORT, "protocol": "TCP"}],
        "startupProbe": _probe("/readyz", period=STARTUP_PERIOD_SECONDS, failures=STARTUP_FAILURES),
        "readinessProbe": _probe("/readyz", period=5, failures=2),
        "livenessProbe": _probe("/healthz", period=15, failures=4),
        "resources": container_resources(service.spec.resources),
        "securityContext": dict(CONTAINER_SECURITY),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": volumes.mounts,
    }
    return pod_spec(settings, container, volumes, grace_seconds=GRACE_SECONDS, tolerations=[])


def build_service(service: InferenceService) -> Manifest:
    """The stable address."""
    return _child(
        service,
        "v1",
        "Service",
        service.metadata.name,
        {
            "type": "ClusterIP",
            "selector": serving_selector(service.metadata.name),
            "ports": [{"name": "http", "port": SERVICE_PORT, "targetPort": "http", "protocol": "TCP"}],
        },
    )


def needs_budget(service: InferenceService) -> bool:
    """A budget on a single replica would only block the drain of its node."""
    return service.spec.replicas > 1


def build_budget(service: InferenceService) -> Manifest:
    """At most one server pod at a time is evicted."""
    selector = {"matchLabels": serving_selector(service.metadata.name)}
    name = deployment_name(service.metadata.name)
    spec = {"maxUnavailable": 1, "selector": selector}
    return _child(service, "policy/v1", "PodDisruptionBudget", name, spec)


def build_serving_config(service: InferenceService) -> ServingConfig:
    """Everything that the server is told."""
    spec = service.spec
    return ServingConfig(
        model=ServedModel(name=model_name(service), path=model_path(spec.model), revision=spec.model.revision),
        adapters=[
            ServedAdapter(name=a.name, path=f"{ADAPTERS_MOUNT}/{parse_source(a.source).path}", digest=a.digest)
            for a in spec.adapters
        ],
        max_model_length=spec.max_model_length,
    )


def model_name(service: InferenceService) -> str:
    """What clients put into `model` for the base: the last component of its source."""
    return parse_source(service.spec.model.source).basename


def service_url(service: InferenceService, settings: Settings) -> str:
    """The OpenAI-compatible API inside the cluster."""
    return f"http://{service.metadata.name}.{service.metadata.namespace}.svc.{settings.cluster_domain}/v1"


def probe_url(service: InferenceService, settings: Settings) -> str:
    """The same API as the operator reaches it."""
    if settings.service_url_template is None:
        return service_url(service, settings)
    return settings.service_url_template.format(name=service.metadata.name, namespace=service.metadata.namespace)


def encoded_config(config: ServingConfig) -> str:
    """The configuration as one line of JSON. Raises StalledError if it cannot travel in an annotation."""
    text = config.model_dump_json(by_alias=True, exclude_none=True)
    if len(text.encode()) > MAX_CONFIG_BYTES:
        raise StalledError(Reason.SPEC_INVALID, "The list of adapters is too long for one InferenceService.")
    return text


def with_hash(manifest: Manifest) -> Manifest:
    """The manifest with the hash of itself as an annotation."""
    annotations = {**manifest["metadata"].get("annotations", {}), ANNOTATION_DESIRED_HASH: content_hash(manifest)}
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}


def rollout_hash(deployment: Manifest, adapter: AdapterReference) -> str:
    """Identifies what a verdict is about: the pods as specified, and the adapter. Replicas are not part of it."""
    return content_hash([deployment["spec"]["template"], adapter.to_dict()])


def content_hash(content: Any) -> str:
    """Short hash of JSON-like data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _child(service: InferenceService, api_version: str, kind: str, name: str, spec: Manifest) -> Manifest:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": service.metadata.namespace,
            "labels": serving_labels(service.metadata.name),
            "ownerReferences": [owner_reference(service)],
        },
        "spec": spec,
    }


def _probe(path: str, *, period: int, failures: int) -> Manifest:
    get = {"path": path, "port": "http"}
    return {"httpGet": get, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}
