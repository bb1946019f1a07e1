"""The chart on a real API server: accepted under Pod Security `restricted`, installed, upgraded, uninstalled."""

import base64
import copy
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lab.kubernetes.controlplane import ControlPlane
from support.cluster.api import Api, Raw, wait_for
from support.cluster.chart import CHART, NAMESPACE, VALUES, of_kind, render
from support.cluster.chart_cluster import install, uninstall, would_accept
from support.cluster.planes import missing
from support.objects.factories import a_finetune_job

MISSING = missing(["helm"])
pytestmark = [
    pytest.mark.apiserver,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]

SAMPLES = Path(__file__).resolve().parents[2] / "crds" / "samples"
SECRET = f"/api/v1/namespaces/{NAMESPACE}/secrets"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture
def installed(plane: ControlPlane, api: Api) -> Iterator[Raw]:
    """The chart with default values; the Secret of its Redis."""
    install(plane)
    yield plane.admin.get(f"{SECRET}/finetune-redis")["data"]
    uninstall(plane)


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_everything_that_is_rendered_is_accepted_in_a_restricted_namespace(
    values: Raw, plane: ControlPlane, api: Api
) -> None:
    manifests = render(values)
    for manifest in manifests:
        # The Prometheus operator's kind is not installed here.
        if manifest["kind"] != "PodMonitor":
            would_accept(plane, manifest)
    # Pod Security looks at pods; a Deployment would only be warned about.
    for deployment in of_kind(manifests, "Deployment"):
        pod = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(deployment["spec"]["template"])}
        pod["metadata"] |= {"name": "x", "namespace": NAMESPACE}
        # Admission looks these up, and they are not there in a dry run.
        for reference in ("serviceAccountName", "priorityClassName"):
            pod["spec"].pop(reference, None)
        would_accept(plane, pod)


def test_an_upgrade_keeps_passwords_and_a_reinstall_keeps_jobs(plane: ControlPlane, api: Api) -> None:
    assert "has been upgraded" not in install(plane)
    first = plane.admin.get(f"{SECRET}/finetune-redis")["data"]
    broker = plane.admin.get(f"{SECRET}/finetune-broker")["data"]["url"]
    wait_for("the kind", lambda: api.create("finetunejobs", a_finetune_job("kept", "team-a")))

    install(plane, {"gateway": {"enabled": False}})
    assert plane.admin.get(f"{SECRET}/finetune-redis")["data"] == first
    assert plane.admin.get(f"{SECRET}/finetune-broker")["data"]["url"] == broker
    assert api.get("deployments", NAMESPACE, "finetune-gateway") is None

    assert "CustomResourceDefinition" in uninstall(plane)
    assert api.get("finetunejobs", "team-a", "kept") is not None
    assert api.get("deployments", NAMESPACE, "finetune-operator") is None

    install(plane)
    assert api.get("finetunejobs", "team-a", "kept") is not None
    uninstall(plane)


def test_an_upgrade_reaches_the_crds(plane: ControlPlane, api: Api, installed: Raw) -> None:
    path = f"{CRDS}/finetunejobs.finetune.dev"
    wanted = plane.admin.get(path)["spec"]["versions"][0]["additionalPrinterColumns"]
    # As an older release would have left it.
    old = [{"op": "replace", "path": "/spec/versions/0/additionalPrinterColumns", "value": wanted[:1]}]
    plane.admin._call("PATCH", path, old, content_type="application/json-patch+json")  # type: ignore[arg-type]
    assert len(plane.admin.get(path)["spec"]["versions"][0]["additionalPrinterColumns"]) == 1
    # Helm compares releases, so a release has to differ for its objects to be looked at: they all are.
    install(plane, {"operator": {"logLevel": "DEBUG"}})
    assert plane.admin.get(path)["spec"]["versions"][0]["additionalPrinterColumns"] == wanted


def test_a_trainer_and_the_operator_have_different_passwords(installed: Raw) -> None:
    operator, trainer = (base64.b64decode(installed[f"{who}-password"]) for who in ("operator", "trainer"))
    assert operator != trainer
    assert len(operator) == len(trainer) == 32


def test_samples_are_accepted(plane: ControlPlane, api: Api, installed: Raw) -> None:
    found = 0
    for file in sorted(SAMPLES.glob("*.yaml")):
        for manifest in yaml.safe_load_all(file.read_text()):
            if manifest["kind"] in ("FinetuneJob", "InferenceService"):
                manifest["metadata"].setdefault("namespace", "team-a")
                would_accept(plane, manifest)
                found += 1
    assert found, f"no samples in {SAMPLES}"


def test_the_manifests_of_the_charts_page_are_accepted(plane: ControlPlane, api: Api) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL)
    manifests = [m for block in blocks for m in yaml.safe_load_all(block)]
    assert manifests
    for manifest in manifests:
        manifest["metadata"]["namespace"] = "team-a"
        would_accept(plane, manifest)
