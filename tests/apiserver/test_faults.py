"""What must hold when the operator dies, when the API server goes away, and when one object is broken."""

import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.reasons import Reason
from lab.figures import Figure, record
from support.cluster.api import Api, Raw, wait_for
from support.cluster.fake_endpoint import FINGERPRINT, serving
from support.cluster.kubelet_actor import FOREVER, Run, failing, succeeding
from support.cluster.world import REPOSITORY, World
from support.objects.factories import a_finetune_job, an_inference_service


def test_a_killed_operator_goes_on_where_it_was(world: World) -> None:
    """SIGKILL after the Job was created, while it runs, and between the trainer's end and the report of it."""
    world.kubelet.script(world.namespace, replace(succeeding(), seconds=FOREVER))
    world.submit()
    wait_for("the Job", world.jobs, pause=0.01)
    world.operator.restart()
    world.wait_for_phase("Running")
    world.operator.kill()
    (pod,) = world.pods()
    world.kubelet.finish_now(pod["metadata"]["uid"])
    wait_for("the pod's end", lambda: world.pods()[0]["status"].get("phase") == "Succeeded")
    assert world.status()["phase"] == "Running"
    world.operator.start()
    status = world.wait_for_phase("Succeeded")
    assert (status["attempt"], len(world.jobs()), len(world.pods())) == (1, 1, 1)


def test_an_operator_killed_between_failure_and_retry_counts_it_once(world: World) -> None:
    world.kubelet.script(world.namespace, failing(Reason.LOSS_DIVERGED, retryable=True), succeeding())
    world.submit()
    world.wait_for_phase("Retrying")
    world.operator.restart()
    status = world.wait_for_phase("Succeeded")
    assert (status["attempt"], status["failedAttempts"]) == (2, 1)


def test_an_operator_killed_before_the_endpoint_exists_makes_one(world: World) -> None:
    world.endpoint.behaviors[world.namespace] = serving("tone")
    world.kubelet.script(world.namespace, succeeding(fingerprint=FINGERPRINT))
    world.submit(serve={})
    wait_for("the adapter in status", lambda: world.status().get("adapter"), pause=0.01)
    world.operator.restart()
    world.wait_for_phase("Succeeded", seconds=40)
    assert len(world.api.list("inferenceservices", world.namespace)) == 1


@pytest.mark.parametrize("ending", ["Succeeded", "Failed", "Cancelled"])
def test_what_has_ended_stays_ended(world: World, ending: str) -> None:
    run = failing(Reason.MODEL_INVALID, retryable=False) if ending == "Failed" else succeeding()
    world.kubelet.script(world.namespace, run)
    world.submit(**({"cancel": True} if ending == "Cancelled" else {}))
    before = world.wait_for_phase(ending)
    for child in world.jobs():
        world.api.delete("jobs", world.namespace, child["metadata"]["name"])
    wait_for("the children to be gone", lambda: not world.jobs() and not world.pods())
    world.operator.restart()
    world.edit(suspend=True)
    world.edit(suspend=False)
    time.sleep(6)
    assert world.jobs() == []
    after = world.status()
    assert {**after, "observedGeneration": 0, "conditions": []} == {**before, "observedGeneration": 0, "conditions": []}
    assert after["observedGeneration"] == 3


def test_the_operator_ends_cleanly_when_asked(world: World) -> None:
    assert world.operator.stop() == 0
    world.operator.start()


def test_a_restarted_api_server_is_noticed_by_the_same_process(world: World) -> None:
    started = time.monotonic()
    world.kubelet.script(world.namespace, Run(seconds=FOREVER), succeeding())
    world.submit()
    world.wait_for_phase("Running")
    process = world.operator.process
    world.plane._supervisor.stop("kube-apiserver", seconds=0)
    try:
        wait_for("the operator to notice", lambda: not world.operator.answers("/readyz"))
        assert world.operator.answers("/healthz"), "an outage of the API server is no reason to restart the operator"
    finally:
        world.plane.launch()
        world.plane.wait_until_ready()
    back = time.monotonic()
    world.api.delete("pods", world.namespace, world.pods()[0]["metadata"]["name"])
    world.wait_for_phase("Succeeded")
    wait_for("the operator to be ready", lambda: world.operator.answers("/readyz"))
    seconds = round(time.monotonic() - back, 1)
    assert world.operator.process is process
    assert world.operator.is_alive
    figure = Figure(
        "seconds from the API server's return to a finished retry and a ready watch",
        seconds,
        "s",
        "lower",
        must=30,
        aim=10,
    )
    record("operator-outage", [figure], time.monotonic() - started)


def test_a_malformed_object_disturbs_nobody(world: World, relaxed_crds: None) -> None:
    manifest = a_finetune_job("broken", world.namespace, model={"source": "s3://bucket/secret-value"})
    world.api.create("finetunejobs", manifest)
    service = an_inference_service("broken", world.namespace, replicas="many")
    world.api.create("inferenceservices", service)
    world.kubelet.script(world.namespace, succeeding())
    world.submit("healthy")
    assert world.wait_for_phase("Succeeded", name="healthy")["attempt"] == 1
    wait_for("the broken job to be told", lambda: world.condition("Validated", "broken").get("status") == "False")
    condition = world.condition("Validated", "broken")
    assert condition["reason"] == "SpecInvalid"
    assert "spec.model.source" in condition["message"]

    def has_settled() -> bool:
        # Events are written after the status that they speak of.
        before = len(world.writes())
        time.sleep(1.5)
        return len(world.writes()) == before

    wait_for("the last event to be written", has_settled)
    writes = len(world.writes())
    time.sleep(6)
    assert world.writes()[writes:] == []
    lines = [line for line in world.operator.log.read_text().splitlines() if f"{world.namespace}/broken" in line]
    assert 0 < len([line for line in lines if "malformed" in line]) <= 2


POISON: list[Raw] = [
    {"status": "text"},
    {"status": ["list"]},
    {"status": {"phase": {"a": "map"}}},
    {"status": {"phase": ["list"]}},
    {"spec": ..., "status": {"phase": "Succeeded", "observedGeneration": 1}},
    {"spec": None, "status": {"phase": "Failed"}},
    {"status": {"phase": "Succeeded", "conditions": "none", "adapter": [1]}},
    {
        "metadata": {"labels": {"finetune.dev/service-name": ""}, "annotations": {"a": "b"}},
        "status": {"attempt": "one"},
    },
]
"""Fields of stored objects under a CRD that lets them pass; `...` removes a field."""


def test_poisoned_objects_end_nothing_and_are_told(world: World, relaxed_crds: None) -> None:
    """The start reads all of them at once."""
    world.operator.kill()
    names = [f"broken-{number}" for number in range(len(POISON))]
    for name, fields in zip(names, POISON, strict=True):
        for kind, manifest in (
            ("finetunejobs", a_finetune_job(name, world.namespace)),
            ("inferenceservices", an_inference_service(name, world.namespace)),
        ):
            stored = {key: value for key, value in {**manifest, **fields}.items() if value is not ...}
            stored["metadata"] = {**manifest["metadata"], **fields.get("metadata", {})}
            live = world.api.create(kind, {key: value for key, value in stored.items() if key != "status"})
            path = world.api.path(kind, world.namespace, name, "status")
            world.api.client._call("PUT", path, {**live, "status": fields["status"]})
    world.operator.start()
    # Jobs whose status was replaced by a report are whole again, and run, too.
    world.kubelet.script(world.namespace, *(succeeding() for _ in range(20)))
    world.submit("healthy")
    assert world.wait_for_phase("Succeeded", name="healthy", seconds=90)["attempt"] == 1

    def told() -> set[str]:
        events = world.api.list("events", world.namespace)
        return {event["regarding"]["name"] for event in events if event["reason"] == "SpecInvalid"}

    wait_for("an event about each", lambda: told() == set(names))
    assert world.operator.is_alive
    assert world.operator.answers("/healthz")
    assert world.status("broken-5") == {"phase": "Failed"}, "what has ended stays ended"


@pytest.fixture
def relaxed_crds(api: Api) -> Any:
    """CRDs whose spec takes anything, as after a rollback of the CRDs; the strict ones come back afterwards."""
    for file in crd_files():
        crd = yaml.safe_load(file.read_text())
        relaxed = copy.deepcopy(crd)
        properties = relaxed["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
        properties["spec"] = {"type": "object", "nullable": True, "x-kubernetes-preserve-unknown-fields": True}
        properties["status"] = {"x-kubernetes-preserve-unknown-fields": True}
        relaxed["spec"]["versions"][0]["schema"]["openAPIV3Schema"].pop("required", None)
        relaxed["spec"]["versions"][0]["schema"]["openAPIV3Schema"].pop("x-kubernetes-validations", None)
        relaxed["spec"]["versions"][0].pop("additionalPrinterColumns", None)
        if "scale" in relaxed["spec"]["versions"][0].get("subresources", {}):
            del relaxed["spec"]["versions"][0]["subresources"]["scale"]
        replace_crd(api, relaxed)
    time.sleep(1)
    yield
    for plural in ("finetunejobs", "inferenceservices"):
        for item in api.list(plural):
            if item["metadata"]["name"].startswith("broken"):
                api.delete(plural, item["metadata"]["namespace"], item["metadata"]["name"])
    for file in crd_files():
        replace_crd(api, yaml.safe_load(file.read_text()))
    time.sleep(1)


def crd_files() -> list[Path]:
    return sorted((REPOSITORY / "crds").glob("*.yaml"))


def replace_crd(api: Api, crd: Raw) -> None:
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
    live = api.client.get(path)
    crd["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
    api.client._call("PUT", path, crd)
