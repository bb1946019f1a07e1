"""Lives of InferenceServices: what users read in status and Events, and what the operator does, on file for review."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import InferenceService
from finetune_operator.io.probe import ProbeResult
from finetune_operator.reconcile.pod import ContainerEnd
from finetune_operator.reconcile.service.desired import build_desired
from finetune_operator.reconcile.service.plan import ServiceObserved, Stalled
from finetune_operator.reconcile.service.server_pod import ServerPod
from finetune_operator.resources.annotations import ANNOTATION_ADAPTER_LIST, ANNOTATION_CONFIG
from finetune_operator.settings import Settings
from support.objects.operator_objects import CREATED, FINGERPRINT, SETTINGS, a_service
from support.objects.stories import ServiceStory, Story, compare_stories

STORIES = Path(__file__).parent / "stories"
ADAPTER = {"name": "a", "source": "pvc://c/a", "digest": f"sha256:{'0' * 64}", "fingerprint": FINGERPRINT.to_dict()}
NEWER = {**ADAPTER, "source": "pvc://c/newer", "digest": f"sha256:{'1' * 64}"}
PROBED, PROBED_NEWER = f"a@{'0' * 12}", f"a@{'1' * 12}"
ROLLING = {"rollout": {"mode": "Rolling"}}
MATCHED = ProbeResult("True", Reason.FINGERPRINT_MATCHED, "Deviation 0.001.")
NO_EFFECT = ProbeResult("False", Reason.ADAPTER_HAS_NO_EFFECT, "It answers like the base model.")
SILENCE = ProbeResult("Unknown", Reason.ENDPOINT_UNREACHABLE, "No answer.")
LOADING = ProbeResult("Unknown", Reason.LOADING, "It is loading.", loaded=False)
REFUSED = ProbeResult("False", Reason.ADAPTER_INCOMPATIBLE, "There is no such folder.", loaded=False)
UNPROVABLE = ProbeResult("Unknown", Reason.NO_FINGERPRINT, "The adapter was given without a fingerprint.")


def live(service: InferenceService, ready: int, settings: Settings = SETTINGS, **counts: int) -> dict[str, Any]:
    """The children as applied, with a Deployment of which `ready` pods are ready."""
    desired = build_desired(service, settings)
    assert desired is not None
    children = {child["kind"]: deepcopy(child) for child in desired.children}
    wanted = service.spec.replicas
    status = {"observedGeneration": 1, "replicas": wanted, "updatedReplicas": wanted, "readyReplicas": ready, **counts}
    children["Deployment"]["metadata"] |= {"generation": 1, "resourceVersion": "7"}
    return {**children, "Deployment": {**children["Deployment"], "status": status}}


def servers(service: InferenceService, count: int = 1, name: str = "s", **fields: Any) -> tuple[ServerPod, ...]:
    """Server pods with the current configuration and list; those of a Rolling service wait at their readiness gates."""
    desired = build_desired(service, SETTINGS)
    assert desired is not None
    annotations = {ANNOTATION_CONFIG: desired.config}
    state: dict[str, Any] = {"are_containers_ready": True, "has_readiness_gate": True}
    if desired.list_hash:
        annotations[ANNOTATION_ADAPTER_LIST] = desired.list_hash
        state = {"is_ready": True}
    values = {"annotations": annotations, "started_at": CREATED, "address": "10.0.0.1", **state, **fields}
    return tuple(ServerPod(name=f"{name}{number}", **values) for number in range(count))


def seen(story: ServiceStory, *pods: ServerPod, **counts: int) -> ServiceObserved:
    """The children as applied; without `pods` all replicas run and answer."""
    service = story.service
    running = pods or servers(service, service.spec.replicas)
    ready = counts.pop("readyReplicas", sum(pod.is_ready for pod in running))
    return ServiceObserved(live=live(service, ready, **counts), pods=running)


def answers(name: str, *results: ProbeResult) -> dict[tuple[str, int, str], ProbeResult]:
    """Answers of the replicas, in their order."""
    return {(f"s{number}", 0, name): result for number, result in enumerate(results)}


def verified(*adapters: dict[str, Any], **spec: Any) -> ServiceStory:
    """A service whose adapters are proven on every replica, and whose story begins after that."""
    story = ServiceStory(service=a_service(adapters=[*adapters], **spec))
    for _ in range(2):
        probes = story.step("", seen(story)).probes
        story.step("", seen(story), {probe.key: MATCHED for probe in probes})
    del story.steps[:]
    return story


def first_version() -> list[Story]:
    story = ServiceStory(service=a_service(adapters=[ADAPTER], replicas=2))
    story.step("It is new.", ServiceObserved())
    story.step("Its pods start.", seen(story, ServerPod("s0"), ServerPod("s1")))
    story.step("One replica answers.", seen(story, *servers(story.service), ServerPod("s1")))
    story.step("It loads the adapter.", seen(story), answers(PROBED, LOADING, SILENCE))
    story.step("Nothing has changed.", seen(story))
    story.step("One replica is verified.", seen(story), answers(PROBED, MATCHED, SILENCE))
    story.step("The other one is probed.", seen(story))
    story.step("Both are verified.", seen(story), {("s1", 0, PROBED): MATCHED})
    old_pods = tuple(replace(pod, annotations={}) for pod in servers(story.service, 2))
    story.step("The adapter gets its name.", seen(story, *old_pods))
    story.step("It is probed by its name.", seen(story))
    story.step("It is verified by its name.", seen(story), answers("a", MATCHED, MATCHED))
    story.step("Nothing has changed.", seen(story))
    ending = (
        replace(servers(story.service)[0], is_deleting=True),
        replace(servers(story.service, 2)[1], phase="Failed"),
    )
    new = servers(story.service, name="new")
    story.step("Both replicas are replaced.", seen(story, *ending, *new))
    story.step("The new one is verified.", seen(story, *ending, *new), {("new0", 0, "a"): MATCHED})
    restarted = (replace(new[0], restarts=1), *servers(story.service, name="other"))
    story.step("The new one restarts.", seen(story, *restarted))
    story.step("It is wrong now.", seen(story, *restarted), {("new0", 1, "a"): NO_EFFECT, ("other0", 0, "a"): MATCHED})
    story.step("It hangs.", seen(story, replace(restarted[0], is_ready=False), restarted[1]))
    story.edit(replicas=2)
    story.step("The adapter is removed.", seen(story))
    absent = ServiceStory(service=a_service(adapters=[ADAPTER]))
    absent.step("There is no folder.", seen(absent), answers(PROBED, REFUSED))
    return [story, absent]


def next_version() -> list[Story]:
    good = verified(ADAPTER)
    pods = servers(good.service)
    good.edit(adapters=[NEWER])
    old_list = live(good.service, 1)["ConfigMap"]
    children = {**live(good.service, 1), "ConfigMap": {**old_list, "data": {}}}
    children["ConfigMap"]["metadata"] = {**old_list["metadata"], "annotations": {}}
    waiting = (replace(pods[0], annotations={ANNOTATION_CONFIG: pods[0].annotations[ANNOTATION_CONFIG]}),)
    good.step("It has another version.", ServiceObserved(children, waiting))
    good.step("The version is verified.", seen(good), answers(PROBED_NEWER, MATCHED))
    good.step("It gets the name.", seen(good))
    good.step("It is verified by its name.", seen(good), answers("a", MATCHED))

    bad = verified(ADAPTER, replicas=2)
    bad.edit(adapters=[NEWER], replicas=2)
    bad.step("One replica disproves it.", seen(bad), answers(PROBED_NEWER, MATCHED, NO_EFFECT))
    bad.step("Nothing has changed.", seen(bad))
    bad.step("Its pods are rolled out again.", seen(bad, replicas=3, updatedReplicas=1))
    bad.step("They are complete.", seen(bad))
    upgraded = servers(bad.service, 2, name="image")
    bad.step("The pods that disproved it are gone.", seen(bad, *upgraded))
    bad.step("It is probed again.", seen(bad, *upgraded))

    absent = verified(ADAPTER)
    absent.edit(adapters=[NEWER])
    absent.step("Its folder is missing.", seen(absent), answers(PROBED_NEWER, REFUSED))
    absent.step("It is tried again.", seen(absent))
    absent.step("The server is silent.", seen(absent), answers(PROBED_NEWER, SILENCE))

    unpinned = ServiceStory(service=a_service(adapters=[{"name": "a", "source": "pvc://c/a"}]))
    (probe,) = unpinned.step("It has neither digest nor fingerprint.", seen(unpinned)).probes
    loaded = replace(UNPROVABLE, digest=f"sha256:{'c' * 64}")
    unpinned.step("It is loaded.", seen(unpinned), {probe.key: loaded})
    unpinned.step("It is loaded by its name.", seen(unpinned), answers("a", loaded))

    two = verified(ADAPTER, {**ADAPTER, "name": "b"})
    metrics = [{"name": "eval_loss", "value": "0.4"}]
    two.edit(adapters=[{**ADAPTER, "metrics": metrics}, {**ADAPTER, "name": "b", "metrics": metrics}])
    two.step("Metrics are added.", seen(two))
    two.step("One of two is disproven.", seen(two, *servers(two.service, restarts=1)), {("s0", 1, "b"): NO_EFFECT})

    keyed = SETTINGS.model_copy(update={"promotion_key": SecretStr("a key")})
    promoted = verified(ADAPTER)
    promoted.edit(adapters=[NEWER])
    old_list = live(promoted.service, 1, keyed)["ConfigMap"]
    pods = servers(promoted.service)
    children = {**live(promoted.service, 1), "ConfigMap": old_list}
    promoted.step("It is verified.", ServiceObserved(children, pods), answers(PROBED_NEWER, MATCHED), settings=keyed)
    promoted.step(
        "It is promoted.", ServiceObserved({**live(promoted.service, 1), "ConfigMap": old_list}, pods), settings=keyed
    )
    return [good, bad, absent, unpinned, two, promoted]


def pods_that_do_not_come_up() -> list[Story]:
    stories: list[Story] = []
    crashed = ContainerEnd(4, message="x" * 700 + " bad digest hf_abcdefghijkl\n")
    for title, pod in (
        ("No node fits.", ServerPod("s0", unschedulable=("Unschedulable", "0/3 nodes have a GPU."))),
        ("Its image is missing.", ServerPod("s0", waiting=("ImagePullBackOff", "x"))),
        ("The token is missing.", ServerPod("s0", waiting=("CreateContainerConfigError", 'secret "t" not found'))),
        ("It cannot be created.", ServerPod("s0", waiting=("CreateContainerError", "no runtime nvidia"))),
        ("It crashed.", ServerPod("s0", waiting=("CrashLoopBackOff", "x"), last_end=crashed)),
        ("It is out of memory.", ServerPod("s0", end=ContainerEnd(137, reason="OOMKilled"))),
        ("It is being deleted.", ServerPod("s0", is_deleting=True, waiting=("ErrImagePull", "x"))),
    ):
        story = ServiceStory(service=a_service(model={"source": "hf://org/tiny", "secretRef": {"name": "t"}}))
        story.step(title, seen(story, pod))
        stories.append(story)
    story = ServiceStory()
    story.step("There is no Secret to miss.", seen(story, ServerPod("s0", waiting=("CreateContainerConfigError", "x"))))
    early = ServiceStory()
    for title, status in (("Its Deployment has no status.", None), ("It has no pods.", {"observedGeneration": 1})):
        children = live(early.service, 0)
        children["Deployment"]["status"] = status
        early.step(title, ServiceObserved(children))
    answering = ServiceStory(service=a_service(replicas=2))
    answering.step("It answers.", seen(answering))
    old = {"replicas": 3, "updatedReplicas": 1}
    answering.step("It is rolled out again.", seen(answering, **old))
    answering.step("Its Deployment was not observed yet.", seen(answering, observedGeneration=0))
    answering.step("It does not answer any more.", seen(answering, readyReplicas=0, **old))
    answering.edit(replicas=0)
    answering.step("It is scaled to none.", seen(answering, ServerPod("s0", is_deleting=True), replicas=1))
    answering.step("No pod is left.", ServiceObserved(live(answering.service, 0)))
    return [*stories, story, early, answering]


def children_of_others() -> list[Story]:
    stories: list[Story] = []
    reference = {"apiVersion": "x/v1", "uid": "other", "controller": True, "kind": "Rollout", "name": "x"}
    for title, owners in (
        ("Its Service is somebody else's.", [reference]),
        ("Its Service is that of a deleted namesake.", [{**reference, "kind": "InferenceService", "name": "tone"}]),
        ("Its Service has no owner.", None),
    ):
        story = ServiceStory()
        children = live(story.service, 1)
        children["Service"]["metadata"]["ownerReferences"] = owners
        story.step(title, ServiceObserved(children, servers(story.service)))
        stories.append(story)
    edited = ServiceStory()
    children = live(edited.service, 1)
    children["Service"]["spec"]["selector"]["added"] = "by somebody"
    edited.step("Somebody edits its Service.", ServiceObserved(children, servers(edited.service)))
    refused = ServiceStory()
    refused.step(
        "A child is refused.", ServiceObserved(), refusal=Stalled(Reason.SPEC_INVALID, "Deployment: too long.")
    )
    refused.step(
        "It is still refused.", ServiceObserved(), refusal=Stalled(Reason.SPEC_INVALID, "Deployment: too long.")
    )
    engine = ServiceStory(service=a_service(engine="VLLM"))
    engine.step("Its engine has no image.", ServiceObserved())
    scaled = ServiceStory(service=a_service(autoscaling={"minReplicas": 2, "maxReplicas": 5}))
    children = live(scaled.service, 4, replicas=4, updatedReplicas=4)
    children["Deployment"]["spec"]["replicas"] = 4
    scaled.step("An autoscaler has set 4 pods.", ServiceObserved(children, servers(scaled.service, 4)))
    scaled.edit()
    scaled.step("Autoscaling is switched off.", ServiceObserved(children, servers(scaled.service, 4)))
    return [*stories, edited, refused, engine, scaled]


def pods_of_their_own() -> list[Story]:
    story = ServiceStory(service=a_service(adapters=[ADAPTER], **ROLLING))
    story.step("It is new.", ServiceObserved())
    pod = servers(story.service)[0]
    story.step("Its pod waits at the gate.", seen(story, pod))
    story.step("It is silent.", seen(story, pod), answers("a", SILENCE))
    story.step("It is verified.", seen(story, pod), answers("a", MATCHED))
    opened = replace(pod, is_ready=True, verified_process=pod.process)
    story.step("Its gate is open.", seen(story, opened))
    old = replace(opened, name="old")
    story.edit(adapters=[NEWER], **ROLLING)
    new = servers(story.service)[0]
    moving = {"replicas": 2, "updatedReplicas": 1}
    story.step("A new version starts.", seen(story, old, new, **moving))
    story.step("It is verified beside the old one.", seen(story, old, new, **moving), answers("a", MATCHED))
    opened = replace(new, is_ready=True, verified_process=new.process)
    hanging = replace(opened, is_ready=False, are_containers_ready=False)
    story.step("The old one is gone, and the new one hangs.", seen(story, hanging))
    story.step("It answers again.", seen(story, opened))
    restarted = replace(opened, restarts=1, is_ready=False)
    story.step("It restarts.", seen(story, restarted))
    closed = replace(restarted, verified_process=None)
    story.step("It is verified again.", seen(story, closed), {("s0", 1, "a"): MATCHED})

    bad = ServiceStory(service=a_service(adapters=[ADAPTER], **ROLLING))
    bad.step("It is verified.", seen(bad, pod), answers("a", MATCHED))
    bad.step("Its gate is open.", seen(bad, replace(pod, is_ready=True, verified_process=pod.process)))
    bad.edit(adapters=[NEWER], **ROLLING)
    bad.step("The next version is disproven.", seen(bad, old, new, **moving), answers("a", NO_EFFECT))
    successor = replace(pod, name="successor")
    bad.step("A pod of the old version replaces one.", seen(bad, successor, new, **moving))
    bad.step("No old pod is left.", seen(bad, new, **moving))
    bad.edit(adapters=[ADAPTER], **ROLLING)
    bad.step(
        "It is set back.", seen(bad, replace(old, name="s0"), replace(new, name="n0"), **moving), answers("a", MATCHED)
    )
    undone = ServiceStory(service=a_service(adapters=[ADAPTER], **ROLLING))
    undone.step("It is verified.", seen(undone, pod), answers("a", MATCHED))
    undone.edit(adapters=[NEWER], **ROLLING)
    undone.step("The next version is verified.", seen(undone, old, new, **moving), answers("a", MATCHED))
    undone.edit(adapters=[ADAPTER], **ROLLING)
    mixed = (replace(old, name="s0"), replace(opened, name="n0"))
    undone.step("It is set back while both get traffic.", seen(undone, *mixed, **moving), answers("a", MATCHED))
    undone.step("The next version is gone.", seen(undone, mixed[0]))
    empty = ServiceStory(service=a_service(**ROLLING))
    empty.step("It has no adapters.", seen(empty, *servers(empty.service)))
    merged = ServiceStory(service=a_service(adapters=[ADAPTER], mergeAdapter=True, **ROLLING))
    merged.step("Its adapter is merged.", seen(merged, pod))
    switched = verified(ADAPTER)
    children = live(switched.service, 1)
    hot = servers(switched.service)
    switched.edit(adapters=[ADAPTER], **ROLLING)
    switched.step("It gets pods of its own.", ServiceObserved(children, hot))
    rolling = {**children, **live(switched.service, 1, **moving)}
    pods = (*hot, *servers(switched.service, name="r"))
    switched.step("They start.", ServiceObserved(rolling, pods))
    return [story, bad, undone, empty, merged, switched]


@pytest.mark.parametrize(
    "tell", [first_version, next_version, pods_that_do_not_come_up, children_of_others, pods_of_their_own]
)
def test_the_life_of_a_service_is_that_on_file(tell: Callable[[], list[Story]]) -> None:
    compare_stories(STORIES / f"service-{tell.__name__.replace('_', '-')}.yaml", tell())
