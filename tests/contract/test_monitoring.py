"""The dashboard asks for what servers and operator expose, and the chart's monitors find the pods that do."""

import json
import re
from typing import Any

import prometheus_client
import pytest

from finetune_api.serving import ServedModel, ServingConfig
from finetune_inference.api.metrics import MOST_MODELS, OTHER_MODELS, Metrics
from finetune_inference.inference import InferenceService
from finetune_operator.process import metrics as operator_metrics
from finetune_operator.resources.labels import SERVER_APP
from support.cluster.chart import CHART, MISSING_HELM, VALUES, named, of_kind, render

DASHBOARD = CHART / "dashboards" / "finetune-operator.json"
OWN = re.compile(r"\bfinetune_(?:inference|operator)_\w+")
LABELS_OF_PROMETHEUS = {"namespace", "pod", "le"}
"""Added to every series by the PodMonitors, or part of every histogram."""
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def server_metrics() -> Metrics:
    return Metrics(InferenceService(ServingConfig(model=ServedModel(name="base", path="/nowhere"))))


def exposed() -> dict[str, set[str]]:
    """Labels of each series that servers and operator expose, by its name."""
    assert operator_metrics.RECONCILES
    series: dict[str, set[str]] = {}
    for registry in (server_metrics().registry, prometheus_client.REGISTRY):
        for collector in list(registry._collector_to_names):
            for family in collector.collect():
                for suffix in SUFFIXES.get(family.type, ()):
                    series[family.name + suffix] = set(getattr(collector, "_labelnames", ()))
    return series


def expressions() -> list[str]:
    panels: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def test_every_metric_of_the_dashboard_is_exposed() -> None:
    series = exposed()
    asked = {name for expression in (*expressions(), DASHBOARD.read_text()) for name in OWN.findall(expression)}
    assert asked
    assert asked - series.keys() == set()


@pytest.mark.parametrize("expression", expressions())
def test_every_label_of_the_dashboard_exists(expression: str) -> None:
    (name,) = OWN.findall(expression)
    groups = re.findall(r"by \(([^)]*)\)", expression)
    labels = {label.strip() for group in groups for label in group.split(",")}
    labels |= set(re.findall(r"[{,](\w+)[=!]", expression))
    assert labels <= exposed()[name] | LABELS_OF_PROMETHEUS


def test_everything_exposed_is_on_the_dashboard() -> None:
    families = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in exposed() if OWN.fullmatch(name)}
    text = DASHBOARD.read_text()
    assert {family for family in families if family not in text} == set()


def test_series_are_bounded_however_many_adapters_come_and_go() -> None:
    metrics = server_metrics()
    labels = [metrics.label(f"adapter-{number}") for number in range(MOST_MODELS + 3)]
    assert labels[-3:] == [OTHER_MODELS] * 3
    assert len(set(labels)) == MOST_MODELS + 1
    assert metrics.label("adapter-0") == "adapter-0"


@pytest.mark.skipif(MISSING_HELM is not None, reason=str(MISSING_HELM))
def test_the_chart_installs_the_dashboard_and_monitors_only_if_asked() -> None:
    manifests = render(VALUES["defaults"])
    assert not of_kind(manifests, "PodMonitor")
    assert not [m for m in of_kind(manifests, "ConfigMap") if "dashboard" in m["metadata"]["name"]]
    manifests = render({"monitoring": {"dashboard": {"enabled": True}, "podMonitor": {"enabled": True}}})
    dashboard = named(manifests, "ConfigMap", "-dashboard")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(dashboard["data"]["finetune-operator.json"]) == json.loads(DASHBOARD.read_text())


@pytest.mark.skipif(MISSING_HELM is not None, reason=str(MISSING_HELM))
@pytest.mark.parametrize("values", ["namespaced", "everything set"])
def test_monitors_select_the_pods_by_their_labels_and_port(values: str) -> None:
    manifests = render(VALUES[values])
    operator = named(manifests, "Deployment", "-operator")["spec"]["template"]
    monitor = named(manifests, "PodMonitor", "-operator")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= operator["metadata"]["labels"].items()
    assert {e["port"] for e in monitor["podMetricsEndpoints"]} <= {
        port["name"] for container in operator["spec"]["containers"] for port in container["ports"]
    }
    servers = named(manifests, "PodMonitor", "-servers")["spec"]
    assert servers["selector"]["matchLabels"] == {"app.kubernetes.io/name": SERVER_APP}
    namespaces = VALUES[values].get("watchNamespaces")
    assert servers["namespaceSelector"] == ({"matchNames": namespaces} if namespaces else {"any": True})
