"""What happens next to an InferenceService, situation by situation."""

import json
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from finetune_api.conditions import ConditionType
from finetune_api.reasons import Reason
from finetune_api.serving import token_digest
from finetune_api.v1alpha1 import AdapterReference, InferenceService, InferenceServiceStatus
from finetune_operator.io.probe import ProbeResult
from finetune_operator.reconcile.pod import ContainerEnd
from finetune_operator.reconcile.service.decide import (
    REPAIR_SECONDS,
    UNLOADED_ADAPTER_SECONDS,
)
from finetune_operator.reconcile.service.plan import ServiceObserved
from finetune_operator.reconcile.service.served_versions import listed_adapters, promotion_token
from finetune_operator.reconcile.service.server_pod import ServerPod
from finetune_operator.resources import Manifest
from finetune_operator.resources.adapter_list import build_adapter_list, list_hash
from finetune_operator.resources.annotations import ANNOTATION_ADAPTER_LIST, ANNOTATION_CONFIG
from finetune_operator.resources.child import with_hash
from finetune_operator.resources.serving import build_serving_children, encoded_config
from finetune_operator.settings import Settings
from support.objects.decisions import ServiceDecision, decide_for
from support.objects.operator_objects import CREATED, FINGERPRINT, NOW, SETTINGS, UID, a_service, condition

ADAPTER = {"name": "a", "source": "pvc://c/a", "digest": f"sha256:{'0' * 64}", "fingerprint": FINGERPRINT.to_dict()}
NEWER = {**ADAPTER, "source": "pvc://c/newer", "digest": f"sha256:{'1' * 64}"}
CANDIDATE = "a@" + "0" * 12
MATCHED = ProbeResult("True", Reason.FINGERPRINT_MATCHED, "0.001")
NO_EFFECT = ProbeResult("False", Reason.ADAPTER_HAS_NO_EFFECT, "like the base")
SILENCE = ProbeResult("Unknown", Reason.ENDPOINT_UNREACHABLE, "no answer")
REFUSED = ProbeResult("False", Reason.ADAPTER_INCOMPATIBLE, "no such folder", loaded=False)


def list_of(service: InferenceService, settings: Settings = SETTINGS) -> Manifest:
    """The list of adapters that servers of the service should have."""
    return build_adapter_list(service, listed_adapters(service, service.status.adapters, settings))


def children_of(service: InferenceService) -> list[Manifest]:
    return build_serving_children(service, listed_adapters(service, service.status.adapters, SETTINGS), SETTINGS)


def live(service: InferenceService, ready: int = 0, **status: Any) -> dict[str, Any]:
    """The children as applied, with a Deployment of which `ready` pods are ready."""
    children = {child["kind"]: deepcopy(child) for child in children_of(service)}
    wanted = service.spec.replicas
    counts = {"observedGeneration": 1, "replicas": wanted, "updatedReplicas": wanted, "readyReplicas": ready, **status}
    deployment = children["Deployment"]
    metadata = {**deployment["metadata"], "generation": 1}
    return {**children, "Deployment": {**deployment, "metadata": metadata, "status": counts}}


def servers(service: InferenceService, count: int = 1, **fields: Any) -> tuple[ServerPod, ...]:
    """Ready server pods that have the current list."""
    annotations = {
        ANNOTATION_CONFIG: encoded_config(service),
        ANNOTATION_ADAPTER_LIST: list_hash(list_of(service)),
    }
    values = {"is_ready": True, "annotations": annotations, "started_at": CREATED, "address": "10.0.0.1", **fields}
    return tuple(ServerPod(name=f"s{number}", **values) for number in range(count))


def plan_for(service: InferenceService, objects: Any = None, answers: Any = None, **seen: Any) -> ServiceDecision:
    """`objects` default to the children as applied with all replicas ready."""
    if objects is None:
        objects = live(service, ready=service.spec.replicas)
        seen.setdefault("pods", servers(service, service.spec.replicas))
    return decide_for(service, ServiceObserved(live=objects, **seen), answers or {}, NOW, SETTINGS)


def answered(service: InferenceService, *results: ProbeResult, name: str = "a", **seen: Any) -> ServiceDecision:
    """The plan after each replica answered, in their order."""
    answers = {(f"s{number}", 0, name): result for number, result in enumerate(results)}
    return plan_for(service, answers=answers, **seen)


def verified(*adapters: dict[str, Any], **spec: Any) -> InferenceService:
    """A service whose adapters are proven on every replica, candidates first, and that is settled."""
    service = a_service(adapters=[*adapters], **spec)
    for _ in range(2):
        plan = plan_for(service)
        service = with_status(service, plan_for(service, answers={r.key: MATCHED for r in plan.probes}).status)
    assert service.status.adapters_summary == f"{len(adapters)}/{len(adapters)}"
    return service


def changed(service: InferenceService, **spec: Any) -> InferenceService:
    """The same object after its spec was edited."""
    return a_service(**spec).model_copy(update={"status": service.status})


def listed(service: InferenceService) -> dict[str, str]:
    """Path by name of what servers are told to have."""
    text = list_of(service)["data"]["adapters.json"]
    return {entry["name"]: entry["path"] for entry in json.loads(text)["adapters"]}


def with_status(service: InferenceService, status: InferenceServiceStatus) -> InferenceService:
    reread = InferenceServiceStatus.model_validate(status.to_dict())
    return service.model_copy(update={"status": reread})


def test_missing_children_are_applied() -> None:
    assert [m["kind"] for m in plan_for(a_service(), {}).apply] == ["ConfigMap", "Deployment", "Service"]
    assert [m["kind"] for m in plan_for(a_service(replicas=2), {}).apply] == [
        "ConfigMap",
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
    assert plan.delete == (objects["PodDisruptionBudget"],)


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
        (ServerPod("s0", unschedulable=("Unschedulable", "no GPU")), "Unschedulable", "no GPU"),
        (ServerPod("s0", waiting=("ImagePullBackOff", "x")), "ImagePullFailed", "image"),
        (
            ServerPod("s0", waiting=("CreateContainerConfigError", 'secret "t" not found')),
            "ModelAccessDenied",
            "secret",
        ),
        (
            ServerPod(
                "s0", waiting=("CrashLoopBackOff", ""), last_end=ContainerEnd(4, message="bad digest hf_abcdefghijkl")
            ),
            "RollingOut",
            "bad digest [redacted]",
        ),
        (ServerPod("s0", last_end=ContainerEnd(137, reason="OOMKilled")), "HostOutOfMemory", "137"),
    ],
)
def test_a_pod_that_does_not_come_up_says_why(pod: Any, reason: str, words: str) -> None:
    service = a_service(model={"source": "hf://org/tiny", "secretRef": {"name": "t"}})
    plan = plan_for(service, live(service), pods=(pod,))
    assert condition(plan.status, ConditionType.READY) == ("False", reason)
    assert words in plan.status.conditions[0].message


def test_the_first_version_is_proven_under_another_name_then_under_its_own_and_then_left_alone() -> None:
    service = a_service(adapters=[ADAPTER])
    assert listed(service) == {CANDIDATE: "/adapters/a"}
    first = plan_for(service)
    assert ([r.key for r in first.probes], first.status.phase) == ([("s0", 0, CANDIDATE)], "Verifying")
    service = with_status(service, first.status)
    proven = answered(service, MATCHED, name=CANDIDATE)
    assert (proven.requeue_after, proven.status.adapters[0].verified) == (0.0, "Unknown")
    service = with_status(service, proven.status)
    assert listed(service) == {"a": "/adapters/a"}
    assert [r.key for r in plan_for(service).probes] == [("s0", 0, "a")]
    judged = answered(service, MATCHED)
    assert (judged.probes, judged.status.phase, judged.status.adapters_summary) == ((), "Ready", "1/1")
    assert condition(judged.status, ConditionType.ADAPTER_VERIFIED) == ("True", "FingerprintMatched")
    settled = with_status(service, judged.status)
    objects, pods = live(settled, ready=1), servers(settled)
    again = decide_for(settled, ServiceObserved(objects, pods), {}, NOW + timedelta(hours=1), SETTINGS)
    assert again == ServiceDecision(status=settled.status, adapter_list=list_hash(list_of(settled)))


def test_another_list_is_applied_and_shown_to_running_pods_in_the_same_pass() -> None:
    service = verified(ADAPTER)
    edited = changed(service, adapters=[NEWER])
    pods = servers(service, 2)
    starting = ServerPod(name="new")
    plan = plan_for(edited, live(service, ready=1), pods=(*pods, starting))
    assert [child["kind"] for child in plan.apply] == ["ConfigMap"]
    assert plan.refresh == pods
    assert {r.name for r in plan.probes} == {"a@" + "1" * 12}
    assert listed(edited) == {"a": "/adapters/a", "a@" + "1" * 12: "/adapters/newer"}


def test_a_version_is_switched_to_once_every_replica_was_shown_to_answer_with_it() -> None:
    service = changed(verified(ADAPTER, replicas=2), adapters=[NEWER], replicas=2)
    candidate = "a@" + "1" * 12
    one = answered(service, MATCHED, SILENCE, name=candidate)
    assert one.status.adapters[0].served == service.status.adapters[0].served
    assert (one.status.adapters[0].verified_replicas, one.status.adapters[0].reason) == (1, "EndpointUnreachable")
    service = with_status(service, one.status)
    assert [r.pod.name for r in plan_for(service).probes] == ["s1"]
    both = plan_for(service)
    assert both.status == service.status, "nothing new was learnt"
    plan = plan_for(service, answers={("s1", 0, candidate): MATCHED})
    served = plan.status.adapters[0].served
    assert served is not None
    assert (served.source, served.digest) == (NEWER["source"], NEWER["digest"])
    assert [event.reason for event in plan.events] == ["AdapterSwitched"]
    assert listed(with_status(service, plan.status)) == {"a": "/adapters/newer"}


def test_a_proven_candidate_is_promoted_where_it_is_listed_and_nowhere_else() -> None:
    keyed = SETTINGS.model_copy(update={"promotion_key": SecretStr("a key")})
    candidate = "a@" + "1" * 12
    asked = changed(verified(ADAPTER), adapters=[NEWER])
    proven = with_status(asked, answered(asked, MATCHED, name=candidate).status)
    old_list = with_hash(list_of(asked, keyed))
    objects, pods = live(proven, ready=1), servers(asked)

    def plan(adapter_list: Any, service: InferenceService = proven, settings: Settings = keyed) -> ServiceDecision:
        seen = ServiceObserved(live={**objects, "ConfigMap": adapter_list}, pods=pods)
        return decide_for(service, seen, {}, NOW, settings)

    found = plan(old_list)
    entries = json.loads(old_list["data"]["adapters.json"])["adapters"]
    assert ["promotion" in entry for entry in entries] == [False, True], "only the candidate can be promoted"
    assert entries[1]["promotion"]["name"] == "a"
    assert [(r.candidate, token_digest(r.token), r.digest) for r in found.promote] == [
        (candidate, entries[1]["promotion"]["tokenDigest"], NEWER["digest"])
    ]
    assert [child["kind"] for child in found.apply] == ["ConfigMap"], "and the list says the same from now on"
    assert [pod.name for pod in found.refresh] == ["s0"]
    assert plan(old_list, asked).promote == (), "not before it is proven"
    assert plan(with_hash(list_of(proven, keyed))).promote == (), "the list has no candidate any more"
    assert plan(old_list, settings=SETTINGS).promote == (), "nothing without a key"
    another = SETTINGS.model_copy(update={"promotion_key": SecretStr("another")})
    assert plan(old_list, settings=another).promote == (), "servers know the token of another process"
    edited = proven.metadata.model_copy(update={"generation": proven.metadata.generation + 1})
    assert plan(old_list, proven.model_copy(update={"metadata": edited})).promote == (), "or that of another spec"
    for damaged in ({}, {"data": None}, {"data": {"adapters.json": "[]"}}):
        assert plan({"metadata": old_list["metadata"], **damaged}).promote == ()


def test_a_token_is_good_for_one_version_of_one_service_once() -> None:
    keyed = SETTINGS.model_copy(update={"promotion_key": SecretStr("a key")})
    service = a_service(adapters=[ADAPTER])
    again = service.metadata.model_copy(update={"generation": service.metadata.generation + 1})
    namesake = service.metadata.model_copy(update={"uid": "another"})
    adapter, newer = AdapterReference.model_validate(ADAPTER), AdapterReference.model_validate(NEWER)
    tokens = [
        promotion_token(service, adapter, keyed),
        promotion_token(service, newer, keyed),
        promotion_token(service.model_copy(update={"metadata": again}), adapter, keyed),
        promotion_token(service.model_copy(update={"metadata": namesake}), adapter, keyed),
        promotion_token(service, adapter, SETTINGS.model_copy(update={"promotion_key": SecretStr("another")})),
    ]
    assert len(set(tokens)) == len(tokens)
    assert promotion_token(service, adapter, keyed) == tokens[0]


@pytest.mark.parametrize("answers", [(MATCHED, NO_EFFECT), (NO_EFFECT, SILENCE)])
def test_a_version_that_one_replica_disproves_never_takes_the_old_ones_traffic(answers: Any) -> None:
    service = changed(verified(ADAPTER, replicas=2), adapters=[NEWER], replicas=2)
    plan = answered(service, *answers, name="a@" + "1" * 12)
    assert condition(plan.status, ConditionType.ADAPTER_VERIFIED) == ("False", "AdapterHasNoEffect")
    assert condition(plan.status, ConditionType.READY) == ("True", "EndpointReady")
    assert "Clients still get version sha256:000000000000." in plan.status.adapters[0].message
    assert [(event.reason, event.is_warning) for event in plan.events] == [("AdapterHasNoEffect", True)]
    service = with_status(service, plan.status)
    assert listed(service) == {"a": "/adapters/a"}, "what is disproven leaves the servers' memory"
    settled = plan_for(service)
    assert (settled.status, settled.probes, settled.requeue_after) == (service.status, (), None)
    back = plan_for(changed(service, adapters=[ADAPTER], replicas=2))
    assert {r.name for r in back.probes} == {"a"}, "the old version can be asked for again"


def test_an_adapter_that_a_server_cannot_load_stays_listed_because_its_folder_may_come() -> None:
    service = a_service(adapters=[ADAPTER])
    plan = answered(service, REFUSED, name=CANDIDATE)
    adapter = plan.status.adapters[0]
    assert (adapter.verified, adapter.reason, adapter.loaded_replicas) == ("False", "AdapterIncompatible", 0)
    service = with_status(service, plan.status)
    assert listed(service) == {CANDIDATE: "/adapters/a"}
    again = plan_for(service)
    assert (len(again.probes), again.requeue_after) == (1, UNLOADED_ADAPTER_SECONDS)
    assert again.status == service.status
    assert answered(service, REFUSED, name=CANDIDATE).status == service.status
    assert answered(service, MATCHED, name=CANDIDATE).status.adapters[0].served is not None


def test_a_replica_that_is_added_or_restarted_is_asked_before_it_counts_and_nobody_else_is() -> None:
    service = verified(ADAPTER)
    objects = live(service, ready=1)
    pods = (*servers(service, 1, restarts=1), *servers(service, 2)[1:])
    plan = plan_for(service, objects, pods=pods)
    assert [r.key for r in plan.probes] == [("s0", 1, "a"), ("s1", 0, "a")]
    adapter = plan.status.adapters[0]
    assert (adapter.verified, adapter.loaded_replicas, adapter.verified_replicas) == ("True", 0, 0)
    service = with_status(service, plan.status)
    answers = {("s0", 1, "a"): MATCHED, ("s1", 0, "a"): NO_EFFECT}
    plan = plan_for(service, objects, answers, pods=pods)
    adapter = plan.status.adapters[0]
    assert (adapter.verified, adapter.loaded_replicas, adapter.verified_replicas) == ("False", 2, 1)
    assert condition(plan.status, ConditionType.ADAPTER_VERIFIED) == ("False", "AdapterHasNoEffect")


def test_what_one_replica_was_wrong_in_is_not_said_of_the_others_once_it_is_gone() -> None:
    service = verified(ADAPTER, replicas=2)
    pods = (*servers(service, 1), *servers(service, 2, restarts=1)[1:])
    failed = plan_for(service, live(service, ready=2), {("s1", 1, "a"): NO_EFFECT}, pods=pods)
    assert failed.status.adapters[0].message == "Pod s1: like the base"
    plan = plan_for(with_status(service, failed.status), live(service, ready=1), pods=servers(service, 1))
    adapter = plan.status.adapters[0]
    assert (adapter.verified, adapter.reason, adapter.message) == ("True", "FingerprintMatched", "")


def test_a_message_without_end_is_cut_and_still_names_the_version_that_clients_get() -> None:
    service = changed(verified(ADAPTER), adapters=[NEWER])
    disproven, silent = (
        answered(service, replace(answer, message="x" * 9000), name="a@" + "1" * 12).status
        for answer in (NO_EFFECT, SILENCE)
    )
    for status in (disproven, silent):
        assert InferenceServiceStatus.model_validate(status.to_dict()) == status
    kept = " Clients still get version sha256:000000000000."
    assert disproven.adapters[0].message == "x" * (1024 - len(kept)) + kept
    assert silent.adapters[0].message == "x" * 1024


def test_a_replica_that_refused_and_then_is_silent_costs_no_write_each_time() -> None:
    service = changed(verified(ADAPTER), adapters=[NEWER])
    for answer in (REFUSED, SILENCE):
        service = with_status(service, answered(service, answer, name="a@" + "1" * 12).status)
    message = service.status.adapters[0].message
    assert message == "no such folder Clients still get version sha256:000000000000."
    assert answered(service, SILENCE, name="a@" + "1" * 12).status == service.status


def test_a_version_that_the_servers_had_no_room_for_is_asked_for_again_once_they_have() -> None:
    service = a_service(adapters=[ADAPTER], maxModelLength=16)
    too_long = ProbeResult("False", Reason.ADAPTER_INCOMPATIBLE, "the prompt is longer than 16 tokens")
    service = with_status(service, answered(service, too_long, name=CANDIDATE).status)
    assert plan_for(service).probes == ()
    longer = changed(service, adapters=[ADAPTER], maxModelLength=512)
    assert [request.name for request in plan_for(longer).probes] == [CANDIDATE]


def test_answers_of_a_process_that_is_gone_prove_nothing() -> None:
    service = a_service(adapters=[ADAPTER])
    answers = {("s0", 0, CANDIDATE): MATCHED}
    plan = plan_for(service, live(service, ready=1), answers, pods=servers(service, restarts=1))
    assert plan.status.adapters[0].served is None


def test_a_name_keeps_its_meaning_while_pods_of_another_base_model_are_left() -> None:
    service = a_service(adapters=[ADAPTER])
    old = ServerPod(name="old", is_ready=True, started_at=CREATED, annotations={ANNOTATION_CONFIG: "{}"})
    answers = {("s0", 0, CANDIDATE): MATCHED}
    pods = (*servers(service), old)
    plan = plan_for(service, live(service, ready=1), answers, pods=pods)
    adapter = plan.status.adapters[0]
    assert (adapter.verified, adapter.reason, adapter.verified_replicas) == ("Unknown", "Verifying", 1)
    assert adapter.served is None
    service = with_status(service, plan.status)
    joined = plan_for(service, live(service, ready=2), pods=servers(service, 2))
    assert joined.status.adapters[0].served is None, "the second pod was not asked yet"
    assert plan_for(service).status.adapters[0].served is not None


def test_a_verdict_is_about_the_version_and_the_base_model_and_not_about_the_number_of_replicas() -> None:
    service = verified(ADAPTER)
    grown = changed(service, adapters=[ADAPTER], replicas=2)
    assert plan_for(grown).status.adapters[0].verified == "True"
    other = changed(service, adapters=[ADAPTER], model={"source": "pvc://models/other"})
    assert plan_for(other).status.adapters[0].verified == "Unknown"


def test_an_adapter_without_a_digest_is_pinned_to_the_one_that_was_proven() -> None:
    adapter = {key: value for key, value in ADAPTER.items() if key != "digest"}
    service = a_service(adapters=[adapter])
    name = plan_for(service).probes[0].name
    plan = answered(service, replace(MATCHED, digest="sha256:ab"), name=name)
    served = plan.status.adapters[0].served
    assert served is not None
    assert served.digest == "sha256:ab"
    assert plan_for(with_status(service, plan.status)).probes[0].digest == "sha256:ab"


def test_a_removed_adapter_is_neither_listed_nor_reported() -> None:
    service = changed(verified(ADAPTER, {**ADAPTER, "name": "b"}), adapters=[ADAPTER])
    plan = plan_for(service)
    assert ([a.name for a in plan.status.adapters], list(listed(service))) == (["a"], ["a"])


def test_an_endpoint_that_does_not_answer_is_asked_again_without_writing_each_time() -> None:
    service = a_service(adapters=[ADAPTER])
    plan = answered(service, SILENCE, name=CANDIDATE)
    assert plan.requeue_after == SETTINGS.probe_retry_seconds
    service = with_status(service, plan.status)
    again = plan_for(service)
    assert again.status == service.status
    assert [r.name for r in again.probes] == [CANDIDATE]
    assert answered(service, SILENCE, name=CANDIDATE).status == service.status


def test_one_adapter_without_effect_is_the_truth_about_all() -> None:
    service = verified(ADAPTER, {**ADAPTER, "name": "b"})
    service = changed(service, adapters=[ADAPTER, {**NEWER, "name": "b"}])
    plan = answered(service, NO_EFFECT, name="b@" + "1" * 12)
    assert (plan.status.phase, plan.status.adapters_summary) == ("Failed", "1/2")
    assert condition(plan.status, ConditionType.ADAPTER_VERIFIED) == ("False", "AdapterHasNoEffect")


def test_an_adapter_without_a_fingerprint_is_served_once_it_is_loaded_and_never_verified() -> None:
    service = a_service(adapters=[{"name": "a", "source": "pvc://c/a"}])
    loaded = ProbeResult("Unknown", Reason.NO_FINGERPRINT, "none")
    for _ in range(2):
        plan = plan_for(service)
        assert (plan.status.phase, len(plan.probes)) == ("Verifying", 1)
        service = with_status(service, plan_for(service, answers={plan.probes[0].key: loaded}).status)
    plan = plan_for(service)
    assert (plan.probes, plan.status.phase, plan.status) == ((), "Ready", service.status)
    assert condition(plan.status, ConditionType.ADAPTER_VERIFIED) == ("Unknown", "NoFingerprint")


def test_the_old_rollout_answers_while_the_new_one_starts() -> None:
    service = a_service(replicas=2)
    service = with_status(service, plan_for(service).status)
    plan = plan_for(service, live(service, ready=2, replicas=3, updatedReplicas=1))
    assert condition(plan.status, ConditionType.READY) == ("True", "EndpointReady")
    assert condition(plan.status, ConditionType.PROGRESSING) == ("True", "RollingOut")


def test_an_autoscaler_decides_about_replicas_and_nobody_takes_them_back() -> None:
    service = a_service(autoscaling={"minReplicas": 2, "maxReplicas": 5})
    made = {child["kind"]: child for child in plan_for(service, {}).apply}
    assert made["Deployment"]["spec"]["replicas"] == 2
    assert made["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == "tone-server"
    assert "PodDisruptionBudget" in made
    objects = live(service, ready=4, replicas=4, updatedReplicas=4)
    objects["Deployment"]["spec"]["replicas"] = 4
    objects["Deployment"]["metadata"]["resourceVersion"] = "7"
    plan = plan_for(service, objects)
    assert (plan.apply, plan.status.phase) == ((), "Ready")
    objects["Deployment"]["spec"]["strategy"] = {"type": "Recreate"}
    (repaired,) = plan_for(service, objects).apply
    assert repaired["spec"]["replicas"] == 4
    assert repaired["metadata"]["resourceVersion"] == "7", "an autoscaler that decides meanwhile is not overruled"


def test_without_autoscaling_the_autoscaler_goes_and_replicas_count_again() -> None:
    scaled = live(a_service(autoscaling={"maxReplicas": 5}))
    scaled["Deployment"]["spec"]["replicas"] = 4
    for service, size in ((a_service(), 1), (a_service(replicas=0, autoscaling={"maxReplicas": 5}), 0)):
        plan = plan_for(service, scaled)
        assert {child["kind"] for child in plan.delete} == {"HorizontalPodAutoscaler", "PodDisruptionBudget"}
        assert {c["kind"]: c for c in plan.apply}["Deployment"]["spec"]["replicas"] == size


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
    foreign = {"apiVersion": "x/v1", "uid": "other", "controller": True, "kind": "Rollout", "name": "x", **owner}
    metadata = {**objects["Service"]["metadata"], "ownerReferences": [foreign]}
    plan = plan_for(service, {**objects, "Service": {**objects["Service"], "metadata": metadata}})
    assert (plan.apply, plan.delete) == ((), ())
    if reason is None:
        assert (plan.status, plan.requeue_after) == (service.status, 2.0)
    else:
        assert condition(plan.status, ConditionType.READY) == ("False", reason)


def test_a_service_that_is_being_deleted_is_left_to_the_garbage_collector() -> None:
    service = a_service()
    metadata = service.metadata.model_copy(update={"deletion_timestamp": CREATED})
    service = service.model_copy(update={"metadata": metadata})
    assert plan_for(service, {}) == ServiceDecision(status=service.status)
    assert service.metadata.uid == UID


def test_an_engine_without_an_image_is_refused_and_says_what_to_set() -> None:
    service = a_service(engine="VLLM")
    plan = plan_for(service, {})
    assert plan.apply == plan.probes == ()
    assert condition(plan.status, ConditionType.READY) == ("False", Reason.ENGINE_NOT_AVAILABLE)
    assert "FINETUNE_OPERATOR_INFERENCE_VLLM_IMAGE" in plan.status.conditions[0].message
    settings = SETTINGS.model_copy(update={"inference_vllm_image": "registry.example/vllm:1"})
    plan = decide_for(service, ServiceObserved(), {}, NOW, settings)
    (deployment,) = (child for child in plan.apply if child["kind"] == "Deployment")
    (server,) = deployment["spec"]["template"]["spec"]["containers"]
    assert server["image"] == "registry.example/vllm:1"
    assert {"name": "FINETUNE_SERVER_ENGINE", "value": "vllm"} in server["env"]


def rolling(*adapters: dict[str, Any], **spec: Any) -> InferenceService:
    return a_service(adapters=[*adapters], rollout={"mode": "Rolling"}, **spec)


def proven(*adapters: dict[str, Any], **spec: Any) -> InferenceService:
    """A Rolling service whose pods were all shown to answer, and that is settled."""
    service = rolling(*adapters, **spec)
    pods, objects = gated(service, service.spec.replicas), live(service, ready=service.spec.replicas)
    answers = {request.key: MATCHED for request in plan_for(service, objects, pods=pods).probes}
    service = with_status(service, plan_for(service, objects, answers, pods=pods).status)
    assert service.status.adapters_summary == f"{len(adapters)}/{len(adapters)}"
    return service


def gated(service: InferenceService, count: int = 1, name: str = "n", **fields: Any) -> tuple[ServerPod, ...]:
    """Server pods of a Rolling service that answer and were not let in."""
    annotations = {ANNOTATION_CONFIG: encoded_config(service)}
    values = {"annotations": annotations, "started_at": CREATED, "are_containers_ready": True, **fields}
    return tuple(ServerPod(name=f"{name}{number}", has_readiness_gate=True, **values) for number in range(count))


def opened_pod(pod: ServerPod) -> ServerPod:
    return replace(pod, is_ready=True, verified_process=pod.process)


def opened(plan: ServiceDecision) -> dict[str, bool]:
    return {gate.pod.name: gate.is_open for gate in plan.gates}


def test_pods_of_a_rolling_service_have_their_adapters_from_the_start_and_read_no_list() -> None:
    service = rolling({**ADAPTER, "name": "b"}, ADAPTER)
    children = {child["kind"]: child for child in children_of(service)}
    assert set(children) == {"Deployment", "Service"}
    config = json.loads(encoded_config(service))
    assert [adapter["name"] for adapter in config["adapters"]] == ["a", "b"], "another order is no other configuration"
    pod = children["Deployment"]["spec"]["template"]["spec"]
    assert pod["readinessGates"] == [{"conditionType": "finetune.dev/adapters-verified"}]
    assert not [volume for volume in pod["volumes"] if "configMap" in volume]


def test_a_new_pod_is_let_in_once_it_was_shown_to_answer_with_every_adapter() -> None:
    service = rolling(ADAPTER, {**ADAPTER, "name": "b"})
    pods, objects = gated(service), live(service)
    first = plan_for(service, objects, pods=pods)
    assert (opened(first), [r.key for r in first.probes]) == ({}, [("n0", 0, "a"), ("n0", 0, "b")])
    half = plan_for(service, objects, {("n0", 0, "a"): MATCHED, ("n0", 0, "b"): SILENCE}, pods=pods)
    assert opened(half) == {}
    service = with_status(service, half.status)
    whole = plan_for(service, objects, {("n0", 0, "b"): MATCHED}, pods=pods)
    assert opened(whole) == {"n0": True}
    service = with_status(service, whole.status)
    assert opened(plan_for(service, objects, pods=pods)) == {"n0": True}, "one that was not done is done again"
    settled = plan_for(service, live(service, ready=1), pods=(opened_pod(pods[0]),))
    assert (settled.gates, settled.probes, settled.status.phase) == ((), (), "Ready")
    assert settled.status.adapters_summary == "2/2"


def test_a_rolling_service_without_adapters_lets_its_pods_in() -> None:
    service = rolling()
    assert opened(plan_for(service, live(service), pods=gated(service, are_containers_ready=False))) == {"n0": True}


def test_a_version_is_served_once_no_pod_of_the_one_before_gets_traffic() -> None:
    old = proven(ADAPTER)
    service = changed(old, adapters=[NEWER], rollout={"mode": "Rolling"})
    before, after = opened_pod(gated(old, name="o")[0]), gated(service)[0]
    objects = live(service, ready=1, replicas=2, updatedReplicas=1)
    plan = plan_for(service, objects, {("n0", 0, "a"): MATCHED}, pods=(before, after))
    adapter = plan.status.adapters[0]
    assert opened(plan) == {"n0": True}
    assert (adapter.verified, adapter.reason, adapter.verified_replicas) == ("Unknown", "Verifying", 1)
    assert (adapter.served, plan.events) == (old.status.adapters[0].served, ())
    service = with_status(service, plan.status)
    done = plan_for(service, live(service, ready=1), pods=(opened_pod(after),))
    adapter = done.status.adapters[0]
    assert adapter.served is not None
    assert (adapter.verified, adapter.served.digest, adapter.message) == ("True", NEWER["digest"], MATCHED.message)
    assert [event.reason for event in done.events] == ["FingerprintMatched", "AdapterSwitched"]
    assert done.status.proven_config != old.status.proven_config


def test_a_disproven_version_gets_no_traffic_and_the_conditions_say_so() -> None:
    old = proven(ADAPTER)
    service = changed(old, adapters=[NEWER], rollout={"mode": "Rolling"})
    before, after = opened_pod(gated(old, name="o")[0]), gated(service)[0]
    objects = live(service, ready=1, replicas=2, updatedReplicas=1)
    plan = plan_for(service, objects, {("n0", 0, "a"): NO_EFFECT}, pods=(before, after))
    assert (plan.gates, plan.status.phase) == ((), "Failed")
    messages = {c.type: (c.status, c.reason, c.message) for c in plan.status.conditions}
    kept = "Clients still get version sha256:000000000000."
    assert messages["AdapterVerified"] == ("False", "AdapterHasNoEffect", f"Adapter a: like the base {kept}")
    assert messages["Ready"] == (
        "True",
        "EndpointReady",
        "Pods without the new version of adapter a answer: the new one was disproven.",
    )
    assert messages["Progressing"][:2] == ("False", "AdapterHasNoEffect")
    service = with_status(service, plan.status)
    settled = plan_for(service, objects, pods=(before, after))
    assert (settled.status, settled.gates, settled.probes, settled.requeue_after) == (service.status, (), (), None)
    upgraded = plan_for(service, objects, pods=(before, *gated(service, name="image")))
    assert [r.pod.name for r in upgraded.probes] == ["image0"], "pods of another image are asked for themselves"
    back = changed(service, adapters=[ADAPTER], rollout={"mode": "Rolling"})
    plan = plan_for(back, live(back, ready=1), pods=(before,))
    assert (plan.status.adapters_summary, [r.pod.name for r in plan.probes]) == ("0/1", ["o0"])


@pytest.mark.parametrize("rolling_over", [True, False])
def test_a_verdict_of_a_newer_release_is_reported_in_general_terms_and_stops_nothing(rolling_over: bool) -> None:
    old = proven(ADAPTER)
    service = changed(old, adapters=[NEWER], rollout={"mode": "Rolling"})
    objects = live(service, ready=1, replicas=2, updatedReplicas=1) if rolling_over else live(service, ready=1)
    pods = (*([opened_pod(gated(old, name="o")[0])] if rolling_over else []), gated(service)[0])
    service = with_status(service, plan_for(service, objects, {("n0", 0, "a"): NO_EFFECT}, pods=pods).status)
    newer = {"reason": "KnownNextYear"}
    (verdict,) = service.status.adapters
    replicas = [replica.model_copy(update=newer) for replica in verdict.replicas]
    verdict = verdict.model_copy(update={**newer, "replicas": replicas})
    service = with_status(service, service.status.model_copy(update={"adapters": [verdict]}))
    reasons = {c.type: (c.status, c.reason) for c in plan_for(service, objects, pods=pods).status.conditions}
    assert reasons["AdapterVerified"] == ("False", "RollingOut")


def test_a_pod_that_replaces_one_of_the_proven_configuration_is_let_in_while_a_version_is_refused() -> None:
    old = proven(ADAPTER)
    service = changed(old, adapters=[NEWER], rollout={"mode": "Rolling"})
    other = rolling({**ADAPTER, "source": "pvc://c/never-proven"})
    pods = (*gated(old, name="o"), *gated(other, name="x"), *gated(service))
    plan = plan_for(service, live(service, replicas=3, updatedReplicas=1), {("n0", 0, "a"): NO_EFFECT}, pods=pods)
    assert opened(plan) == {"o0": True}


def test_a_process_is_let_in_until_it_restarts_and_is_proven_again_then() -> None:
    service = proven(ADAPTER)
    objects = live(service, ready=1)
    pod = opened_pod(gated(service)[0])
    assert plan_for(service, objects, pods=(replace(pod, is_ready=False, are_containers_ready=False),)).gates == ()
    lost = service.model_copy(update={"status": InferenceServiceStatus()})
    assert plan_for(lost, objects, pods=(pod,)).gates == (), "a lost record is no reason for an outage"
    restarted = replace(pod, restarts=1)
    plan = plan_for(service, objects, pods=(restarted,))
    assert (opened(plan), [r.key for r in plan.probes]) == ({"n0": False}, [("n0", 1, "a")])
    service = with_status(service, plan.status)
    plan = plan_for(service, objects, {("n0", 1, "a"): MATCHED}, pods=(replace(restarted, verified_process=None),))
    assert opened(plan) == {"n0": True}


def test_the_mode_changes_without_taking_anything_from_the_pods_that_answer() -> None:
    hot = verified(ADAPTER)
    service = changed(hot, adapters=[ADAPTER], rollout={"mode": "Rolling"})
    objects = live(hot, ready=1)
    plan = plan_for(service, objects, pods=servers(hot))
    assert [child["kind"] for child in plan.apply] == ["Deployment"]
    assert (plan.delete, plan.refresh) == ((), ()), "pods from before read their list until they are gone"
    under_way = {**objects, **live(service, ready=1, replicas=2, updatedReplicas=1)}
    plan = plan_for(service, under_way, {("n0", 0, "a"): MATCHED}, pods=(*servers(hot), *gated(service)))
    assert (opened(plan), plan.apply, plan.status.adapters[0].verified) == ({"n0": True}, (), "True")
    back = changed(with_status(service, plan.status), adapters=[ADAPTER])
    assert listed(back) == {"a": "/adapters/a"}
    pods = (opened_pod(gated(service)[0]), *servers(back))
    plan = plan_for(back, live(back, ready=2, replicas=2, updatedReplicas=1), pods=pods)
    assert (plan.gates, plan.refresh, [r.key for r in plan.probes]) == ((), (), [("s0", 0, "a")])


def test_what_was_disproven_in_running_pods_is_asked_for_in_pods_of_its_own() -> None:
    refused = changed(verified(ADAPTER), adapters=[NEWER])
    refused = with_status(refused, answered(refused, NO_EFFECT, name="a@" + "1" * 12).status)
    service = changed(refused, adapters=[NEWER], rollout={"mode": "Rolling"})
    plan = plan_for(service, live(service, ready=1), pods=gated(service))
    assert [r.key for r in plan.probes] == [("n0", 0, "a")]


def test_a_disproven_candidate_is_asked_for_again_once_the_pods_that_disproved_it_are_gone() -> None:
    service = changed(verified(ADAPTER), adapters=[NEWER])
    service = with_status(service, answered(service, NO_EFFECT, name="a@" + "1" * 12).status)
    upgraded = (replace(servers(service)[0], name="image0"),)
    plan = plan_for(service, live(service, ready=1), pods=(*servers(service), *upgraded))
    assert (plan.status.adapters[0].verified, plan.probes) == ("False", ())
    plan = plan_for(service, live(service, ready=1), pods=upgraded)
    assert (plan.status.adapters[0].verified, plan.probes, plan.requeue_after) == ("Unknown", (), 0.0)
    service = with_status(service, plan.status)
    assert set(listed(service)) == {"a", "a@" + "1" * 12}
    assert [r.key for r in plan_for(service, live(service), pods=upgraded).probes] == [("image0", 0, "a@" + "1" * 12)]


def test_a_merged_adapter_is_the_only_model() -> None:
    service = proven(ADAPTER, mergeAdapter=True)
    assert json.loads(encoded_config(service))["mergeAdapter"] is True
    assert service.status.model_name is None
    assert service.status.adapters[0].verified == "True"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"adapters": [ADAPTER]}, "set rollout.mode to Rolling"),
        ({"adapters": [], "rollout": {"mode": "Rolling"}}, "needs exactly one adapter; list one"),
        (
            {"adapters": [ADAPTER, {**ADAPTER, "name": "b"}], "rollout": {"mode": "Rolling"}},
            "needs exactly one adapter",
        ),
    ],
)
def test_what_cannot_be_merged_says_what_to_change(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        a_service(mergeAdapter=True, **spec)
