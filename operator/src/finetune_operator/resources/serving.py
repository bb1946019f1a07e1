"""Children of an InferenceService (adapter list, Deployment, Service, budget, autoscaler), and its pods' ServingConfig."""

from collections.abc import Sequence
from typing import Final

from finetune_api.contract import (
    ADAPTER_LIST_FILE,
    ADAPTER_LIST_MOUNT,
    SERVER_DRAIN_DELAY_ENV,
    SERVER_DRAIN_ENV,
    SERVER_ENGINE_ENV,
    SERVER_PORT,
)
from finetune_api.serving import ServedAdapter, ServedModel, ServingConfig
from finetune_api.sources import parse_source
from finetune_api.v1alpha1 import Autoscaling, InferenceService
from finetune_operator.resources import Manifest
from finetune_operator.resources.adapter_list import build_adapter_list, configured_adapters, is_rolling
from finetune_operator.resources.annotations import ANNOTATION_CONFIG, CONDITION_ADAPTERS_VERIFIED
from finetune_operator.resources.child import build_child, content_hash, with_hash
from finetune_operator.resources.labels import serving_labels, serving_selector
from finetune_operator.resources.mounts import ADAPTERS_MOUNT
from finetune_operator.resources.names import adapter_list_name, deployment_name
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
DRAIN_DELAY_SECONDS: Final = 10
"""Seconds after SIGTERM during which requests are still accepted: proxies of a busy node stop sending several seconds late."""
DRAIN_SECONDS: Final = 45
"""Seconds for running requests after that."""
GRACE_SECONDS: Final = DRAIN_DELAY_SECONDS + DRAIN_SECONDS + 10
"""Seconds for both and for the engine's last step. A pod exits as soon as it is idle."""
STARTUP_PERIOD_SECONDS: Final = 5
"""Seconds between two startup probes."""
STARTUP_FAILURES: Final = 360
"""Failed startup probes before the kubelet restarts the server: half an hour for downloading and loading a model."""
SERVICE_PORT: Final = 80
"""Port of the Service, the default of HTTP, so that URLs need none."""


def build_serving_children(
    service: InferenceService, listed: Sequence[ServedAdapter], settings: Settings
) -> list[Manifest]:
    """Build all children of an InferenceService, each with its hash.

    The list of adapters, `listed`, comes first, so that starting pods find it. A Rolling service has none.
    """
    children = [] if is_rolling(service) else [build_adapter_list(service, listed)]
    children += [build_deployment(service, settings), build_service(service)]
    if max_replicas(service) > 1:
        children.append(build_budget(service))
    if service.spec.autoscaling is not None and is_autoscaled(service):
        children.append(build_autoscaler(service, service.spec.autoscaling))
    return [with_hash(child) for child in children]


def build_deployment(service: InferenceService, settings: Settings) -> Manifest:
    """Build the Deployment. A rollout removes a ready pod only when its successor is ready (for Rolling: verified).

    `replicas` is left out if an autoscaler sets it.
    """
    size = {} if is_autoscaled(service) else {"replicas": service.spec.replicas}
    labels = serving_labels(service.metadata.name)
    return build_child(
        service,
        "apps/v1",
        "Deployment",
        deployment_name(service.metadata.name),
        spec={
            **size,
            "selector": {"matchLabels": serving_selector(service.metadata.name)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "revisionHistoryLimit": 2,
            # Longer than the startup probe, so that the pod's own reason is reported first.
            "progressDeadlineSeconds": STARTUP_PERIOD_SECONDS * STARTUP_FAILURES + 600,
            "template": {
                "metadata": {"labels": labels, "annotations": {ANNOTATION_CONFIG: encoded_config(service)}},
                "spec": build_server_pod_spec(service, settings),
            },
        },
    )


def build_server_pod_spec(service: InferenceService, settings: Settings) -> Manifest:
    """Build the spec of a server pod."""
    volumes = Volumes()
    volumes.model(service.spec.model)
    claim = adapter_claim(service)
    if claim is not None:
        volumes.claim("adapters", claim, ADAPTERS_MOUNT, read_only=True)
    if not is_rolling(service):
        name = adapter_list_name(service.metadata.name)
        volumes.config_map("adapter-list", name, ADAPTER_LIST_FILE, ADAPTER_LIST_MOUNT)
    volumes.configuration()
    volumes.scratch(settings.scratch_size)
    container = {
        "name": SERVER_CONTAINER,
        "image": server_image(service, settings),
        "imagePullPolicy": settings.image_pull_policy,
        "env": [*common_env(service.spec.model), *_drain_env(), *_engine_env(service)],
        "ports": [{"name": "http", "containerPort": SERVER_PORT, "protocol": "TCP"}],
        "startupProbe": _probe("/readyz", period=STARTUP_PERIOD_SECONDS, failures=STARTUP_FAILURES),
        "readinessProbe": _probe("/readyz", period=5, failures=2),
        "livenessProbe": _probe("/healthz", period=15, failures=4),
        "resources": container_resources(service.spec.resources),
        "securityContext": dict(CONTAINER_SECURITY),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": volumes.mounts,
    }
    pod = pod_spec(settings, container, volumes, grace_seconds=GRACE_SECONDS, tolerations=[])
    return {**pod, "readinessGates": [{"conditionType": CONDITION_ADAPTERS_VERIFIED}]} if is_rolling(service) else pod


def build_service(service: InferenceService) -> Manifest:
    """Build the Service, the stable address of the pods."""
    return build_child(
        service,
        "v1",
        "Service",
        service.metadata.name,
        spec={
            "type": "ClusterIP",
            "selector": serving_selector(service.metadata.name),
            "ports": [{"name": "http", "port": SERVICE_PORT, "targetPort": "http", "protocol": "TCP"}],
        },
    )


def server_image(service: InferenceService, settings: Settings) -> str | None:
    """Return the image for the requested engine; None if the administrator has not set one."""
    return settings.inference_vllm_image if service.spec.engine == "VLLM" else settings.inference_image


def is_autoscaled(service: InferenceService) -> bool:
    """Return whether an autoscaler sets the number of pods; `replicas: 0` stops them regardless."""
    return service.spec.autoscaling is not None and service.spec.replicas > 0


def max_replicas(service: InferenceService) -> int:
    """Return the maximum number of pods. A budget for a single pod would only block the drain of its node."""
    if service.spec.autoscaling is not None and service.spec.replicas > 0:
        return service.spec.autoscaling.max_replicas
    return service.spec.replicas


def with_replicas(deployment: Manifest, service: InferenceService, live: Manifest | None) -> Manifest:
    """Return a Deployment for server-side apply with the number of pods that the autoscaler has set.

    Leaving out a field that was applied once would remove it, and the API server would then default it to 1. The number comes
    from `live`, with its resourceVersion: if the autoscaler changes it meanwhile, the API server refuses the apply.
    """
    autoscaling = service.spec.autoscaling
    if autoscaling is None or "replicas" in deployment["spec"]:
        return deployment
    now, metadata = autoscaling.min_replicas, deployment["metadata"]
    if live is not None:
        now = live["spec"].get("replicas", 1)
        metadata = {**metadata, "resourceVersion": live["metadata"]["resourceVersion"]}
    size = min(max(now, autoscaling.min_replicas), autoscaling.max_replicas)
    return {**deployment, "metadata": metadata, "spec": {"replicas": size, **deployment["spec"]}}


def build_autoscaler(service: InferenceService, wanted: Autoscaling) -> Manifest:
    """Build the HorizontalPodAutoscaler of the server pods."""
    name = deployment_name(service.metadata.name)
    target = {"type": "Utilization", "averageUtilization": wanted.target_cpu_utilization}
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
        "minReplicas": wanted.min_replicas,
        "maxReplicas": wanted.max_replicas,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
    }
    return build_child(service, "autoscaling/v2", "HorizontalPodAutoscaler", name, spec=spec)


def build_budget(service: InferenceService) -> Manifest:
    """Build the PodDisruptionBudget: at most one server pod is evicted at a time."""
    selector = {"matchLabels": serving_selector(service.metadata.name)}
    name = deployment_name(service.metadata.name)
    spec = {"maxUnavailable": 1, "selector": selector}
    return build_child(service, "policy/v1", "PodDisruptionBudget", name, spec=spec)


def adapter_claim(service: InferenceService) -> str | None:
    """Return the claim of all adapters, which the schema guarantees to be one; None without adapters."""
    if service.spec.adapter_claim is None and service.spec.adapters:
        return parse_source(service.spec.adapters[0].source).name
    return service.spec.adapter_claim


def encoded_config(service: InferenceService) -> str:
    """Return a server's ServingConfig as one line of JSON. The adapters of a Hot service are in their own list instead."""
    spec = service.spec
    config = ServingConfig(
        model=ServedModel(name=model_name(service), path=model_path(spec.model), revision=spec.model.revision),
        adapters=configured_adapters(service),
        max_model_length=spec.max_model_length,
        merge_adapter=spec.merge_adapter or None,
    )
    return config.model_dump_json(by_alias=True, exclude_none=True)


def config_hash(encoded: str) -> str:
    """Return the hash of an encoded configuration."""
    return content_hash(encoded)


def model_name(service: InferenceService) -> str:
    """Return the name that clients use as `model` for the base model: the last component of its source."""
    return parse_source(service.spec.model.source).basename


def service_url(service: InferenceService, settings: Settings) -> str:
    """Return the URL of the OpenAI-compatible API inside the cluster."""
    return f"http://{service.metadata.name}.{service.metadata.namespace}.svc.{settings.cluster_domain}/v1"


def server_url(address: str, pod_name: str, service: InferenceService, settings: Settings) -> str:
    """Return the URL by which the operator reaches one server pod, without a path."""
    if settings.server_url_template is None:
        host = f"[{address}]" if ":" in address else address
        return f"http://{host}:{SERVER_PORT}"
    return settings.server_url_template.format(pod=pod_name, namespace=service.metadata.namespace)


def _drain_env() -> list[Manifest]:
    return [
        {"name": SERVER_DRAIN_DELAY_ENV, "value": str(DRAIN_DELAY_SECONDS)},
        {"name": SERVER_DRAIN_ENV, "value": str(DRAIN_SECONDS)},
    ]


def _engine_env(service: InferenceService) -> list[Manifest]:
    """Return the engine's variable; none for the default engine, so that pods of earlier releases need no rollout."""
    return [{"name": SERVER_ENGINE_ENV, "value": "vllm"}] if service.spec.engine == "VLLM" else []


def _probe(path: str, *, period: int, failures: int) -> Manifest:
    get = {"path": path, "port": "http"}
    return {"httpGet": get, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}
