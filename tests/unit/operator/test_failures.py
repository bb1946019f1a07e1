"""Every way a pod can end has one reason, and says whether it counts and whether another attempt can help."""

import pytest

from finetune_api.contract import ExitCode
from finetune_api.reasons import Reason
from finetune_operator.reconcile.job.attempt_outcome import classify_pod, find_end
from finetune_operator.reconcile.job.training_pod import TrainingPod, parse_child_job, parse_training_pod
from finetune_operator.reconcile.pod import ContainerEnd
from finetune_operator.reconcile.pod_reasons import redact
from support.objects.operator_objects import (
    NOW,
    a_child,
    a_failure,
    a_finished_pod,
    a_pod,
    a_refused_pod,
    a_running_pod,
    a_success,
    a_validated_pod,
    an_interruption,
)

FAILED = {"counts": True, "retryable": False}
RETRY = {"counts": True, "retryable": True}
INTERRUPTED = {"counts": False, "retryable": True}


@pytest.mark.parametrize(
    ("pod", "reason", "expected"),
    [
        (a_finished_pod(a_failure(Reason.DATASET_INVALID, retryable=False), exit_code=3), "DatasetInvalid", FAILED),
        (a_finished_pod(a_failure(Reason.LOSS_DIVERGED, retryable=True), exit_code=1), "LossDiverged", RETRY),
        (a_finished_pod(an_interruption(), exit_code=143), "Interrupted", INTERRUPTED),
        (a_finished_pod("", exit_code=137, ended_reason="OOMKilled"), "HostOutOfMemory", FAILED),
        # The kernel's word counts more than what the trainer said before.
        (a_finished_pod(a_failure(), exit_code=137, ended_reason="OOMKilled"), "HostOutOfMemory", FAILED),
        (a_finished_pod("", exit_code=ExitCode.CONFIG_INVALID), "SpecInvalid", FAILED),
        (a_finished_pod("", exit_code=ExitCode.DATASET_INVALID), "DatasetInvalid", FAILED),
        (a_finished_pod("", exit_code=ExitCode.MODEL_INVALID), "ModelInvalid", FAILED),
        (a_finished_pod("", exit_code=ExitCode.STORAGE_FULL), "StorageFull", RETRY),
        (a_finished_pod("", exit_code=ExitCode.FENCED), "Fenced", INTERRUPTED),
        (a_finished_pod("", exit_code=ExitCode.INTERRUPTED), "Interrupted", INTERRUPTED),
        (a_finished_pod("Traceback", exit_code=ExitCode.BUG), "TrainerCrashed", RETRY),
        (a_finished_pod("", exit_code=137), "TrainerCrashed", RETRY),
        (a_finished_pod("", exit_code=137, is_deleting=True), "PodDeleted", INTERRUPTED),
        (a_finished_pod("", exit_code=0), "TrainerCrashed", RETRY),
        (a_finished_pod('{"result": "Succ', exit_code=1), "TrainerCrashed", RETRY),
        (
            a_finished_pod("", exit_code=137, disruption=("EvictionByEvictionAPI", "drained")),
            "Preempted",
            INTERRUPTED,
        ),
        (
            a_finished_pod(an_interruption(), exit_code=143, disruption=("PreemptionByScheduler", "")),
            "Preempted",
            INTERRUPTED,
        ),
        (a_finished_pod("", exit_code=1, disruption=("DeletionByTaintManager", "")), "NodeLost", INTERRUPTED),
        (a_finished_pod("", exit_code=137, reason="Evicted", message="ephemeral storage"), "StorageFull", RETRY),
        (a_pod(phase="Failed", reason="NodeLost"), "NodeLost", INTERRUPTED),
        (a_pod(phase="Failed", reason="OutOfcpu"), "Preempted", INTERRUPTED),
        (a_pod(phase="Failed"), "PodDeleted", INTERRUPTED),
    ],
)
def test_how_a_pod_ended(pod: TrainingPod, reason: str, expected: dict[str, bool]) -> None:
    end = classify_pod(pod)
    assert end.reason == reason
    assert not end.is_success
    assert {"counts": not end.is_interruption, "retryable": end.is_retryable} == expected
    assert end.message


UNKNOWN_END = ContainerEnd(137, "ContainerStatusUnknown")
"""What the kubelet says of a container that it never started, in a pod that it had to end."""


@pytest.mark.parametrize(
    ("pod", "reason", "expected"),
    [
        (a_refused_pod(a_failure(Reason.DATASET_INVALID, retryable=False)), "DatasetInvalid", FAILED),
        (a_refused_pod(a_failure(Reason.MODEL_NOT_FOUND, retryable=True), exit_code=4), "ModelNotFound", RETRY),
        (a_refused_pod(a_failure(Reason.DATASET_INVALID, retryable=False), end=UNKNOWN_END), "DatasetInvalid", FAILED),
        (a_refused_pod(an_interruption(), exit_code=143), "Interrupted", INTERRUPTED),
        (a_refused_pod("", exit_code=137, ended_reason="OOMKilled"), "HostOutOfMemory", FAILED),
        (a_refused_pod("", exit_code=ExitCode.DATASET_INVALID), "DatasetInvalid", FAILED),
        (a_refused_pod("", exit_code=ExitCode.FENCED), "Fenced", INTERRUPTED),
        (a_refused_pod("Traceback", exit_code=ExitCode.BUG), "TrainerCrashed", RETRY),
        (a_refused_pod("", exit_code=137, is_deleting=True), "PodDeleted", INTERRUPTED),
        (a_refused_pod("", exit_code=137, disruption=("EvictionByEvictionAPI", "")), "Preempted", INTERRUPTED),
        (a_refused_pod("", exit_code=137, reason="Evicted", message="emptyDir"), "StorageFull", RETRY),
    ],
)
def test_how_an_attempt_ended_before_its_trainer_started(
    pod: TrainingPod, reason: str, expected: dict[str, bool]
) -> None:
    end = classify_pod(pod)
    assert end.reason == reason
    assert {"counts": not end.is_interruption, "retryable": end.is_retryable} == expected
    assert end.is_validation
    assert end.started_at is None, "no trainer, no usage"
    assert pod.validation_end is not None
    assert (end.exit_code, end.finished_at) == (pod.validation_end.exit_code, pod.validation_end.finished_at)
    assert end.log_tail == ("Traceback" if reason == "TrainerCrashed" else None)


def test_who_ran_out_of_memory_is_said() -> None:
    killed = {"exit_code": 137, "ended_reason": "OOMKilled"}
    assert classify_pod(a_refused_pod("", **killed)).message.startswith("The validation before training needed more")  # type: ignore[arg-type]
    assert classify_pod(a_finished_pod("", **killed)).message.startswith("The trainer needed more")  # type: ignore[arg-type]


def test_a_pod_that_ended_between_validation_and_training_was_deleted() -> None:
    end = classify_pod(a_validated_pod(phase="Failed"))
    assert (end.reason, end.is_interruption, end.is_validation) == (Reason.POD_DELETED, True, False)


def test_a_trainer_that_failed_was_validated_before() -> None:
    validation_end = a_validated_pod().validation_end
    pod = a_finished_pod(a_failure(Reason.LOSS_DIVERGED), exit_code=1, validation_end=validation_end)
    assert (classify_pod(pod).reason, classify_pod(pod).is_validation) == (Reason.LOSS_DIVERGED, False)


def test_an_adapter_that_was_committed_counts_whatever_happened_to_the_pod_afterwards() -> None:
    end = classify_pod(a_finished_pod(a_success(), exit_code=0, is_deleting=True, disruption=("Drained", "")))
    assert end.is_success
    assert end.outcome is not None
    assert end.outcome.adapter is not None


def test_the_log_of_a_crash_is_kept_without_credentials() -> None:
    text = "GET https://user:pa55@hub/x failed with hf_abcdefghijklmnop, Authorization: Bearer abcdefghijk"
    end = classify_pod(a_finished_pod(text, exit_code=1))
    assert end.log_tail == redact(text)
    for secret in ("pa55", "hf_abcdefghijklmnop", "abcdefghijk,"):
        assert secret not in (end.log_tail or "")


def test_an_attempt_without_pod_or_job_was_deleted_if_it_ever_existed() -> None:
    assert find_end(None, None, was_created=False) is None
    end = find_end(None, None, was_created=True)
    assert end is not None
    assert (end.reason, end.is_interruption) == (Reason.POD_DELETED, True)


def test_an_attempt_goes_on_while_its_pod_or_its_job_does() -> None:
    assert find_end(a_child(), a_running_pod(is_deleting=True), was_created=True) is None
    assert find_end(a_child(outcome="Failed"), a_running_pod(), was_created=True) is None
    assert find_end(a_child(), None, was_created=True) is None
    assert find_end(a_child(is_deleting=True, outcome="Failed"), None, was_created=True) is None


@pytest.mark.parametrize("outcome", ["Failed", "Complete"])
def test_a_finished_job_whose_pod_is_gone_was_interrupted(outcome: str) -> None:
    end = find_end(a_child(outcome=outcome), None, was_created=True)
    assert end is not None
    assert end.is_interruption


def test_raw_objects_are_read_at_the_border() -> None:
    raw = {
        "metadata": {"name": "p", "labels": {"finetune.dev/attempt": "3"}, "creationTimestamp": "2026-01-02T03:04:05Z"},
        "status": {
            "phase": "Pending",
            "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU"},
                {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "m"},
            ],
            "containerStatuses": [
                {"name": "trainer", "state": {"waiting": {"reason": "ErrImagePull", "message": "x"}}},
                {"name": "sidecar", "state": {"running": {}}},
            ],
        },
    }
    pod = parse_training_pod(raw)
    assert (pod.attempt, pod.unschedulable, pod.is_scheduled) == (3, ("Unschedulable", "no GPU"), False)
    assert (pod.disruption, pod.waiting) == (("PreemptionByScheduler", "m"), ("ErrImagePull", "x"))


def test_the_container_before_the_trainer_is_read_as_the_kubelet_writes_it() -> None:
    ended = {"exitCode": 3, "reason": "Error", "message": "{}", "startedAt": "2026-01-02T03:04:05Z"}
    raw = {
        "metadata": {"name": "p"},
        "status": {
            "phase": "Failed",
            "initContainerStatuses": [{"name": "validate", "state": {"terminated": ended}}],
            "containerStatuses": [{"name": "trainer", "state": {"waiting": {"reason": "PodInitializing"}}}],
        },
    }
    pod = parse_training_pod(raw)
    assert (pod.started_at, pod.end, pod.waiting) == (None, None, ("PodInitializing", ""))
    assert pod.validation_started_at == NOW
    assert pod.validation_end == ContainerEnd(3, "Error", "{}", NOW)


@pytest.mark.parametrize("label", ["", "x", "-1", "٣", "1e9", "99999999999"])
def test_a_forged_attempt_label_is_not_believed(label: str) -> None:
    raw = {"metadata": {"name": "j", "labels": {"finetune.dev/attempt": label}}}
    assert parse_child_job(raw).attempt == 0
