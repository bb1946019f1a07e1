"""Raw objects as the kubelet and the Job controller write them, and all that decisions know of them."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.v1alpha1 import FinetuneJobStatus
from finetune_operator.reconcile.job.attempts import find_attempt
from finetune_operator.reconcile.job.training_pod import ChildJob, TrainingPod, parse_child_job, parse_training_pod
from finetune_operator.reconcile.pod import ContainerEnd, parse_time
from finetune_operator.reconcile.service.server_pod import ServerPod, parse_server_pod
from support.objects.operator_objects import CREATED, NOW, a_child, a_finished_pod, a_running_pod

T1, T2, T3, T4 = (f"2026-01-02T03:04:0{second}Z" for second in (1, 2, 3, 4))
METADATA = {"name": "p", "uid": "0a-1b", "resourceVersion": "7", "creationTimestamp": T1, "annotations": {"note": "x"}}
BARE = {"metadata": {"name": "p"}}
ENDED = {"exitCode": 3, "reason": "Error", "message": "{}", "startedAt": T2, "finishedAt": T3}
END = ContainerEnd(exit_code=3, reason="Error", message="{}", started_at=parse_time(T2), finished_at=parse_time(T3))


def a_raw_pod(*, conditions: Any = (), init: Any = (), containers: Any = (), spec: Any = None, **status: Any) -> Any:
    """A raw pod; `init` and `containers` are container statuses."""
    kinds = {"conditions": [*conditions], "initContainerStatuses": [*init], "containerStatuses": [*containers]}
    metadata = {**METADATA, "labels": {"finetune.dev/attempt": "3"}}
    return {"metadata": metadata, "spec": spec or {}, "status": {**kinds, **status}}


def container(name: str, restarts: int = 0, before: Any = None, **state: Any) -> dict[str, Any]:
    """A container's status."""
    last = {"lastState": {"terminated": before}} if before else {}
    return {"name": name, "restartCount": restarts, "state": state, **last}


COMMON: dict[str, Any] = {"name": "p", "annotations": {"note": "x"}}
TRAINING: dict[str, Any] = {**COMMON, "attempt": 3, "created": parse_time(T1)}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (BARE, TrainingPod(name="p", phase="Pending")),
        ({**BARE, "status": {"phase": "Pending", "conditions": None, "containerStatuses": None}}, TrainingPod("p")),
        (
            a_raw_pod(
                conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "m"}]
            ),
            TrainingPod(**TRAINING, unschedulable=("Unschedulable", "m")),
        ),
        (
            a_raw_pod(conditions=[{"type": "PodScheduled", "status": "False"}]),
            TrainingPod(**TRAINING, unschedulable=("", "")),
        ),
        (
            a_raw_pod(conditions=[{"type": "PodScheduled", "status": "True"}]),
            TrainingPod(**TRAINING, is_scheduled=True),
        ),
        (
            a_raw_pod(
                conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}],
                phase="Failed",
                reason="Evicted",
                message="The node had no disk.",
            ),
            TrainingPod(
                **TRAINING,
                phase="Failed",
                reason="Evicted",
                message="The node had no disk.",
                disruption=("EvictionByEvictionAPI", ""),
            ),
        ),
        (
            a_raw_pod(conditions=[{"type": "DisruptionTarget", "status": "False", "reason": "x"}]),
            TrainingPod(**TRAINING),
        ),
        (
            a_raw_pod(
                init=[container("validate", running={"startedAt": T2})],
                containers=[container("trainer", waiting={"reason": "PodInitializing"})],
            ),
            TrainingPod(**TRAINING, validation_started_at=parse_time(T2), waiting=("PodInitializing", "")),
        ),
        (
            a_raw_pod(
                init=[container("injected", running={"startedAt": T1}), container("validate", terminated=ENDED)],
                containers=[
                    container("sidecar", waiting={"reason": "ErrImagePull", "message": "404"}),
                    container("trainer", waiting={"reason": "ContainerCreating"}),
                ],
            ),
            TrainingPod(
                **TRAINING,
                validation_started_at=parse_time(T2),
                validation_end=END,
                waiting=("ErrImagePull", "404"),
            ),
        ),
        (
            a_raw_pod(
                containers=[
                    container("sidecar", running={"startedAt": T1}),
                    container("trainer", running={"startedAt": T4}),
                ],
                phase="Running",
            ),
            TrainingPod(**TRAINING, phase="Running", started_at=parse_time(T4)),
        ),
        (
            a_raw_pod(containers=[container("trainer", terminated=ENDED)], phase="Failed"),
            TrainingPod(**TRAINING, phase="Failed", started_at=parse_time(T2), end=END),
        ),
        (
            a_raw_pod(containers=[container("trainer", terminated={"exitCode": 0})], phase="Succeeded"),
            TrainingPod(**TRAINING, phase="Succeeded", end=ContainerEnd(0)),
        ),
        (
            a_raw_pod(containers=[container("trainer", terminated={"reason": "ContainerStatusUnknown"})]),
            TrainingPod(**TRAINING, end=ContainerEnd(-1, "ContainerStatusUnknown")),
        ),
    ],
)
def test_a_training_pod_is_all_that_the_kubelet_says_of_it(raw: Any, expected: TrainingPod) -> None:
    assert parse_training_pod(raw) == expected


def test_what_is_being_deleted_is_known_to_be() -> None:
    metadata = {"name": "p", "deletionTimestamp": T1}
    assert parse_training_pod({"metadata": metadata}) == TrainingPod("p", is_deleting=True)
    assert parse_server_pod({"metadata": metadata}) == ServerPod("p", is_deleting=True)
    assert parse_child_job({"metadata": metadata}) == ChildJob("p", is_deleting=True)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (BARE, ServerPod(name="p")),
        (a_raw_pod(podIP="10.0.0.1"), ServerPod(**COMMON, uid="0a-1b", resource_version="7", address="10.0.0.1")),
        (
            a_raw_pod(
                conditions=[{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "False"}],
                containers=[container("sidecar", 9), container("server", 2, ENDED, running={"startedAt": T4})],
                phase="Running",
            ),
            ServerPod(
                **COMMON,
                uid="0a-1b",
                resource_version="7",
                phase="Running",
                is_ready=True,
                started_at=parse_time(T4),
                last_end=END,
                restarts=2,
            ),
        ),
        (
            a_raw_pod(
                conditions=[{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}],
                spec={"readinessGates": [{"conditionType": "x"}, {"conditionType": "finetune.dev/adapters-verified"}]},
            ),
            ServerPod(**COMMON, uid="0a-1b", resource_version="7", are_containers_ready=True, has_readiness_gate=True),
        ),
        (
            a_raw_pod(spec={"readinessGates": [{"conditionType": "x"}]}),
            ServerPod(**COMMON, uid="0a-1b", resource_version="7"),
        ),
    ],
)
def test_a_server_pod_is_all_that_the_kubelet_says_of_it(raw: Any, expected: ServerPod) -> None:
    assert parse_server_pod(raw) == expected


GATE = {"type": "finetune.dev/adapters-verified", "status": "True"}
PROCESS = "AdaptersVerified:0a1b:2"


@pytest.mark.parametrize(
    ("gate", "process"),
    [
        ({**GATE, "reason": "AdaptersVerified:0a1b:1"}, "AdaptersVerified:0a1b:1"),
        ({**GATE, "status": "False", "reason": "AdaptersVerified:0a1b:1"}, None),
        # Earlier releases said no more than when.
        ({**GATE, "reason": "AdaptersVerified", "lastTransitionTime": T3}, PROCESS),
        ({**GATE, "lastTransitionTime": T2}, PROCESS),
        ({**GATE, "lastTransitionTime": T1}, "Unknown"),
        (GATE, "Unknown"),
    ],
)
def test_an_open_gate_names_the_process_that_it_was_opened_for(gate: Any, process: str | None) -> None:
    raw = a_raw_pod(conditions=[gate], containers=[container("server", 2, running={"startedAt": T2})])
    assert parse_server_pod(raw).verified_process == process


def test_an_open_gate_of_an_earlier_release_does_not_count_for_a_server_that_does_not_run() -> None:
    raw = a_raw_pod(conditions=[{**GATE, "lastTransitionTime": T3}], containers=[container("server", 2)])
    assert parse_server_pod(raw).verified_process == "Unknown"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (BARE, ChildJob(name="p")),
        (
            {"metadata": {**METADATA, "labels": {"finetune.dev/attempt": "3"}}, "status": {"startTime": T2}},
            ChildJob("p", attempt=3, uid="0a-1b", created=parse_time(T1), started=parse_time(T2)),
        ),
        ({**BARE, "spec": {"suspend": True}}, ChildJob("p", is_suspended=True)),
        ({**BARE, "spec": {"suspend": False}}, ChildJob("p")),
        (
            {
                **BARE,
                "status": {
                    "conditions": [
                        {"type": "Suspended", "status": "True", "message": "no"},
                        {"type": "Complete", "status": "False", "message": "no"},
                        {"type": "Failed", "status": "True", "message": "BackoffLimitExceeded"},
                    ]
                },
            },
            ChildJob("p", outcome="Failed", message="BackoffLimitExceeded"),
        ),
        (
            {**BARE, "status": {"conditions": [{"type": "Complete", "status": "True"}]}},
            ChildJob("p", outcome="Complete"),
        ),
    ],
)
def test_a_job_is_all_that_its_controller_says_of_it(raw: Any, expected: ChildJob) -> None:
    child = parse_child_job(raw)
    assert child == expected
    assert child.is_finished == (expected.outcome != "")


def test_of_several_pods_of_an_attempt_the_living_one_counts_and_of_equal_ones_the_newest() -> None:
    old, new, undated = (
        a_finished_pod(exit_code=1, name=name, created=created)
        for name, created in (("old", CREATED), ("new", NOW), ("undated", None))
    )
    alive = a_running_pod(name="alive", created=CREATED - timedelta(hours=1))
    other = a_running_pod(1, name="other")

    def found(*pods: TrainingPod) -> str | None:
        attempt = find_attempt(FinetuneJobStatus(), (), [other, *(replace(pod, attempt=2) for pod in pods)])
        return attempt.pod.name if attempt.pod is not None else None

    assert found(old, new, undated) == found(undated, new, old) == "new"
    assert found(undated, old) == found(old, undated) == "old"
    assert found(new, alive, old) == found(alive, new) == "alive"


def test_the_latest_attempt_is_found_wherever_it_left_a_trace() -> None:
    children = (a_child(1), a_child(3))
    numbers = [
        find_attempt(FinetuneJobStatus(attempt=status), jobs, pods).number
        for status, jobs, pods in ((0, (), ()), (2, (), ()), (2, children, ()), (2, children, (a_running_pod(4),)))
    ]
    assert numbers == [0, 2, 3, 4]
    attempt = find_attempt(FinetuneJobStatus(attempt=2), children, ())
    assert attempt.child == children[1]
