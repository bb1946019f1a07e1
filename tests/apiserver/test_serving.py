"""From the adapter to the verified endpoint, against the real API server and Deployment controller."""

import asyncio
import json
import time

import pytest

from finetune_api.outcome import CommittedAdapter, Outcome, Result
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import InferenceService
from finetune_operator.errors import ClusterError
from finetune_operator.io.cluster import Cluster
from finetune_operator.resources.child import with_hash
from finetune_operator.resources.serving import build_deployment, with_replicas
from support.cluster.api import Raw, wait_for
from support.cluster.fake_endpoint import (
    BASE,
    FINGERPRINT,
    TUNED,
    Behavior,
    failing,
    merged,
    refusing,
    scores,
    serving,
    serving_versions,
)
from support.cluster.kubelet_actor import Run, succeeding
from support.cluster.world import World
from support.objects.factories import an_inference_service
from support.objects.operator_objects import SETTINGS


def service_status(world: World, name: str = "tone") -> Raw:
    return (world.api.get("inferenceservices", world.namespace, name) or {}).get("status") or {}


def test_a_served_adapter_is_verified_and_then_left_alone(world: World) -> None:
    world.endpoint.behaviors[world.namespace] = serving("tone")
    world.kubelet.script(world.namespace, succeeding(fingerprint=FINGERPRINT))
    world.submit(serve={"replicas": 2})
    status = world.wait_for_phase("Succeeded", seconds=40)
    url = f"http://tone.{world.namespace}.svc.cluster.local/v1"
    assert status["serving"] == {**status["serving"], "name": "tone", "url": url, "ready": True, "verified": True}
    assert status["serving"]["state"] == "Verified"
    assert world.condition("AdapterVerified")["reason"] == "FingerprintMatched"
    assert world.api.get("poddisruptionbudgets", world.namespace, "tone-server")
    wait_for("the service to say so too", lambda: service_status(world).get("phase") == "Ready")
    assert service_status(world)["adaptersSummary"] == "1/1"
    time.sleep(1)
    writes, requests, looks = len(world.writes()), len(world.endpoint.requests), len(world.endpoint.looks)
    time.sleep(11)  # Two resyncs.
    assert world.writes()[writes:] == []
    assert [r for r in world.endpoint.requests[requests:] if r[0] == world.namespace] == []
    assert world.namespace not in world.endpoint.looks[looks:]


@pytest.mark.parametrize(
    ("behavior", "reason", "words"),
    [
        (serving("tone", tuned=BASE), "AdapterHasNoEffect", "match the base model"),
        (serving("tone", tuned=[-9.0, -9.0, -9.0]), "AdapterIncompatible", "neither"),
        (refusing("tone"), "AdapterIncompatible", "rank 64 > 16"),
    ],
)
def test_an_endpoint_without_the_tuned_weights_fails_the_job(
    world: World, behavior: Behavior, reason: str, words: str
) -> None:
    world.endpoint.behaviors[world.namespace] = behavior
    world.kubelet.script(world.namespace, succeeding(fingerprint=FINGERPRINT))
    world.submit(serve={})
    status = world.wait_for_phase("Failed", seconds=40)
    assert status["reason"] == reason
    assert words in status["message"]
    assert world.condition("AdapterVerified")["status"] == "False"
    assert status["adapter"]["uri"] == "pvc://finetune-adapters/tone"


def test_an_endpoint_that_does_not_answer_yet_is_asked_again(world: World) -> None:
    world.endpoint.behaviors[world.namespace] = failing(503)
    world.kubelet.script(world.namespace, succeeding(fingerprint=FINGERPRINT))
    world.submit(serve={})
    wait_for("the reason", lambda: world.condition("AdapterVerified").get("reason") == "EndpointUnreachable")
    world.endpoint.behaviors[world.namespace] = serving("tone")
    world.wait_for_phase("Succeeded")


def test_a_server_that_crashes_says_why_and_the_job_times_out(world: World) -> None:
    world.kubelet.server_exits[world.namespace] = "RuntimeError: adapter digest differs"
    world.kubelet.script(world.namespace, succeeding(fingerprint=FINGERPRINT))
    world.submit(serve={"timeoutSeconds": 30})
    world.wait_for_phase("Deploying")
    wait_for("its words", lambda: "adapter digest differs" in (world.status().get("message") or ""))
    status = world.wait_for_phase("Failed", seconds=45)
    assert status["reason"] == "RolloutTimeout"
    assert "adapter digest differs" in status["message"]


def test_an_adapter_without_a_fingerprint_is_served_but_never_called_verified(world: World) -> None:
    world.kubelet.script(world.namespace, succeeding())
    world.submit(serve={})
    status = world.wait_for_phase("Succeeded")
    assert status["serving"]["verified"] is False
    assert world.condition("AdapterVerified")["status"] == "Unknown"
    assert world.condition("AdapterVerified")["reason"] == "NoFingerprint"


def test_the_endpoints_state_stays_true_after_success(world: World) -> None:
    world.endpoint.behaviors[world.namespace] = serving("tone")
    world.kubelet.script(world.namespace, succeeding(fingerprint=FINGERPRINT))
    world.submit(serve={})
    world.wait_for_phase("Succeeded", seconds=40)
    world.api.delete("inferenceservices", world.namespace, "tone")
    wait_for("the status to say so", lambda: world.status()["serving"]["ready"] is False)
    assert world.status()["phase"] == "Succeeded"
    assert world.condition("Succeeded")["status"] == "True"
    assert world.api.get("inferenceservices", world.namespace, "tone") is None


def test_cancelling_a_job_that_is_being_deployed_removes_the_endpoint_and_keeps_the_adapter(world: World) -> None:
    world.endpoint.behaviors[world.namespace] = failing()
    world.kubelet.script(world.namespace, succeeding(fingerprint=FINGERPRINT))
    world.submit(serve={})
    world.wait_for_phase("Verifying", "Deploying")
    world.edit(cancel=True)
    status = world.wait_for_phase("Cancelled")
    assert status["adapter"]["name"] == "tone"
    wait_for("the endpoint to go", lambda: not world.api.list("deployments", world.namespace))


def test_a_service_of_ones_own_follows_its_spec_and_repairs_drift(world: World) -> None:
    adapter = {"name": "a", "source": "pvc://finetune-adapters/a", "fingerprint": FINGERPRINT.to_dict()}
    world.endpoint.behaviors[world.namespace] = serving("a")
    manifest = an_inference_service("chat", world.namespace, replicas=2, adapters=[adapter])
    world.api.create("inferenceservices", manifest)
    wait_for("phase Ready", lambda: service_status(world, "chat").get("phase") == "Ready")
    probes = len(world.endpoint.requests)

    world.api.patch("configmaps", world.namespace, "chat-adapters", {"data": {"adapters.json": '{"adapters": []}'}})
    wait_for("the list to be repaired", lambda: listed(world) == {"a": "/adapters/a"})
    assert len(world.endpoint.requests) == probes, "what was proven stays proven"
    world.api.patch("deployments", world.namespace, "chat-server", {"spec": {"replicas": 5}})
    wait_for("the drift to be repaired", lambda: replicas(world) == 2)
    world.api.patch("services", world.namespace, "chat", {"spec": {"selector": {"app": "evil"}}})
    labels = {"app.kubernetes.io/name": "finetune-inference", "finetune.dev/service-name": "chat"}

    def selector() -> Raw:
        return world.api.get("services", world.namespace, "chat")["spec"]["selector"]  # type: ignore[index]

    wait_for("the selector to be repaired", lambda: selector() == labels)
    world.api.patch("inferenceservices", world.namespace, "chat", {"spec": {"replicas": 1}})
    wait_for("the new size", lambda: replicas(world) == 1)
    wait_for("the budget to go", lambda: world.api.get("poddisruptionbudgets", world.namespace, "chat-server") is None)
    wait_for("phase Ready", lambda: service_status(world, "chat").get("readyReplicas") == 1)

    world.api.delete("inferenceservices", world.namespace, "chat")
    wait_for("the children to go", lambda: not world.api.list("deployments", world.namespace) and not world.pods())


def replicas(world: World) -> int:
    deployment = world.api.get("deployments", world.namespace, "chat-server")
    return deployment["spec"]["replicas"] if deployment else 0


def an_adapter(path: str, digit: str, name: str = "a") -> Raw:
    source, digest = f"pvc://finetune-adapters/{path}", f"sha256:{digit * 64}"
    return {"name": name, "source": source, "digest": digest, "fingerprint": FINGERPRINT.to_dict()}


def served_adapter(world: World) -> Raw:
    return (service_status(world, "chat").get("adapters") or [{}])[0]


def template_of(world: World) -> Raw:
    return world.api.get("deployments", world.namespace, "chat-server")["spec"]["template"]  # type: ignore[index]


def serve(world: World, *adapters: Raw, **spec: object) -> None:
    manifest = an_inference_service("chat", world.namespace, adapters=[*adapters], **spec)
    world.api.create("inferenceservices", manifest)
    wait_for("phase Ready", lambda: service_status(world, "chat").get("phase") == "Ready")


def test_adapters_are_added_replaced_and_removed_without_a_new_pod(world: World) -> None:
    world.endpoint.behaviors[world.namespace] = lambda request: scores(
        BASE if request["model"].startswith("tiny") else TUNED
    )
    serve(world, adapterClaim="finetune-adapters", replicas=2)
    template, pods = template_of(world), {pod["metadata"]["uid"] for pod in world.pods()}

    def edit(*adapters: Raw) -> None:
        world.api.patch("inferenceservices", world.namespace, "chat", {"spec": {"adapters": [*adapters]}})

    edit(an_adapter("a/1", "1"))
    wait_for("the first version", lambda: served_adapter(world).get("verifiedReplicas") == 2)
    edit(an_adapter("a/2", "2"))
    wait_for("the second version", lambda: served_adapter(world).get("served", {}).get("digest", "")[7:8] == "2")
    wait_for("its verdict", lambda: served_adapter(world)["verified"] == "True")
    assert listed(world) == {"a": "/adapters/a/2"}
    promoted = [(pod, name) for namespace, pod, name in world.endpoint.promoted if namespace == world.namespace]
    names = {pod["metadata"]["name"] for pod in world.pods()}
    assert sorted(promoted) == sorted((pod, f"a@{digit * 12}") for pod in names for digit in "12"), (
        "each once, on each pod"
    )
    edit()
    wait_for("an empty list", lambda: listed(world) == {})
    assert template_of(world) == template
    assert {pod["metadata"]["uid"] for pod in world.pods()} == pods
    notes = {pod["metadata"]["annotations"]["finetune.dev/adapter-list"] for pod in world.pods()}
    assert len(notes) == 1, "every pod was told of the same list"


def listed(world: World) -> dict[str, str]:
    data = world.api.get("configmaps", world.namespace, "chat-adapters")["data"]  # type: ignore[index]
    return {entry["name"]: entry["path"] for entry in json.loads(data["adapters.json"])["adapters"]}


def test_a_bad_new_version_never_gets_the_old_ones_traffic(world: World) -> None:
    tuned = {"a": TUNED, "a@111111111111": TUNED, "a@222222222222": BASE}
    world.endpoint.behaviors[world.namespace] = serving_versions(tuned)
    serve(world, an_adapter("a/1", "1"), replicas=2)
    lists = []
    world.api.patch("inferenceservices", world.namespace, "chat", {"spec": {"adapters": [an_adapter("a/2", "2")]}})

    def is_refused() -> bool:
        lists.append(listed(world))
        return bool(service_status(world, "chat").get("phase") == "Failed")

    wait_for("the refusal", is_refused)
    wait_for("the candidate to go", lambda: listed(world) == {"a": "/adapters/a/1"})
    assert all(found["a"] == "/adapters/a/1" for found in lists)
    adapter = served_adapter(world)
    assert (adapter["reason"], adapter["served"]["digest"]) == ("AdapterHasNoEffect", f"sha256:{'1' * 64}")
    conditions = {c["type"]: c["status"] for c in service_status(world, "chat")["conditions"]}
    assert (conditions["Ready"], conditions["AdapterVerified"]) == ("True", "False")

    def is_told() -> bool:
        events = world.api.list("events", world.namespace)
        return any(e["reason"] == "AdapterHasNoEffect" and e["regarding"]["name"] == "chat" for e in events)

    wait_for("the event", is_told)


def test_each_replica_is_asked_by_its_own_address(world: World) -> None:
    world.endpoint.behaviors[world.namespace] = serving("a")
    serve(world, an_adapter("a/1", "1"))
    first = world.pods()[0]["metadata"]["name"]
    world.endpoint.behaviors[world.namespace] = serving("a", tuned=BASE)
    world.endpoint.behaviors[f"{world.namespace}/{first}"] = serving("a")
    world.api.patch("inferenceservices", world.namespace, "chat", {"spec": {"replicas": 2}})
    wait_for("the verdict", lambda: service_status(world, "chat").get("phase") == "Failed")
    adapter = served_adapter(world)
    assert (adapter["desiredReplicas"], adapter["loadedReplicas"], adapter["verifiedReplicas"]) == (2, 2, 1)
    verdicts = {replica["pod"]: replica["reason"] for replica in adapter["replicas"]}
    assert verdicts.pop(first) == "FingerprintMatched"
    assert set(verdicts.values()) == {"AdapterHasNoEffect"}


def test_an_adapter_that_no_server_can_load_says_the_servers_reason(world: World) -> None:
    world.endpoint.behaviors[world.namespace] = serving("a")
    world.endpoint.refused["/adapters/rank-512"] = "its rank is 512; this server allows 256"
    world.api.create(
        "inferenceservices", an_inference_service("chat", world.namespace, adapters=[an_adapter("rank-512", "1")])
    )
    wait_for("the verdict", lambda: service_status(world, "chat").get("phase") == "Failed")
    adapter = served_adapter(world)
    assert (adapter["reason"], adapter["loadedReplicas"]) == ("AdapterIncompatible", 0)
    assert "its rank is 512" in adapter["message"]


def test_an_autoscaler_is_made_obeyed_and_removed(world: World) -> None:
    serve(world, autoscaling={"minReplicas": 1, "maxReplicas": 3})
    scaler = world.api.get("horizontalpodautoscalers", world.namespace, "chat-server")
    assert scaler is not None
    assert scaler["spec"]["maxReplicas"] == 3
    # What the autoscaler does when there is load; there are no metrics in this ring.
    world.api.patch("deployments", world.namespace, "chat-server", {"spec": {"replicas": 3}}, "scale")
    wait_for("three replicas", lambda: service_status(world, "chat").get("readyReplicas") == 3)
    world.api.patch("inferenceservices", world.namespace, "chat", {"spec": {"resources": {"cpu": "2"}}})
    wait_for("the new template", lambda: requested_cpu(world) == "2")
    assert replicas(world) == 3, "an edit of the service leaves the number of pods"
    world.api.patch("inferenceservices", world.namespace, "chat", {"spec": {"autoscaling": None}})
    wait_for("the old size", lambda: replicas(world) == 1)
    wait_for("the autoscaler to go", lambda: not world.api.list("horizontalpodautoscalers", world.namespace))


def test_a_write_that_was_decided_on_before_the_autoscaler_wrote_is_refused(world: World) -> None:
    serve(world, autoscaling={"minReplicas": 1, "maxReplicas": 3})
    service = InferenceService.model_validate(world.api.get("inferenceservices", world.namespace, "chat"))
    live = world.api.get("deployments", world.namespace, "chat-server")
    late = with_replicas(with_hash(build_deployment(service, SETTINGS)), service, live)
    world.api.patch("deployments", world.namespace, "chat-server", {"spec": {"replicas": 3}}, "scale")

    async def write() -> None:
        async with Cluster(str(world.plane.kubeconfig)) as cluster:
            await cluster.apply(late)

    with pytest.raises(ClusterError) as refused:
        asyncio.run(write())
    assert refused.value.is_conflict
    assert replicas(world) == 3


def requested_cpu(world: World) -> str:
    cpu: str = template_of(world)["spec"]["containers"][0]["resources"]["requests"]["cpu"]
    return cpu


def a_measured_run(digit: str, eval_loss: float) -> Run:
    adapter = CommittedAdapter(
        path=f"tone/{digit}", digest=f"sha256:{digit * 64}", size_bytes=1, fingerprint=FINGERPRINT
    )
    metrics = {"eval_loss": eval_loss}
    return Run(Outcome(result=Result.SUCCEEDED, reason=Reason.TRAINED, step=10, metrics=metrics, adapter=adapter))


def test_jobs_bring_versions_into_one_endpoint_and_a_worse_one_is_stored_only(world: World) -> None:
    world.endpoint.behaviors[world.namespace] = serving("tone")
    serve(world, adaptersFrom="Jobs", adapterClaim="finetune-adapters")
    template = template_of(world)

    def bring(name: str, digit: str, eval_loss: float, phase: str) -> Raw:
        world.kubelet.script(world.namespace, a_measured_run(digit, eval_loss))
        gate = {"metric": "eval_loss", "maxRegression": 0.02}
        spec = {"serve": {"into": "chat", "gate": gate}, "evaluation": {"fraction": 0.1}}
        world.submit(name, output={"adapterName": "tone"}, **spec)
        return world.wait_for_phase(phase, name=name, seconds=40)

    first = bring("first", "1", 0.40, "Succeeded")
    assert first["serving"]["name"] == "chat"
    bring("second", "2", 0.41, "Succeeded")
    assert served_adapter(world)["served"]["digest"] == f"sha256:{'2' * 64}"
    worse = bring("worse", "3", 0.50, "Failed")
    assert worse["reason"] == "EvalRegression"
    assert worse["adapter"]["digest"] == f"sha256:{'3' * 64}"
    assert listed(world) == {"tone": "/adapters/tone/2"}
    assert template_of(world) == template
    world.api.delete("finetunejobs", world.namespace, "second")
    wait_for("the job to go", lambda: world.job("second") is None)
    assert listed(world) == {"tone": "/adapters/tone/2"}, "the adapter stays when its job is gone"


def test_a_version_inherits_nothing_of_the_version_that_it_replaces(world: World) -> None:
    world.endpoint.behaviors[world.namespace] = serving("tone")
    written = {**an_adapter("tone/0", "0"), "name": "tone", "metrics": [{"name": "eval_loss", "value": "0.1"}]}
    serve(world, written, adaptersFrom="Jobs")
    world.kubelet.script(world.namespace, succeeding())
    world.submit(serve={"into": "chat"})
    world.wait_for_phase("Succeeded", seconds=40)
    (adapter,) = (world.api.get("inferenceservices", world.namespace, "chat") or {})["spec"]["adapters"]
    assert adapter["source"] == "pvc://finetune-adapters/tone"
    assert (adapter.get("metrics", []), adapter.get("fingerprint")) == ([], None)


def test_a_deployment_of_somebody_else_is_a_conflict_that_is_left_alone(world: World) -> None:
    labels = {"app": "theirs"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "example/none"}]}}
    spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": pod}
    metadata = {"name": "chat-server", "namespace": world.namespace}
    theirs = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}
    world.api.create("deployments", theirs)
    world.api.create("inferenceservices", an_inference_service("chat", world.namespace))
    wait_for("phase Failed", lambda: service_status(world, "chat").get("phase") == "Failed")
    assert service_status(world, "chat")["conditions"][0]["reason"] == "ChildConflict"
    assert world.api.get("deployments", world.namespace, "chat-server")["spec"]["selector"]["matchLabels"] == labels  # type: ignore[index]


ROLLING = {"rollout": {"mode": "Rolling"}}


def in_traffic(world: World) -> set[str]:
    """Versions of the adapter that ready pods were started with."""
    found = set()
    for pod in world.pods():
        if condition_of(pod, "Ready").get("status") == "True" and "deletionTimestamp" not in pod["metadata"]:
            config = json.loads(pod["metadata"]["annotations"]["finetune.dev/config"])
            found |= {adapter["path"] for adapter in config["adapters"]} or {"none"}
    return found


def condition_of(raw: Raw, kind: str) -> Raw:
    return next((c for c in raw["status"].get("conditions") or [] if c["type"] == kind), {})


def edit_service(world: World, **spec: object) -> None:
    world.api.patch("inferenceservices", world.namespace, "chat", {"spec": spec})


def test_pods_of_a_new_version_get_traffic_once_each_was_proven(world: World) -> None:
    world.endpoint.behaviors[world.namespace] = merged("a")
    serve(world, an_adapter("a/1", "1"), replicas=2, mergeAdapter=True, **ROLLING)
    assert world.api.get("configmaps", world.namespace, "chat-adapters") is None
    assert in_traffic(world) == {"/adapters/a/1"}
    world.endpoint.behaviors[world.namespace] = failing()
    edit_service(world, adapters=[an_adapter("a/2", "2")])
    wait_for("a pod of the new version", lambda: len(world.pods()) == 3)
    wait_for("it to be asked", lambda: served_adapter(world).get("reason") == "EndpointUnreachable")
    assert in_traffic(world) == {"/adapters/a/1"}
    world.endpoint.behaviors[world.namespace] = merged("a")

    def is_done() -> bool:
        assert in_traffic(world), "no moment without a pod that answers"
        return served_adapter(world).get("verified") == "True" and len(world.pods()) == 2

    wait_for("the rollout", is_done)
    assert in_traffic(world) == {"/adapters/a/2"}
    adapter = served_adapter(world)
    assert (adapter["served"]["digest"], adapter["verifiedReplicas"]) == (f"sha256:{'2' * 64}", 2)
    wait_for("phase Ready", lambda: service_status(world, "chat").get("phase") == "Ready")
    time.sleep(1)
    writes = len(world.writes())
    time.sleep(6)  # A resync.
    assert world.writes()[writes:] == [], "settled means zero writes"


def test_pods_of_a_version_without_effect_never_get_traffic_and_a_better_one_recovers(world: World) -> None:
    world.endpoint.behaviors[world.namespace] = serving("a")
    world.endpoint.ineffective.add("/adapters/a/zeroed")
    serve(world, an_adapter("a/1", "1"), **ROLLING)
    first = world.pods()[0]["metadata"]["name"]
    edit_service(world, adapters=[an_adapter("a/zeroed", "2")])

    def is_refused() -> bool:
        assert in_traffic(world) == {"/adapters/a/1"}
        return bool(service_status(world, "chat").get("phase") == "Failed")

    wait_for("the refusal", is_refused)
    conditions = {c["type"]: c for c in service_status(world, "chat")["conditions"]}
    assert {kind: c["status"] for kind, c in conditions.items()} == {
        "Ready": "True",
        "Progressing": "False",
        "AdapterVerified": "False",
    }
    verified = conditions["AdapterVerified"]
    assert verified["reason"] == "AdapterHasNoEffect"
    assert verified["message"].startswith("Adapter a: ")
    assert "Clients still get version sha256:111111111111." in verified["message"]
    world.api.delete("pods", world.namespace, first)
    wait_for("the pod to go", lambda: first not in {pod["metadata"]["name"] for pod in world.pods()})
    wait_for("one that takes its place", lambda: in_traffic(world) == {"/adapters/a/1"})
    edit_service(world, adapters=[an_adapter("a/3", "3")])
    wait_for("the better version", lambda: served_adapter(world).get("served", {}).get("digest", "")[7:8] == "3")
    wait_for("the others to go", lambda: in_traffic(world) == {"/adapters/a/3"} and len(world.pods()) == 1)


def test_a_server_that_restarts_is_proven_before_it_gets_traffic_again(world: World) -> None:
    world.endpoint.behaviors[world.namespace] = serving("a")
    serve(world, an_adapter("a/1", "1"), **ROLLING)
    (pod,) = world.pods()
    asked = len(world.endpoint.requests)
    world.endpoint.behaviors[world.namespace] = failing()
    world.kubelet.restart_server(pod)
    wait_for("the server", lambda: condition_of(world.pods()[0], "ContainersReady").get("status") == "True")
    wait_for("it to be asked", lambda: len(world.endpoint.requests) > asked)
    assert condition_of(world.pods()[0], "finetune.dev/adapters-verified")["status"] == "False"
    assert in_traffic(world) == set()
    world.endpoint.behaviors[world.namespace] = serving("a")
    wait_for("it to be let in", lambda: in_traffic(world) == {"/adapters/a/1"})
    gate = condition_of(world.pods()[0], "finetune.dev/adapters-verified")
    assert gate["reason"] == f"AdaptersVerified:{pod['metadata']['uid'].replace('-', '')}:1"


def test_the_mode_of_a_living_service_changes_both_ways_without_an_outage(world: World) -> None:
    world.endpoint.behaviors[world.namespace] = serving("a")
    serve(world, an_adapter("a/1", "1"))
    hot = {pod["metadata"]["uid"] for pod in world.pods()}

    def follow(pods: set[str]) -> None:
        def is_done() -> bool:
            assert in_traffic(world), "no moment without a pod that answers"
            assert served_adapter(world)["verified"] == "True"
            found = {pod["metadata"]["uid"] for pod in world.pods()}
            return not found & pods and service_status(world, "chat").get("phase") == "Ready"

        wait_for("the rollout", is_done)

    edit_service(world, **ROLLING)
    follow(hot)
    assert in_traffic(world) == {"/adapters/a/1"}
    assert listed(world) == {"a": "/adapters/a/1"}, "pods from before read it until they are gone"
    edit_service(world, rollout={"mode": "Hot"})
    follow({pod["metadata"]["uid"] for pod in world.pods()})
    assert in_traffic(world) == {"none"}
    edit_service(world, adapters=[an_adapter("a/2", "2")])
    wait_for("the second version", lambda: listed(world) == {"a": "/adapters/a/2"})


def test_a_job_brings_a_version_into_a_rolling_endpoint(world: World) -> None:
    world.endpoint.behaviors[world.namespace] = serving("tone")
    serve(world, adaptersFrom="Jobs", adapterClaim="finetune-adapters", **ROLLING)
    world.kubelet.script(world.namespace, a_measured_run("1", 0.4))
    world.submit("first", output={"adapterName": "tone"}, serve={"into": "chat"})
    world.wait_for_phase("Succeeded", name="first", seconds=40)
    assert in_traffic(world) == {"/adapters/tone/1"}
    edit_service(world, mergeAdapter=True)
    wait_for("phase Ready", lambda: service_status(world, "chat").get("phase") == "Ready")
    world.kubelet.script(world.namespace, a_measured_run("2", 0.4))
    world.submit("second", output={"adapterName": "other"}, serve={"into": "chat"})
    status = world.wait_for_phase("Failed", name="second", seconds=40)
    assert "mergeAdapter needs exactly one adapter" in status["message"]
