"""Every value of the chart changes what its description says, and the pages about the chart say what is there."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml

from finetune_api.v1alpha1 import FinetuneJob, InferenceService
from lab import chart_values
from support.cluster.chart import (
    CHART,
    MISSING_HELM,
    NAMESPACE,
    Raw,
    environment_of,
    named,
    of_kind,
    render,
)

needs_helm = pytest.mark.skipif(MISSING_HELM is not None, reason=str(MISSING_HELM))
TEXT = (CHART / "values.yaml").read_text()
DOCUMENTED = [value.path for value in chart_values.read_values(TEXT) if not value.is_group]
DIGEST = f"sha256:{'a' * 64}"
TOLERATIONS = [{"key": "spot", "operator": "Exists"}]
RESOURCES = {"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"memory": "2Mi"}}
POD = "spec.template.spec"
CONTAINER = f"{POD}.containers.0"
EXTERNAL: Raw = {"redis": {"external": {"urlSecretRef": {"name": "my-redis"}}}}
MONITORED: Raw = {"monitoring": {"podMonitor": {"enabled": True}, "dashboard": {"enabled": True}}}
TESTED: Raw = {"tests": {"model": "hf://org/tiny"}}
Look = Callable[[list[Raw]], Any]


@dataclass(frozen=True)
class Case:
    """A value, and the place in the manifests where it is expected."""

    path: str
    value: Any
    look: Look
    expected: Any
    other_values: Raw = field(default_factory=dict)


def at(kind: str, name: str, path: str) -> Look:
    """Look at a field of one manifest; None if it is absent."""

    def look(manifests: list[Raw]) -> Any:
        found: Any = named(manifests, kind, name)
        for key in path.split("."):
            try:
                found = found[int(key) if isinstance(found, list) else key]
            except (KeyError, IndexError):
                return None
        return found

    return look


def setting(variable: str, deployment: str = "-operator") -> Look:
    """Look at an environment variable."""
    return lambda manifests: environment_of(at("Deployment", deployment, CONTAINER)(manifests)).get(variable)


def count(kind: str, *suffixes: str) -> Look:
    """Count the manifests of a kind whose name ends like one of these."""
    return lambda manifests: sum(m["metadata"]["name"].endswith(suffixes or "") for m in of_kind(manifests, kind))


def namespaces(kind: str, name: str) -> Look:
    return lambda manifests: [
        m["metadata"]["namespace"] for m in of_kind(manifests, kind) if m["metadata"]["name"] == name
    ]


def text(kind: str, name: str) -> Look:
    """Look at a whole manifest, for values that are part of a longer text."""
    return lambda manifests: json.dumps(named(manifests, kind, name))


class Containing(str):
    """Equal to every text that contains it."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return str(self) in str(other)

    def __ne__(self, other: object) -> bool:
        return not self == other


def image_cases(path: str, look: Look, repository: str, tag: str = "0.1.0") -> list[Case]:
    return [
        Case(f"{path}.repository", "r.example/x", look, f"r.example/x:{tag}"),
        Case(f"{path}.tag", "9.9", look, f"{repository}:9.9"),
        Case(f"{path}.digest", DIGEST, look, f"{repository}@{DIGEST}"),
    ]


def placement_cases(path: str, deployment: str) -> list[Case]:
    look = at("Deployment", deployment, f"{POD}.tolerations")
    return [
        Case(f"{path}.nodeSelector", {"a": "b"}, at("Deployment", deployment, f"{POD}.nodeSelector"), {"a": "b"}),
        Case(f"{path}.tolerations", TOLERATIONS, look, TOLERATIONS),
    ]


VLLM = Case(
    "inference.vllm.image.repository",
    "r.example/x",
    setting("FINETUNE_OPERATOR_INFERENCE_VLLM_IMAGE"),
    "r.example/x:0.1.0",
)
VLLM_SET: Raw = {"inference": {"vllm": {"image": {"repository": "r.example/x"}}}}
CASES = [
    Case("fullnameOverride", "tuning", count("Deployment", "tuning-operator", "tuning-gateway", "tuning-redis"), 3),
    Case("watchNamespaces", ["a", "b"], setting("FINETUNE_OPERATOR_NAMESPACES"), "a,b"),
    Case("watchNamespaces", ["a", "b"], namespaces("Role", "finetune-operator"), ["a", "b"]),
    Case("watchNamespaces", ["a", "b"], count("ClusterRoleBinding"), 0),
    Case("clusterDomain", "corp", setting("FINETUNE_OPERATOR_CLUSTER_DOMAIN"), "corp"),
    Case("clusterDomain", "corp", text("Secret", "-redis"), Containing(".svc.corp:6379")),
    *(
        Case("imagePullSecrets", [{"name": "r"}], at("Deployment", name, f"{POD}.imagePullSecrets"), [{"name": "r"}])
        for name in ("-operator", "-gateway", "-redis")
    ),
    Case("crds.enabled", False, count("CustomResourceDefinition"), 0),
    *(
        case
        for name in ("-operator", "-gateway")
        for case in (
            *image_cases("image", at("Deployment", name, f"{CONTAINER}.image"), "ghcr.io/finetune-operator/operator"),
            Case("image.pullPolicy", "Never", at("Deployment", name, f"{CONTAINER}.imagePullPolicy"), "Never"),
        )
    ),
    Case("operator.logLevel", "DEBUG", setting("FINETUNE_OPERATOR_LOG_LEVEL"), "DEBUG"),
    Case("operator.resources", RESOURCES, at("Deployment", "-operator", f"{CONTAINER}.resources"), RESOURCES),
    Case("operator.env", {"FINETUNE_OPERATOR_X": "1"}, setting("FINETUNE_OPERATOR_X"), "1"),
    *placement_cases("operator", "-operator"),
    Case("operator.priorityClassName", "high", at("Deployment", "-operator", f"{POD}.priorityClassName"), "high"),
    *image_cases("trainer.image", setting("FINETUNE_OPERATOR_TRAINER_IMAGE"), "ghcr.io/finetune-operator/trainer"),
    Case("trainer.gpuMemory", "80Gi", setting("FINETUNE_OPERATOR_GPU_MEMORY"), "80Gi"),
    *image_cases(
        "inference.image", setting("FINETUNE_OPERATOR_INFERENCE_IMAGE"), "ghcr.io/finetune-operator/inference"
    ),
    VLLM,
    Case("inference.vllm.image.tag", "9.9", VLLM.look, "r.example/x:9.9", VLLM_SET),
    Case("inference.vllm.image.digest", DIGEST, VLLM.look, f"r.example/x@{DIGEST}", VLLM_SET),
    Case("workloads.imagePullPolicy", "Never", setting("FINETUNE_OPERATOR_IMAGE_PULL_POLICY"), "Never"),
    Case("workloads.imagePullSecrets", ["r"], setting("FINETUNE_OPERATOR_IMAGE_PULL_SECRETS"), '["r"]'),
    Case("workloads.serviceAccount", "tuner", setting("FINETUNE_OPERATOR_SERVICE_ACCOUNT"), "tuner"),
    Case("workloads.nodeSelector", {"a": "b"}, setting("FINETUNE_OPERATOR_NODE_SELECTOR"), '{"a":"b"}'),
    Case("workloads.tolerations", [{"key": "x"}], setting("FINETUNE_OPERATOR_TOLERATIONS"), '[{"key":"x"}]'),
    Case("workloads.runtimeClassName", "nvidia", setting("FINETUNE_OPERATOR_RUNTIME_CLASS_NAME"), "nvidia"),
    Case("workloads.allowPrivateSources", True, setting("FINETUNE_OPERATOR_ALLOW_PRIVATE_SOURCES"), "true"),
    Case("workloads.scratchSize", "1Gi", setting("FINETUNE_OPERATOR_SCRATCH_SIZE"), "1Gi"),
    Case("workloads.adapters.size", "1Gi", setting("FINETUNE_OPERATOR_ADAPTERS_SIZE"), "1Gi"),
    Case("workloads.adapters.storageClass", "fast", setting("FINETUNE_OPERATOR_ADAPTERS_STORAGE_CLASS"), "fast"),
    Case(
        "workloads.adapters.accessMode",
        "ReadWriteMany",
        setting("FINETUNE_OPERATOR_ADAPTERS_ACCESS_MODE"),
        "ReadWriteMany",
    ),
    *(
        Case("gateway.enabled", False, count(kind, "-gateway"), 0)
        for kind in ("Deployment", "Service", "NetworkPolicy")
    ),
    Case("gateway.replicas", 3, at("Deployment", "-gateway", "spec.replicas"), 3),
    Case("gateway.defaultNamespace", "ml", setting("FINETUNE_GATEWAY_DEFAULT_NAMESPACE", "-gateway"), "ml"),
    Case("gateway.logLevel", "DEBUG", setting("FINETUNE_GATEWAY_LOG_LEVEL", "-gateway"), "DEBUG"),
    Case("gateway.resources", RESOURCES, at("Deployment", "-gateway", f"{CONTAINER}.resources"), RESOURCES),
    Case("gateway.service.type", "NodePort", at("Service", "-gateway", "spec.type"), "NodePort"),
    Case("gateway.service.port", 8080, at("Service", "-gateway", "spec.ports.0.port"), 8080),
    Case("gateway.service.annotations", {"a": "b"}, at("Service", "-gateway", "metadata.annotations"), {"a": "b"}),
    Case("gateway.env", {"FINETUNE_GATEWAY_X": "1"}, setting("FINETUNE_GATEWAY_X", "-gateway"), "1"),
    *placement_cases("gateway", "-gateway"),
    *(
        Case("redis.enabled", False, count(kind, "-redis"), 0)
        for kind in ("Deployment", "Service", "Secret", "ConfigMap")
    ),
    *image_cases(
        "redis.image", at("Deployment", "-redis", f"{CONTAINER}.image"), "docker.io/library/redis", "7.2-bookworm"
    ),
    Case("redis.image.pullPolicy", "Never", at("Deployment", "-redis", f"{CONTAINER}.imagePullPolicy"), "Never"),
    Case("redis.maxMemory", "64mb", text("ConfigMap", "-redis"), Containing("maxmemory 64mb")),
    Case("redis.resources", RESOURCES, at("Deployment", "-redis", f"{CONTAINER}.resources"), RESOURCES),
    *placement_cases("redis", "-redis"),
    Case("redis.external.urlSecretRef.name", "mine", text("Deployment", "-operator"), Containing('"name": "mine"')),
    Case(
        "redis.external.urlSecretRef.key", "dsn", text("Deployment", "-operator"), Containing('"key": "dsn"'), EXTERNAL
    ),
    Case("broker.secretName", "mine", setting("FINETUNE_OPERATOR_BROKER_SECRET_NAME"), "mine"),
    Case("broker.secretName", "mine", namespaces("Secret", "mine"), [NAMESPACE]),
    Case("broker.namespaces", ["a"], namespaces("Secret", "finetune-broker"), [NAMESPACE, "a"]),
    Case("networkPolicy.enabled", False, count("NetworkPolicy"), 0),
    *(
        Case("networkPolicy.apiServerPorts", [7443], text("NetworkPolicy", name), Containing('"port": 7443'))
        for name in ("-operator", "-gateway")
    ),
    Case(
        "networkPolicy.externalRedisPorts",
        [7000],
        text("NetworkPolicy", "-operator"),
        Containing('"port": 7000'),
        EXTERNAL,
    ),
    Case("rbac.aggregateToDefaultRoles", False, count("ClusterRole", "-edit", "-view"), 0),
    Case("admissionPolicy.enabled", False, count("ValidatingAdmissionPolicy"), 0),
    Case("admissionPolicy.enabled", False, count("ValidatingAdmissionPolicyBinding"), 0),
    Case(
        "admissionPolicy.extraImagePrefixes",
        ["mirror.example/"],
        text("ValidatingAdmissionPolicy", "-operator-workloads"),
        Containing("'mirror.example/'"),
    ),
    Case("monitoring.dashboard.enabled", True, count("ConfigMap", "-dashboard"), 1),
    Case("monitoring.dashboard.labels", {"x": "y"}, at("ConfigMap", "-dashboard", "metadata.labels.x"), "y", MONITORED),
    Case(
        "monitoring.dashboard.labels.grafana_dashboard",
        "yes",
        at("ConfigMap", "-dashboard", "metadata.labels.grafana_dashboard"),
        "yes",
        MONITORED,
    ),
    Case("monitoring.podMonitor.enabled", True, count("PodMonitor", "-operator", "-servers"), 2),
    *(
        case
        for name in ("-operator", "-servers")
        for case in (
            Case(
                "monitoring.podMonitor.labels", {"x": "y"}, at("PodMonitor", name, "metadata.labels.x"), "y", MONITORED
            ),
            Case(
                "monitoring.podMonitor.interval",
                "5s",
                at("PodMonitor", name, "spec.podMetricsEndpoints.0.interval"),
                "5s",
                MONITORED,
            ),
        )
    ),
    Case("tests.model", "hf://org/tiny", count("Pod", "-test"), 1),
    Case("tests.model", "hf://org/other", text("Pod", "-test"), Containing("hf://org/other"), TESTED),
    Case("tests.namespace", "ml", namespaces("Role", "finetune-test"), ["ml"], TESTED),
    Case(
        "tests.namespace", "ml", text("Pod", "-test"), Containing('{"name": "TEST_NAMESPACE", "value": "ml"}'), TESTED
    ),
    Case(
        "tests.timeoutSeconds", 60, text("Pod", "-test"), Containing('{"name": "TEST_SECONDS", "value": "60"}'), TESTED
    ),
    Case("tests.timeoutSeconds", 60, at("Pod", "-test", "spec.activeDeadlineSeconds"), 180, TESTED),
]


def merged(one: Raw, other: Raw) -> Raw:
    both = {
        key: merged(one[key], other[key]) if isinstance(one[key], dict) else other[key] for key in one.keys() & other
    }
    return {**one, **other, **both}


@functools.cache
def rendered(values: str) -> list[Raw]:
    return render(json.loads(values))


def test_every_value_has_a_case() -> None:
    assert {case.path for case in CASES} == set(DOCUMENTED)


@needs_helm
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.path)
def test_a_value_changes_what_it_says(case: Case) -> None:
    values: Any = case.value
    for key in reversed(case.path.split(".")):
        values = {key: values}
    assert case.look(rendered(json.dumps(case.other_values))) != case.expected, "the case shows nothing"
    assert case.look(render(merged(case.other_values, values))) == case.expected


def test_the_page_of_values_is_what_values_and_schema_say() -> None:
    assert not chart_values.is_page_stale(), f"helm/finetune-operator/VALUES.md is stale; run `{chart_values.COMMAND}`"


def test_the_page_shows_type_default_group_and_details() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    page = chart_values.page(TEXT, schema)
    assert (
        '| `gateway.service.type` | `ClusterIP`, `NodePort`, `LoadBalancer` | `"ClusterIP"` | Type of the Service. |'
        in page
    )
    assert "\n## redis\n\nRedis carries live progress" in page
    assert "for example 80Gi. With it, the operator refuses" in page
    assert chart_values.type_of("redis.image.digest", schema) == "string"
    assert chart_values.type_of("tests.namespace", schema) == "string"
    assert chart_values.type_of("networkPolicy.apiServerPorts", schema) == "list of integers"


class TestArtifactHub:
    chart: Raw = yaml.safe_load((CHART / "Chart.yaml").read_text())
    defaults: Raw = yaml.safe_load(TEXT)

    def annotation(self, name: str) -> Any:
        return yaml.safe_load(self.chart["annotations"][f"artifacthub.io/{name}"])

    def test_the_images_are_those_of_the_default_values(self) -> None:
        images = {
            "operator": self.defaults["image"],
            "trainer": self.defaults["trainer"]["image"],
            "inference": self.defaults["inference"]["image"],
            "redis": self.defaults["redis"]["image"],
        }
        version = self.chart["appVersion"]
        expected = [{"name": name, "image": f"{i['repository']}:{i['tag'] or version}"} for name, i in images.items()]
        assert self.annotation("images") == expected

    def test_the_kinds_are_those_of_the_chart(self) -> None:
        crds = [yaml.safe_load(path.read_text()) for path in sorted((CHART.parents[1] / "crds").glob("*.dev.yaml"))]
        told = [(crd["kind"], crd["name"], crd["version"]) for crd in self.annotation("crds")]
        assert told == [
            (crd["spec"]["names"]["kind"], crd["metadata"]["name"], crd["spec"]["versions"][0]["name"]) for crd in crds
        ]

    def test_the_examples_are_valid(self) -> None:
        job, service = self.annotation("crdsExamples")
        for raw in (job, service):
            raw["metadata"] |= {"namespace": "ml", "uid": "u", "generation": 1, "resourceVersion": "1"}
        assert FinetuneJob.model_validate(job).spec.serve is not None
        assert InferenceService.model_validate(service).spec.model.source == job["spec"]["model"]["source"]
