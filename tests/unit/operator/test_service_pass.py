"""What one pass over an InferenceService reads, makes, probes and reports, with servers on loopback."""

import asyncio
import json
import logging
from typing import Any

import pytest
from pydantic import SecretStr

from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import InferenceService
from finetune_operator.errors import ClusterError
from finetune_operator.io.probe import ProbeResult
from finetune_operator.reconcile.context import Context, ReconcileResult
from finetune_operator.reconcile.service import reconcile as inference_service
from finetune_operator.reconcile.service.adapter_verdicts import ProbeRequest
from finetune_operator.reconcile.service.readiness_gates import ReadinessGate, build_gate_condition
from finetune_operator.reconcile.service.reconcile import reconcile_inference_service
from finetune_operator.reconcile.service.server_pod import ServerPod
from support.cluster.fake_endpoint import BASE, FINGERPRINT, FakeEndpoint, serving
from support.cluster.stored_objects import StoredObjects
from support.objects.factories import an_inference_service
from support.objects.operator_objects import NOW, SETTINGS, UID, a_service

DIGEST = f"sha256:{'0' * 64}"
ADAPTER = {"name": "a", "source": "pvc://c/a", "digest": DIGEST, "fingerprint": FINGERPRINT.to_dict()}
CANDIDATE = f"a@{'0' * 12}"
ROLLING = {"rollout": {"mode": "Rolling"}}
PODS = {"app.kubernetes.io/name": "finetune-inference", "finetune.dev/service-name": "tone"}
KEY = SecretStr("a key")


def stored(**spec: Any) -> StoredObjects:
    raw = an_inference_service(**spec)
    raw["metadata"] |= {"uid": UID, "generation": 1, "resourceVersion": "7"}
    return StoredObjects(raw)


def reconcile(objects: StoredObjects, **settings: Any) -> ReconcileResult:
    context = Context(cluster=objects, progress=None, settings=SETTINGS.model_copy(update=settings))  # type: ignore[arg-type]
    return asyncio.run(reconcile_inference_service(context, "ml", "tone"))


def rolled_out(**spec: Any) -> StoredObjects:
    """A service whose children were made, with one pod that answers."""
    objects = stored(**spec)
    reconcile(objects)
    deployment = objects.objects["deployments", "tone-server"]
    deployment["metadata"] |= {"generation": 1, "resourceVersion": "8", "uid": "deployment"}
    counts = {"replicas": 1, "updatedReplicas": 1, "readyReplicas": 1}
    deployment["status"] = {"observedGeneration": 1, **counts}
    template = deployment["spec"]["template"]
    state = {"name": "server", "state": {"running": {"startedAt": "2026-01-02T03:04:05Z"}}}
    kinds = ("Ready", "ContainersReady") if "rollout" not in spec else ("ContainersReady",)
    conditions = [{"type": kind, "status": "True"} for kind in kinds]
    metadata = {"name": "s0", "uid": "u0", "resourceVersion": "9", "labels": PODS, **template["metadata"]}
    pod = {
        "metadata": {**metadata, "labels": PODS},
        "spec": {"readinessGates": template["spec"].get("readinessGates")},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": conditions, "containerStatuses": [state]},
    }
    objects.put(pod, "pods")
    objects.put({"metadata": {"name": "stranger", "labels": {}}, "status": {"phase": "Running"}}, "pods")
    objects.writes.clear()
    return objects


def status_of(objects: StoredObjects) -> dict[str, Any]:
    status: dict[str, Any] = objects.objects["inferenceservices", "tone"]["status"]
    InferenceService.model_validate(objects.objects["inferenceservices", "tone"])
    return status


def listed(objects: StoredObjects) -> list[dict[str, Any]]:
    """Adapters that servers find in their list."""
    if ("configmaps", "tone-adapters") not in objects.objects:
        return [{"name": "a", "path": "/adapters/a", "digest": DIGEST}]
    entries: list[dict[str, Any]] = json.loads(objects.objects["configmaps", "tone-adapters"]["data"]["adapters.json"])[
        "adapters"
    ]
    return entries


def endpoint_for(objects: StoredObjects) -> FakeEndpoint:
    endpoint = FakeEndpoint(lambda *_: listed(objects))
    endpoint.behaviors["ml"] = serving("a")
    return endpoint


def test_a_service_that_is_gone_needs_nothing() -> None:
    objects = StoredObjects()
    assert (reconcile(objects), objects.writes) == (ReconcileResult(), [])


def test_a_new_service_gets_its_children_and_then_a_status() -> None:
    objects = stored(replicas=2, autoscaling={"maxReplicas": 3})
    assert reconcile(objects) == ReconcileResult(acted=True)
    assert objects.writes == [
        ("apply", "configmaps", "tone-adapters", "finetune-operator"),
        ("apply", "deployments", "tone-server", "finetune-operator"),
        ("apply", "services", "tone", "finetune-operator"),
        ("apply", "poddisruptionbudgets", "tone-server", "finetune-operator"),
        ("apply", "horizontalpodautoscalers", "tone-server", "finetune-operator"),
    ]
    assert not objects.objects["inferenceservices", "tone"].get("status")
    objects.objects["deployments", "tone-server"]["metadata"] |= {"generation": 1, "resourceVersion": "8"}
    reconcile(objects)
    assert objects.writes[5:] == [("patch_status", "inferenceservices", "tone")], "all children are known"
    assert status_of(objects)["phase"] == "Deploying"


def test_a_child_that_is_not_wanted_any_more_is_deleted_by_uid() -> None:
    objects = stored(replicas=2)
    reconcile(objects)
    objects.objects["poddisruptionbudgets", "tone-server"]["metadata"]["uid"] = "budget"
    objects.objects["inferenceservices", "tone"]["spec"]["replicas"] = 1
    objects.writes.clear()
    reconcile(objects)
    assert objects.writes[-1] == ("delete", "poddisruptionbudgets", "tone-server", "budget")


@pytest.mark.parametrize(("status", "is_final"), [(422, True), (403, False), (500, False)])
def test_a_child_that_can_never_be_stored_is_reported_and_any_other_is_tried_again(status: int, is_final: bool) -> None:
    objects = stored()
    objects.refusals["Deployment"] = status
    if not is_final:
        with pytest.raises(ClusterError):
            reconcile(objects)
        return
    assert reconcile(objects) == ReconcileResult()
    (condition,) = status_of(objects)["conditions"]
    message = "cannot apply deployments tone-server: 422: a policy forbids it"
    assert (condition["type"], condition["status"], condition["reason"]) == ("Ready", "False", "SpecInvalid")
    assert (condition["message"], status_of(objects)["phase"]) == (message, "Failed")


def test_an_adapter_is_verified_as_a_candidate_then_by_its_name_and_then_left_alone() -> None:
    objects = rolled_out(adapters=[ADAPTER])
    with endpoint_for(objects) as endpoint:
        settings = {"server_url_template": endpoint.url + "/{namespace}/{pod}", "promotion_key": KEY}
        assert reconcile(objects, **settings).requeue_after == 0.0
        assert [entry["name"] for entry in listed(objects)] == ["a"], "clients wait for no other pass"
        assert endpoint.promoted == [("ml", "s0", CANDIDATE)]
        assert {request["model"] for _, request in endpoint.requests} == {CANDIDATE, "tiny"}
        annotated = [write for write in objects.writes if write[0] == "annotate"]
        assert {write[:4] for write in annotated} == {("annotate", "pods", "s0", "u0")}
        assert set(annotated[0][4]) == {"finetune.dev/adapter-list"}
        objects.objects["pods", "s0"]["metadata"]["annotations"] |= annotated[-1][4]
        endpoint.requests.clear()
        assert reconcile(objects, **settings).requeue_after is None
        assert {request["model"] for _, request in endpoint.requests} == {"a", "tiny"}
        status = status_of(objects)
        assert (status["phase"], status["adaptersSummary"]) == ("Ready", "1/1")
        endpoint.requests.clear()
        objects.writes.clear()
        assert reconcile(objects, **settings) == ReconcileResult()
        assert (endpoint.requests, objects.writes) == ([], [])


def test_the_gate_of_a_pod_that_was_verified_is_opened_as_the_pod_was_read() -> None:
    objects = rolled_out(adapters=[ADAPTER], **ROLLING)
    with endpoint_for(objects) as endpoint:
        reconcile(objects, server_url_template=endpoint.url + "/{namespace}/{pod}")
    gate = ("patch_condition", "pods", "s0", "u0", "9", "finetune.dev/adapters-verified", "True")
    assert objects.writes == [
        ("patch_status", "inferenceservices", "tone"),
        ("patch_status", "inferenceservices", "tone"),
        gate,
    ]


@pytest.mark.parametrize("change", ["generation", "uid", "gone"])
def test_a_verdict_about_an_object_that_was_edited_meanwhile_is_not_written(change: str) -> None:
    objects = rolled_out(adapters=[ADAPTER])

    def edit(*_: Any) -> list[dict[str, Any]]:
        if change == "gone":
            objects.objects.pop(("inferenceservices", "tone"), None)
        else:
            objects.objects["inferenceservices", "tone"]["metadata"][change] = {"generation": 2, "uid": "x"}[change]
        return [{"name": CANDIDATE, "path": "/adapters/a", "digest": DIGEST}]

    with FakeEndpoint(edit) as endpoint:
        endpoint.behaviors["ml"] = serving("a")
        result = reconcile(objects, server_url_template=endpoint.url + "/{namespace}/{pod}")
    assert (result.requeue_after, [write[0] for write in objects.writes].count("patch_status")) == (0.0, 1)


def test_a_verdict_about_a_rollout_that_changed_meanwhile_is_not_written() -> None:
    objects = rolled_out(adapters=[ADAPTER])

    def undo(*_: Any) -> list[dict[str, Any]]:
        objects.objects.pop(("services", "tone"), None)
        return [{"name": CANDIDATE, "path": "/adapters/a", "digest": DIGEST}]

    with FakeEndpoint(undo) as endpoint:
        endpoint.behaviors["ml"] = serving("a")
        result = reconcile(objects, server_url_template=endpoint.url + "/{namespace}/{pod}")
    assert (result.requeue_after, [write[0] for write in objects.writes].count("patch_status")) == (0.0, 1)


POD = ServerPod(name="s0", uid="u0", address="10.0.0.1")


def probe(
    endpoint_lists: Any, *adapters: dict[str, Any], behavior: Any = None, **settings: Any
) -> dict[Any, ProbeResult]:
    """Probe one pod for these adapters under their own names; what it answered by the key of the request."""
    service = a_service(adapters=[*adapters])
    requests = tuple(ProbeRequest(POD, adapter, adapter.name, adapter.digest) for adapter in service.spec.adapters)
    with FakeEndpoint(endpoint_lists) as endpoint:
        endpoint.behaviors["ml"] = behavior or serving("a")
        url = {"server_url_template": endpoint.url + "/{namespace}/{pod}", "probe_timeout_seconds": 5.0}
        context = Context(None, None, SETTINGS.model_copy(update={**url, **settings}))  # type: ignore[arg-type]
        return asyncio.run(inference_service._probe(context, service, requests))


def test_what_a_pod_answers_is_a_verdict_with_the_digest_that_it_reported() -> None:
    listed = [{"name": name, "path": f"/{name}", "digest": DIGEST} for name in ("a", "b", "c")]
    found = probe(lambda *_: listed, ADAPTER, {**ADAPTER, "name": "b"}, {"name": "c", "source": "pvc://c/c"})
    assert {key: (answer.verified, answer.reason, answer.digest) for key, answer in found.items()} == {
        ("s0", 0, "a"): ("True", "FingerprintMatched", DIGEST),
        ("s0", 0, "b"): ("False", "AdapterHasNoEffect", DIGEST),
        ("s0", 0, "c"): ("Unknown", "NoFingerprint", DIGEST),
    }
    assert found["s0", 0, "c"].message == "The adapter was given without a fingerprint."


def test_a_version_that_a_server_loads_is_waited_for_and_one_that_never_comes_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []

    def soon(*_: Any) -> list[dict[str, Any]]:
        looks.append(1)
        return [{"name": "a", "path": "/a", "digest": DIGEST}] if len(looks) > 4 else []

    (answer,) = probe(soon, ADAPTER).values()
    assert (answer.verified, answer.loaded) == ("True", True)
    monkeypatch.setattr(inference_service, "LOADING_SECONDS", 0.1)
    (answer,) = probe(lambda *_: [], ADAPTER).values()
    assert (answer.verified, answer.loaded, answer.reason, answer.digest) == ("Unknown", False, "Loading", None)


def test_a_server_that_does_not_answer_is_unreachable_and_is_not_waited_for() -> None:
    service = a_service(adapters=[ADAPTER])
    request = ProbeRequest(POD, service.spec.adapters[0], "a", DIGEST)
    context = Context(None, None, SETTINGS.model_copy(update={"server_url_template": "http://127.0.0.1:9"}))  # type: ignore[arg-type]
    (answer,) = asyncio.run(inference_service._probe(context, service, (request,))).values()
    assert (answer.verified, answer.reason, answer.loaded) == ("Unknown", Reason.ENDPOINT_UNREACHABLE, False)


def test_a_disproven_adapter_is_reported_with_what_it_answered_like() -> None:
    objects = rolled_out(adapters=[ADAPTER])
    with endpoint_for(objects) as endpoint:
        endpoint.behaviors["ml"] = serving("a", tuned=BASE)
        reconcile(objects, server_url_template=endpoint.url + "/{namespace}/{pod}")
    (adapter,) = status_of(objects)["adapters"]
    assert (adapter["verified"], adapter["reason"]) == ("False", "AdapterHasNoEffect")
    assert [event["reason"] for event in objects.events] == ["EndpointReady", "AdapterHasNoEffect"]
    assert listed(objects) == [], "it leaves the servers' memory in the same pass"


def test_a_malformed_service_gets_a_condition_and_nothing_else_happens() -> None:
    objects = stored(replicas="many")
    assert reconcile(objects) == ReconcileResult()
    assert objects.writes == [("patch_status", "inferenceservices", "tone")]
    (condition,) = objects.objects["inferenceservices", "tone"]["status"]["conditions"]
    assert (condition["type"], condition["reason"]) == ("Ready", "SpecInvalid")
    assert "spec.replicas" in condition["message"]


def test_a_gates_condition_is_what_the_kubelet_compares_and_people_read() -> None:
    pod = ServerPod(name="s0", uid="0a-1b", restarts=2, has_readiness_gate=True)
    opened = {
        "type": "finetune.dev/adapters-verified",
        "status": "True",
        "reason": "AdaptersVerified:0a1b:2",
        "message": "Every adapter was verified on this server process (restarts: 2).",
        "lastTransitionTime": "2026-01-02T03:04:05Z",
    }
    assert build_gate_condition(ReadinessGate(pod, is_open=True), NOW) == opened
    closed = ServerPod(name="s0", uid="0a-1b", verified_process="AdaptersVerified:0a1b:1")
    assert build_gate_condition(ReadinessGate(closed, is_open=False), NOW) == {
        **opened,
        "status": "False",
        "reason": "Verifying",
        "message": "The server restarted; its adapters are not verified yet.",
    }


def test_each_line_of_the_log_names_its_objects(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="finetune_operator"):
        for spec in ({}, ROLLING):
            objects = rolled_out(adapters=[ADAPTER], **spec)
            with endpoint_for(objects) as endpoint:
                settings = {"server_url_template": endpoint.url + "/{namespace}/{pod}", "promotion_key": KEY}
                reconcile(objects, **settings)
        objects = stored(replicas=2)
        reconcile(objects)
        objects.objects["poddisruptionbudgets", "tone-server"]["metadata"]["uid"] = "budget"
        objects.objects["inferenceservices", "tone"]["spec"]["replicas"] = 1
        reconcile(objects)
    names = ("service", "object", "child", "pod", "adapter", "reason", "phase")
    lines = {
        (record.message, *(f"{name}={record.__dict__[name]}" for name in names if name in record.__dict__))
        for record in caplog.records
        if record.name.startswith("finetune_operator.reconcile")
    }
    assert lines >= {
        ("applied", "service=ml/tone", "child=ConfigMap/tone-adapters"),
        ("applied", "service=ml/tone", "child=Deployment/tone-server"),
        ("deleted", "service=ml/tone", "child=PodDisruptionBudget/tone-server"),
        ("probed", "service=ml/tone", "pod=s0", f"adapter={CANDIDATE}", "reason=FingerprintMatched"),
        ("promoted", "service=ml/tone", "pod=s0", f"adapter={CANDIDATE}"),
        ("readiness gate opened", "service=ml/tone", "pod=s0"),
        ("status", "object=ml/tone", "reason=None", "phase=Verifying"),
    }
