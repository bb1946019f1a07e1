"""The life of a FinetuneJob without an endpoint, against the real API server and Job controller."""

import time
from dataclasses import replace

import pytest

from finetune_api.outcome import Outcome, Result
from finetune_api.reasons import Reason
from lab.figures import Figure, record
from support.cluster.api import Raw, wait_for
from support.cluster.kubelet_actor import DIGEST, FOREVER, Run, failing, refusing, succeeding
from support.cluster.world import World

INTERRUPTED = Outcome(result=Result.INTERRUPTED, reason=Reason.INTERRUPTED, message="saved", checkpoint_step=7)

IDLE_SECONDS = 60
"""Four resyncs: nothing periodic may write."""


def test_a_job_ends_with_its_adapter_in_status(world: World) -> None:
    world.kubelet.script(world.namespace, succeeding())
    world.submit()
    status = world.wait_for_phase("Succeeded")
    assert status["adapter"]["uri"] == "pvc://finetune-adapters/tone"
    assert status["adapter"]["digest"] == DIGEST
    assert status["metrics"] == [{"name": "train_loss", "value": "0.5"}]
    assert (status["attempt"], status["failedAttempts"], status["progress"]["percent"]) == (1, 0, 100)
    assert status["observedGeneration"] == 1
    claim = world.api.get("persistentvolumeclaims", world.namespace, "finetune-adapters")
    assert claim is not None
    assert "ownerReferences" not in claim["metadata"]


def test_a_job_waits_for_the_adapter_that_it_continues_from(world: World) -> None:
    world.kubelet.script(world.namespace, replace(succeeding(), seconds=2), succeeding())
    world.submit("first")
    world.submit("second", continueFrom={"finetuneJob": "first"})
    waiting = world.wait_for_phase("Pending", name="second")
    assert waiting["reason"] == "WaitingForAdapter"
    adapter = world.wait_for_phase("Succeeded", name="first")["adapter"]
    status = world.wait_for_phase("Succeeded", name="second")
    assert status["initialAdapter"] == {"uri": adapter["uri"], "digest": adapter["digest"]}
    assert status["attempt"] == 1


def test_a_failed_attempt_is_followed_by_the_next_and_explained(world: World) -> None:
    world.kubelet.script(world.namespace, Run(message="Traceback: boom", exit_code=1), succeeding())
    world.submit()
    status = world.wait_for_phase("Succeeded")
    assert (status["attempt"], status["failedAttempts"]) == (2, 1)
    failure = status["lastFailure"]
    assert (failure["attempt"], failure["reason"], failure["exitCode"]) == (1, "TrainerCrashed", 1)
    assert failure["logTail"] == "Traceback: boom"


def test_attempts_end_and_the_message_has_the_last_failure(world: World) -> None:
    boom = failing(Reason.LOSS_DIVERGED, retryable=True, message="loss is NaN at step 3")
    world.kubelet.script(world.namespace, boom, replace(boom))
    world.submit(policy={"maxAttempts": 2})
    status = world.wait_for_phase("Failed")
    assert status["reason"] == "AttemptsExhausted"
    assert "loss is NaN at step 3" in status["message"]
    assert len(world.jobs()) == 2


def test_what_another_attempt_cannot_mend_fails_at_once(world: World) -> None:
    world.kubelet.script(world.namespace, failing(Reason.DATASET_INVALID, retryable=False, message="row 3: no prompt"))
    world.submit()
    status = world.wait_for_phase("Failed")
    assert (status["reason"], status["message"], status["attempt"]) == ("DatasetInvalid", "row 3: no prompt", 1)
    assert world.condition("Succeeded") == {}


def test_validation_is_seen_and_its_words_stay(world: World) -> None:
    world.kubelet.script(world.namespace, replace(succeeding(), validation_seconds=1.5, seconds=1.5))
    world.submit()
    world.wait_for_phase("Validating")
    assert (world.condition("Validated")["status"], world.condition("Validated")["reason"]) == ("Unknown", "Validating")
    assert "startTime" not in world.status()
    world.wait_for_phase("Running")
    assert world.condition("Validated")["message"] == "Training: 8 rows, 120 tokens."
    world.wait_for_phase("Succeeded")
    assert world.condition("Validated")["status"] == "True"


def test_what_validate_refuses_never_reaches_the_trainer(world: World) -> None:
    refused = refusing(Reason.DATASET_INVALID, retryable=False, exit_code=3, message="row 3: no prompt")
    world.kubelet.script(world.namespace, refused)
    world.submit()
    status = world.wait_for_phase("Failed")
    assert (status["reason"], status["message"], status["attempt"]) == ("DatasetInvalid", "row 3: no prompt", 1)
    assert (world.condition("Validated")["status"], world.condition("Validated")["reason"]) == (
        "False",
        "DatasetInvalid",
    )
    assert (status["lastFailure"]["exitCode"], status["usage"]["attemptSeconds"]) == (3, 0)
    (pod,) = world.pods()
    assert list(pod["status"]["containerStatuses"][0]["state"]) == ["waiting"]


def test_a_pod_that_is_deleted_while_it_validates_costs_no_attempt(world: World) -> None:
    world.kubelet.script(world.namespace, replace(succeeding(), validation_seconds=FOREVER), succeeding())
    world.submit(policy={"maxAttempts": 1})
    world.wait_for_phase("Validating")
    world.api.delete("pods", world.namespace, world.pods()[0]["metadata"]["name"])
    status = world.wait_for_phase("Succeeded")
    assert (status["attempt"], status["failedAttempts"]) == (2, 0)


def test_a_trainer_killed_at_its_memory_limit_is_host_out_of_memory(world: World) -> None:
    world.kubelet.script(world.namespace, Run(exit_code=137, ended_reason="OOMKilled"))
    world.submit()
    status = world.wait_for_phase("Failed")
    assert (status["reason"], status["lastFailure"]["exitCode"]) == ("HostOutOfMemory", 137)
    assert "resources.memory" in status["message"]


def test_a_deleted_pod_is_an_interruption_not_a_failure(world: World) -> None:
    world.kubelet.script(world.namespace, Run(seconds=FOREVER, interrupted=INTERRUPTED), succeeding())
    world.submit(policy={"maxAttempts": 1})
    world.wait_for_phase("Running")
    world.api.delete("pods", world.namespace, world.pods()[0]["metadata"]["name"])
    status = world.wait_for_phase("Succeeded")
    assert (status["attempt"], status["failedAttempts"]) == (2, 0)
    assert status["lastFailure"]["reason"] in ("Interrupted", "PodDeleted")


def test_a_deleted_training_job_is_an_interruption(world: World) -> None:
    world.kubelet.script(world.namespace, Run(seconds=FOREVER), succeeding())
    world.submit()
    world.wait_for_phase("Running")
    world.api.delete("jobs", world.namespace, world.jobs()[0]["metadata"]["name"])
    status = world.wait_for_phase("Succeeded")
    assert (status["attempt"], status["failedAttempts"]) == (2, 0)


def test_suspend_stops_the_pod_and_resume_goes_on_with_the_next_attempt(world: World) -> None:
    world.kubelet.script(world.namespace, Run(seconds=FOREVER, interrupted=INTERRUPTED), succeeding())
    world.submit()
    world.wait_for_phase("Running")
    world.edit(suspend=True)
    world.wait_for_phase("Suspended")
    assert world.live_pods() == []
    assert world.jobs() == []
    world.edit(suspend=False)
    status = world.wait_for_phase("Succeeded")
    assert (status["attempt"], status["failedAttempts"]) == (2, 0)
    assert world.condition("Suspended")["status"] == "False"


def test_a_job_that_is_created_suspended_waits_without_a_pod(world: World) -> None:
    world.kubelet.script(world.namespace, succeeding())
    world.submit(suspend=True)
    world.wait_for_phase("Suspended")
    assert world.jobs() == []
    world.edit(suspend=False)
    assert world.wait_for_phase("Succeeded")["attempt"] == 1


def test_cancel_ends_the_job_for_good_and_stops_its_pod(world: World) -> None:
    world.kubelet.script(world.namespace, Run(seconds=FOREVER, interrupted=INTERRUPTED))
    world.submit()
    world.wait_for_phase("Running")
    world.edit(cancel=True)
    status = world.wait_for_phase("Cancelled")
    assert status["reason"] == "CancelledByUser"
    wait_for("the pod to be gone", lambda: not world.live_pods())
    wait_for("the Job to be gone", lambda: not world.jobs())


def test_deleting_a_job_leaves_nothing_but_the_adapters(world: World) -> None:
    world.kubelet.script(world.namespace, Run(seconds=FOREVER))
    world.submit()
    world.wait_for_phase("Running")
    world.api.delete("finetunejobs", world.namespace, "tone")
    wait_for("the job to be gone", lambda: world.job() is None)
    wait_for("its children to be gone", lambda: not world.jobs() and not world.pods())
    assert world.api.get("persistentvolumeclaims", world.namespace, "finetune-adapters")


def test_a_finished_job_is_deleted_after_its_time_to_live(world: World) -> None:
    world.kubelet.script(world.namespace, succeeding())
    world.submit(ttlSecondsAfterFinished=2)
    world.wait_for_phase("Succeeded")
    wait_for("the job to expire", lambda: world.job() is None, 15)
    wait_for("its children to be gone", lambda: not world.jobs() and not world.pods())


def test_a_deadline_ends_a_job_that_still_runs(world: World) -> None:
    world.kubelet.script(world.namespace, Run(seconds=FOREVER))
    world.submit(policy={"activeDeadlineSeconds": 10})
    status = world.wait_for_phase("Failed", seconds=25)
    assert status["reason"] == "DeadlineExceeded"
    wait_for("the pod to be gone", lambda: not world.live_pods())


@pytest.mark.parametrize(
    ("run", "reason", "words", "final"),
    [
        (Run(unschedulable="0/1 nodes: insufficient nvidia.com/gpu"), "Unschedulable", "nvidia.com/gpu", None),
        (Run(waiting=("ImagePullBackOff", "no such image")), "ImagePullFailed", "no such image", "ImagePullFailed"),
    ],
)
def test_a_pod_that_cannot_start_says_why_and_fails_at_the_start_deadline(
    world: World, run: Run, reason: str, words: str, final: str | None
) -> None:
    world.kubelet.script(world.namespace, replace(run))
    world.submit(policy={"startDeadlineSeconds": 10})
    wait_for(f"reason {reason}", lambda: world.status().get("reason") == reason, 5)
    assert words in world.status()["message"]
    status = world.wait_for_phase("Failed", seconds=20)
    assert status["reason"] == (final or "StartDeadlineExceeded")
    assert words in status["message"]
    wait_for("the Job to be gone", lambda: not world.jobs())


@pytest.mark.parametrize(
    ("spec", "reason", "words"),
    [
        ({"model": {"source": "pvc://nowhere/tiny"}}, "ModelNotFound", "PersistentVolumeClaim nowhere"),
        ({"dataset": {"source": "pvc://nothing/a.jsonl"}}, "DatasetNotFound", "PersistentVolumeClaim nothing"),
        ({"output": {"claim": "elsewhere"}}, "SpecInvalid", "spec.output.claim"),
        ({"dataset": {"inline": "x" * 130_000}, "evaluation": {"inline": "y" * 130_000}}, "SpecInvalid", "ConfigMap"),
    ],
)
def test_what_cannot_work_fails_within_seconds_and_without_a_pod(
    world: World, spec: Raw, reason: str, words: str
) -> None:
    world.submit(**spec)
    status = world.wait_for_phase("Failed", seconds=5)
    assert status["reason"] == reason
    assert words in status["message"]
    assert world.condition("Validated")["status"] == "False"
    assert world.jobs() == []


def test_a_foreign_job_of_the_childs_name_is_a_conflict(world: World) -> None:
    job = world.submit(suspend=True)
    world.wait_for_phase("Suspended")
    name = f"tone-{job['metadata']['uid'][:8]}-a1"
    container = {"name": "c", "image": "example/none"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    manifest = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": world.namespace}}
    world.api.create("jobs", {**manifest, "spec": {"suspend": True, "template": template}})
    world.edit(suspend=False)
    status = world.wait_for_phase("Failed")
    assert status["reason"] == "ChildConflict"
    assert name in status["message"]


def test_a_queued_job_is_created_suspended_and_then_left_to_kueue(world: World) -> None:
    world.kubelet.script(world.namespace, succeeding())
    world.submit(queueName="team-a")
    world.wait_for_phase("Queued")
    (child,) = world.jobs()
    assert child["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert child["spec"]["suspend"] is True
    world.api.patch("jobs", world.namespace, child["metadata"]["name"], {"spec": {"suspend": False}})
    assert world.wait_for_phase("Succeeded")["attempt"] == 1


def test_a_train_only_job_costs_few_writes_and_a_settled_one_none(world: World) -> None:
    started = time.monotonic()
    world.submit("first", suspend=True)
    world.kubelet.script(world.namespace, *(replace(succeeding(), seconds=1.5) for _ in range(4)))
    # The namespace's claim is made once, by its first job.
    world.submit("claim-maker")
    world.wait_for_phase("Succeeded", name="claim-maker")
    counts = []
    for name in ("one", "two", "three"):
        before = len(world.writes())
        world.submit(name)
        world.wait_for_phase("Succeeded", name=name)
        time.sleep(1)
        writes = world.writes()[before:]
        counts.append(len(writes))
        # The Job, Scheduling, Validating, Running, Succeeded and its event; a quick machine passes over one of the states.
        assert len(writes) <= 6, [(w["verb"], w["objectRef"]) for w in writes]
    settled = len(world.writes())
    time.sleep(IDLE_SECONDS)
    idle = world.writes()[settled:]
    assert idle == []
    figures = [
        Figure("operator writes per train-only job", max(counts), "writes", "lower", must=5, aim=4),
        Figure("operator writes in an idle minute with settled jobs", len(idle), "writes", "lower", must=0),
    ]
    record("operator-writes", figures, time.monotonic() - started)


def test_a_quota_is_waited_for_in_the_api_servers_words(world: World) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": world.namespace}}
    world.api.create("resourcequotas", {**quota, "spec": {"hard": {"count/jobs.batch": "0"}}})
    wait_for("the quota to count", lambda: world.api.get("resourcequotas", world.namespace, "none")["status"])  # type: ignore[index]
    world.kubelet.script(world.namespace, succeeding())
    world.submit()
    status = world.wait_for_phase("Queued")
    assert status["reason"] == "QuotaPending"
    assert "exceeded quota: none" in status["message"]
    world.api.delete("resourcequotas", world.namespace, "none")
    assert world.wait_for_phase("Succeeded", seconds=40)["attempt"] == 1
