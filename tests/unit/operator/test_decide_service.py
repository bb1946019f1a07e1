"""What happens next to an InferenceService, situation by situation."""

from copy import deepcopy
from datetime import timedelta
from typing import Any

import pytest
from operator_objects import CREATED, FINGERPRINT, NOW, SETTINGS, UID, a_pod, a_service, condition

from finetune_api.reasons import ConditionType, Reason
from finetune_api.v1alpha1 import InferenceService, InferenceServiceStatus
from finetune_operator.probe import ProbeResult
from finetune_operator.reconcile.decide_service import REPAIR_SECONDS, ServiceObserved, ServicePlan, decide_service
from finetune_operator.reconcile.views import ContainerEnd
from finetune_operator.resources.serving import build_serving_children

ADAPTER = {"name": "a", "source": "pvc://c/a", "digest": f"sha256:{'0' * 64}", "fingerprint": FINGERPRINT.to_dict()}
MATCHED = {"a": ProbeResult("True", Reason.FINGERPRINT_MATCHED, "0.001")}


def live(service: InferenceService, ready: int = 0, **status: Any) -> dict[str, Any]:
    """The children as applied, with a Deployment of which `ready` pods are ready."""
    children = {child["kind"]: deepcopy(child) for child in build_serving_children(service, SETTINGS)}
    wanted = service.spec.replicas
    counts = {"observedGeneration": 1, "replicas": wanted, "updatedReplicas": wanted, "readyReplicas": ready, **status}
    deployment = children["Deployment"]
    metadata = {**deployment["metadata"], "generation": 1}
    return {**children, "Deployment": {**deployment, "metadata": metadata, "status": counts}}


def plan_for(service: InferenceService, objects: Any = None, verdicts: Any = None, **seen: Any) -> ServicePlan:
    observed = ServiceObserved(live=objects or {}, **seen)
    return decide_service(service, observed, verdicts or {}, NOW, SETTINGS)


def with_status(service: InferenceService, status: InferenceServiceStatus) -> InferenceService:
    reread = InferenceServiceStatus.model_validate(status.to_dict())
    return service.model_copy(update={"status": reread})


def test_missing_children_are_applied() -> None:
    assert [m["kind"] for m in plan_for(a_service()).apply] == ["Deployment", "Service"]
    assert [m["kind"] for m in plan_for(a_service(replicas=2)).apply] == [
        "Deployment",
        "Service",
        "PodDisruptionBudget",
    ]


def test_what_others_add_to_a_deployment_is_not_repaired_for_ever() -> None:
    service = a_service()
    objects = live(service, ready=1)
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    pod["containers"].append({"name": "sidecar", "image": "mesh"})
    pod["containers"][0]["env"].append({"name": "ADDED", "value": "1"})
    pod["volumes"].append({"name": "certificates", "emptyDir": {}})
    plan = plan_for(service, objects)
    assert (plan.apply, plan.status.phase) == ((), "Ready")


def test_a_child_that_others_edit_again_and_again_does_not_keep_the_status_from_being_true() -> None:
    service = a_service()
    objects = live(service, ready=1)
    objects["Service"]["spec"]["selector"]["added"] = "by somebody"
    plan = plan_for(service, objects)
    assert [child["kind"] for child in plan.apply] == ["Service"]
    assert (plan.status.phase, plan.requeue_after) == ("Ready", REPAIR_SECONDS)


def test_a_new_spec_is_rolled_out_before_anything_is_said_about_it() -> None:
    service = a_service(replicas=3)
    plan = plan_for(service, live(a_service(), ready=1))
    assert "Deployment" in [child["kind"] for child in plan.apply]
    assert plan.status == service.status


def test_a_budget_that_is_not_needed_any_more_is_deleted() -> None:
    objects = live(a_service(replicas=2))
    plan = plan_for(a_service(), {**live(a_service()), "PodDisruptionBudget": objects["PodDisruptionBudget"]})
    assert plan.delete_budget == objects["PodDisruptionBudget"]


def test_a_rollout_under_way_is_reported_and_not_probed() -> None:
    service = a_service(adapters=[ADAPTER])
    plan = plan_for(service, live(service))
    assert (plan.status.phase, plan.probes) == ("Deploying", ())
    assert condition(plan.status, ConditionType.READY) == ("False", "RollingOut")
    assert condition(plan.status, ConditionType.PROGRESSING) == ("True", "RollingOut")
    assert plan.status.url == "http://tone.ml.svc.cluster.local/v1"
    assert plan.status.model_name == "tiny"


@pytest.mark.parametrize(
    ("pod", "reason", "words"),
    [
        (a_pod(unschedulable=("Unschedulable", "no GPU")), "Unschedulable", "no GPU"),
        (a_pod(waiting=("ImagePullBackOff", "x")), "ImagePullFailed", "image"),
        (a_pod(waiting=("CreateContainerConfigError", 'secret "t" not found')), "ModelAccessDenied", "secret"),
        (
            a_pod(waiting=("CrashLoopBackOff", ""), last_end=ContainerEnd(4, message="bad digest hf_abcdefghijkl")),
            "RollingOut",
            "bad digest [redacted]",
        ),
        (a_pod(last_end=ContainerEnd(137, reason="OOMKilled")), "HostOutOfMemory", "137"),
    ],
)
def test_a_pod_that_does_not_come_up_says_why(pod: Any, reason: str, words: str) -> None:
    service = a_service()
    plan = plan_for(service, live(service), pods=(pod,))
    assert condition(plan.status, ConditionType.READY) == ("False", reason)
    assert words in plan.status.conditions[0].message


def test_a_complete_rollout_is_probed_once_and_then_settled() -> None:
    service = a_service(adapters=[ADAPTER])
    objects = live(service, ready=1)
    first = plan_for(service, objects)
    assert ([a.name for a in first.probes], first.status.phase) == (["a"], "Verifying")
    service = with_status(service, first.status)
    judged = plan_for(service, objects, MATCHED)
    assert (judged.probes, judged.status.phase, judged.status.adapters_summary) == ((), "Ready", "1/1")
    assert condition(judged.status, ConditionType.ADAPTER_VERIFIED) == ("True", "FingerprintMatched")
    settled = with_status(service, judged.status)
    again = decide_service(settled, ServiceObserved(live=objects), {}, NOW + timedelta(hours=1), SETTINGS)
    assert again == ServicePlan(status=settled.status)


def test_a_verdict_survives_a_restarted_pod_and_not_another_rollout() -> None:
    service = a_service(adapters=[ADAPTER])
    service = with_status(service, plan_for(service, live(service, ready=1), MATCHED).status)
    restarted = plan_for(service, live(service, ready=0))
    assert restarted.status.adapters == service.status.adapters
    moved = a_service(adapters=[{**ADAPTER, "source": "pvc://c/b"}])
    moved = moved.model_copy(update={"status": service.status})
    assert plan_for(moved, live(moved, ready=1)).probes


def test_an_endpoint_that_does_not_answer_is_asked_again_without_writing_each_time() -> None:
    service = a_service(adapters=[ADAPTER])
    objects = live(service, ready=1)
    silence = {"a": ProbeResult("Unknown", Reason.ENDPOINT_UNREACHABLE, "no answer")}
    plan = plan_for(service, objects, silence)
    assert plan.requeue_after == SETTINGS.probe_retry_seconds
    service = with_status(service, plan.status)
    again = plan_for(service, objects)
    assert again.status == service.status
    assert [a.name for a in again.probes] == ["a"]
    assert plan_for(service, objects, silence).status == service.status


def test_one_adapter_without_effect_is_the_truth_about_all() -> None:
    other = {**ADAPTER, "name": "b"}
    service = a_service(adapters=[ADAPTER, other])
    verdicts = {**MATCHED, "b": ProbeResult("False", Reason.ADAPTER_HAS_NO_EFFECT, "like the base")}
    plan = plan_for(service, live(service, ready=1), verdicts)
    assert (plan.status.phase, plan.status.adapters_summary) == ("Failed", "1/2")
    assert condition(plan.status, ConditionType.ADAPTER_VERIFIED) == ("False", "AdapterHasNoEffect")


def test_an_adapter_without_a_fingerprint_is_never_verified() -> None:
    service = a_service(adapters=[{"name": "a", "source": "pvc://c/a"}])
    plan = plan_for(service, live(service, ready=1))
    assert (plan.probes, plan.status.phase) == ((), "Ready")
    assert condition(plan.status, ConditionType.ADAPTER_VERIFIED) == ("Unknown", "NoFingerprint")


def test_the_old_rollout_answers_while_the_new_one_starts() -> None:
    service = a_service(replicas=2)
    service = with_status(service, plan_for(service, live(service, ready=2)).status)
    plan = plan_for(service, live(service, ready=2, replicas=3, updatedReplicas=1))
    assert condition(plan.status, ConditionType.READY) == ("True", "EndpointReady")
    assert condition(plan.status, ConditionType.PROGRESSING) == ("True", "RollingOut")


def test_scaled_to_zero_is_neither_ready_nor_moving() -> None:
    service = a_service(replicas=0)
    plan = plan_for(service, live(service))
    assert condition(plan.status, ConditionType.READY) == ("False", "RollingOut")
    assert condition(plan.status, ConditionType.PROGRESSING) == ("False", "Completed")


@pytest.mark.parametrize(
    ("owner", "reason"), [({}, "ChildConflict"), ({"kind": "InferenceService", "name": "tone"}, None)]
)
def test_what_belongs_to_somebody_else_is_left_alone(owner: Any, reason: str | None) -> None:
    service = a_service()
    objects = live(service)
    foreign = {"uid": "other", "controller": True, "kind": "Rollout", "name": "x", **owner}
    metadata = {**objects["Service"]["metadata"], "ownerReferences": [foreign]}
    plan = plan_for(service, {**objects, "Service": {**objects["Service"], "metadata": metadata}})
    assert (plan.apply, plan.delete_budget) == ((), None)
    if reason is None:
        assert (plan.status, plan.requeue_after) == (service.status, 2.0)
    else:
        assert condition(plan.status, ConditionType.READY) == ("False", reason)


def test_a_service_that_is_being_deleted_is_left_to_the_garbage_collector() -> None:
    service = a_service()
    metadata = service.metadata.model_copy(update={"deletion_timestamp": CREATED})
    service = service.model_copy(update={"metadata": metadata})
    assert plan_for(service) == ServicePlan(status=service.status)
    assert service.metadata.uid == UID
