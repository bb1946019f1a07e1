"""The chart agrees with the code that it installs: rights, settings, names. Needs helm, no cluster."""

import json
import re
from pathlib import Path

import pytest
import yaml

from finetune_api.contract import BROKER_URL_ENV, SERVER_PORT
from finetune_gateway.__main__ import SHUTDOWN_SECONDS
from finetune_gateway.settings import Settings as GatewaySettings
from finetune_operator import permissions
from finetune_operator.resources.labels import SERVER_APP, TRAINER_APP
from finetune_operator.resources.serving import DRAIN_DELAY_SECONDS
from finetune_operator.settings import Settings as OperatorSettings
from support.cluster.chart import (
    CHART,
    MISSING_HELM,
    NAMESPACE,
    VALUES,
    Raw,
    containers,
    environment_of,
    helm,
    named,
    of_kind,
    render,
)

pytestmark = pytest.mark.skipif(MISSING_HELM is not None, reason=str(MISSING_HELM))

ALL_VALUES = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)


@ALL_VALUES
def test_helm_lint_finds_nothing(values: Raw) -> None:
    assert "1 chart(s) linted, 0 chart(s) failed" in helm("lint", str(CHART), "--strict", values=values)


@pytest.mark.parametrize(
    "values",
    [
        {"opreator": {}},
        {"operator": {"replicas": 2}},
        {"operator": {"env": {"PYTHONPATH": "/x"}}},
        {"watchNamespaces": ["Team A"]},
        {"image": {"repository": "r.example/operator@sha256:0"}},
        {"image": {"digest": "sha256:0"}},
        {"image": {"tag": "latest"}},
        {"trainer": {"gpuMemory": "80 GB"}},
        {"workloads": {"adapters": {"accessMode": "ReadOnlyMany"}}},
        {"admissionPolicy": {"extraImagePrefixes": ["x' || true || 'y"]}},
    ],
    ids=json.dumps,
)
def test_values_that_mean_nothing_are_refused(values: Raw) -> None:
    assert "values don't meet the specifications of the schema" in helm(
        "template", str(CHART), values=values, check=False
    )


def test_every_value_says_what_it_is_for() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    undocumented = [
        line.strip()
        for before, line in zip(["", *lines], lines, strict=False)
        if re.match(r"\s*[A-Za-z]+: *\S", line) and not before.lstrip().startswith("# -- ")
    ]
    # The values of a resource list explain themselves.
    assert [line for line in undocumented if not re.match(r"(cpu|memory):", line)] == []


@pytest.mark.parametrize("values", ["defaults", "namespaced", "everything set"])
def test_the_operators_rules_are_those_of_permissions(values: str) -> None:
    manifests = render(VALUES[values])
    roles = [
        m for m in manifests if m["kind"] in ("Role", "ClusterRole") and m["metadata"]["name"].endswith("-operator")
    ]
    assert len(roles) == max(1, len(VALUES[values].get("watchNamespaces", [])))
    for role in roles:
        assert granted(role) == {(r.group, r.resource, v) for r in permissions.rules() for v in r.verbs}


def granted(role: Raw) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_framework_and_application_rules_are_told_apart() -> None:
    text = (CHART / "templates" / "operator" / "_rules.tpl").read_text()
    framework, _, application = text.partition("# Application:")
    for part, declared in ((framework, permissions.FRAMEWORK), (f"#{application}", permissions.APPLICATION)):
        rules = yaml.safe_load(re.sub(r"\{\{.*?\}\}", "", part, flags=re.DOTALL))
        assert granted({"rules": rules}) == {(r.group, r.resource, v) for r in declared for v in r.verbs}


def test_a_namespaced_operator_has_no_right_in_the_cluster() -> None:
    manifests = render(VALUES["namespaced"])
    bound = [
        (m["kind"], m["metadata"].get("namespace"))
        for m in manifests
        if m["kind"].endswith("RoleBinding") and m["kind"] != "Role"
    ]
    assert bound == [("RoleBinding", "team-a"), ("RoleBinding", "team-b")]
    environment = dict(operator_environment(manifests))
    assert environment["FINETUNE_OPERATOR_NAMESPACES"] == "team-a,team-b"


@ALL_VALUES
def test_nobody_but_the_operator_is_bound_to_any_role(values: Raw) -> None:
    for manifest in render(values):
        if manifest["kind"].endswith("RoleBinding"):
            (subject,) = manifest["subjects"]
            assert subject["name"].endswith("-operator")
            assert subject["namespace"] == NAMESPACE


@ALL_VALUES
def test_only_the_operator_gets_a_token(values: Raw) -> None:
    for deployment in of_kind(render(values), "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is deployment["metadata"]["name"].endswith("-operator")


def operator_environment(manifests: list[Raw]) -> dict[str, str | None]:
    return environment_of(next(c for _, c in containers(manifests) if c["name"] == "operator"))


@ALL_VALUES
def test_the_operator_understands_every_variable_that_the_chart_sets(
    values: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = operator_environment(render(values))
    known = {f"FINETUNE_OPERATOR_{name.upper()}" for name in OperatorSettings.model_fields} | {BROKER_URL_ENV}
    assert set(environment) <= known
    for name, value in environment.items():
        monkeypatch.setenv(name, "redis://from-a-secret:6379/0" if value is None else value)
    settings = OperatorSettings()
    assert settings.namespaces == frozenset(values.get("watchNamespaces", ()))
    assert (settings.broker_url is None) == (BROKER_URL_ENV not in environment)
    wanted = values.get("workloads", {})
    assert settings.node_selector == wanted.get("nodeSelector", {})
    assert list(settings.tolerations) == wanted.get("tolerations", [])
    assert list(settings.image_pull_secrets) == wanted.get("imagePullSecrets", [])
    assert settings.runtime_class_name == wanted.get("runtimeClassName")
    assert settings.adapters_storage_class == wanted.get("adapters", {}).get("storageClass")
    assert settings.gpu_memory == values.get("trainer", {}).get("gpuMemory")


def test_unset_values_mean_the_operators_own_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = OperatorSettings()
    for name, value in operator_environment(render({"redis": {"enabled": False}})).items():
        monkeypatch.setenv(name, value or "")
    assert OperatorSettings() == defaults


@ALL_VALUES
def test_the_gateway_understands_every_variable_that_the_chart_sets(
    values: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateways = [c for _, c in containers(render(values)) if c["name"] == "gateway"]
    for container in gateways:
        environment = environment_of(container)
        assert set(environment) <= {f"FINETUNE_GATEWAY_{name.upper()}" for name in GatewaySettings.model_fields}
        for name, value in environment.items():
            monkeypatch.setenv(name, value or "")
        settings = GatewaySettings()
        assert settings.ca_file is not None
        assert str(settings.ca_file.parent) in [mount["mountPath"] for mount in container["volumeMounts"]]
        assert settings.port == container["ports"][0]["containerPort"]


def test_a_gateway_that_is_going_answers_until_proxies_know() -> None:
    pods = [deployment["spec"]["template"]["spec"] for deployment in of_kind(render({}), "Deployment")]
    (pod,) = [pod for pod in pods if pod["containers"][0]["name"] == "gateway"]
    pause = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pause >= DRAIN_DELAY_SECONDS, "no less than a server"
    assert pause + SHUTDOWN_SECONDS < pod["terminationGracePeriodSeconds"]


@ALL_VALUES
def test_images_have_a_fixed_version(values: Raw) -> None:
    for name, container in containers(render(values)):
        reference = container["image"]
        assert re.search(r"(@sha256:[0-9a-f]{64}|:[A-Za-z0-9_][A-Za-z0-9_.-]*)$", reference), f"{name}: {reference}"
        assert not reference.endswith(":latest"), name


@ALL_VALUES
def test_no_container_asks_for_a_core_that_training_needs(values: Raw) -> None:
    requested = [c["resources"]["requests"]["cpu"] for _, c in containers(render(values))]
    assert all(cpu.endswith("m") for cpu in requested)
    assert sum(int(cpu.removesuffix("m")) for cpu in requested) <= 100
    assert all("cpu" not in c["resources"].get("limits", {}) for _, c in containers(render(values)))


def test_network_policies_name_the_pods_that_exist() -> None:
    manifests = render({})
    pods = [d["spec"]["template"]["metadata"]["labels"] for d in of_kind(manifests, "Deployment")]
    policies = of_kind(manifests, "NetworkPolicy")
    assert len(policies) == len(pods) == 3
    for policy in policies:
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        selector = policy["spec"]["podSelector"]["matchLabels"].items()
        assert sum(selector <= labels.items() for labels in pods) == 1
    probe = next(
        rule
        for rule in named(manifests, "NetworkPolicy", "-operator")["spec"]["egress"]
        if "namespaceSelector" in str(rule)
    )
    assert probe["to"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": SERVER_APP}
    assert probe["ports"] == [{"port": SERVER_PORT}]
    trainers = named(manifests, "NetworkPolicy", "-redis")["spec"]["ingress"][0]["from"][1]
    assert trainers["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": TRAINER_APP}


def test_trainers_of_every_named_namespace_find_the_broker() -> None:
    manifests = render({"watchNamespaces": ["team-a"], "broker": {"namespaces": ["team-b", "team-a"]}})
    secrets = [
        s for s in of_kind(manifests, "Secret") if s["metadata"]["name"] == OperatorSettings().broker_secret_name
    ]
    assert [s["metadata"]["namespace"] for s in secrets] == [NAMESPACE, "team-a", "team-b"]
    assert len({s["stringData"][OperatorSettings().broker_secret_key] for s in secrets}) == 1


def test_an_image_of_vllm_is_allowed_once_it_is_named() -> None:
    with_vllm = render({"inference": {"vllm": {"image": {"repository": "registry.example/vllm", "tag": "1"}}}})
    for manifests, count in ((render({}), 0), (with_vllm, 1)):
        settings = [e for _, c in containers(manifests) for e in c.get("env", []) if e["name"].endswith("VLLM_IMAGE")]
        assert [e["value"] for e in settings] == ["registry.example/vllm:1"] * count
        policy = named(manifests, "ValidatingAdmissionPolicy", "-operator-workloads")
        (prefixes,) = (v["expression"] for v in policy["spec"]["variables"] if v["name"] == "imagePrefixes")
        assert prefixes.count("'registry.example/vllm") == 2 * count
        assert "':'" not in prefixes


def test_crds_are_those_of_the_api_and_survive_an_uninstall() -> None:
    for crd in of_kind(render({}), "CustomResourceDefinition"):
        assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        file = CHART.parents[1] / "crds" / f"{crd['metadata']['name']}.yaml"
        assert crd == yaml.safe_load(file.read_text())
    assert of_kind(render({"crds": {"enabled": False}}), "CustomResourceDefinition") == []


def test_the_images_run_the_commands_that_the_chart_starts() -> None:
    commands = {c["name"]: c.get("command") for _, c in containers(render({}))}
    assert commands == {
        "operator": ["python", "-m", "finetune_operator"],
        "gateway": ["python", "-m", "finetune_gateway"],
        "redis": ["redis-server", "/etc/redis/redis.conf"],
    }
    sources = Path(__file__).resolve().parents[2] / "operator" / "src"
    assert all((sources / package / "__main__.py").exists() for package in ("finetune_operator", "finetune_gateway"))


@pytest.mark.parametrize("page", [CHART / "README.md", CHART.parents[1] / "README.md"], ids=["chart", "repository"])
def test_the_values_that_pages_speak_of_exist(page: Path) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    text = page.read_text()
    named_there = re.findall(r"--set ([\w.]+)=", text) + re.findall(r"^\| `([\w.]+)`", text, re.MULTILINE)
    for path in named_there:
        value = values
        for key in path.split("."):
            if key not in value:
                raise AssertionError(f"{page.name} speaks of {path}, which values.yaml does not have")
            value = value[key]
