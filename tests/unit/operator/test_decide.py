"""What happens next to a FinetuneJob, situation by situation."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.conditions import ConditionType, Phase
from finetune_api.outcome import MicroBatching
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import (
    AdapterReference,
    FinetuneJob,
    InferenceService,
    InferenceServiceStatus,
    Metric,
    RegressionGate,
    ServedAdapterStatus,
    ServedVersion,
)
from finetune_operator.reconcile.conditions import find_condition
from finetune_operator.reconcile.job.plan import ActionOutcome, Observed, Refusal
from finetune_operator.reconcile.job.reconcile import observe
from finetune_operator.reconcile.job.regression_gate import find_regression
from finetune_operator.settings import Settings
from support.objects.decisions import JobDecision, decide_job
from support.objects.factories import an_inference_service
from support.objects.operator_objects import (
    CREATED,
    FINGERPRINT,
    NOW,
    SETTINGS,
    UID,
    a_child,
    a_failure,
    a_finished_pod,
    a_job,
    a_pod,
    a_progress,
    a_refused_pod,
    a_running_pod,
    a_success,
    a_validated_pod,
    a_validating_pod,
    an_interruption,
    condition,
    with_status,
)

EXISTING = {"models": True, "finetune-adapters": True}


def plan_for(job: FinetuneJob, now: Any = NOW, settings: Settings = SETTINGS, **seen: Any) -> JobDecision:
    return decide_job(job, Observed(**{"claims": EXISTING, **seen}), now, settings)


def running(job: FinetuneJob | None = None, attempt: int = 1) -> FinetuneJob:
    """A job whose attempt is reported as running."""
    job = job or a_job()
    plan = plan_for(job, children=(a_child(attempt),), pods=(a_running_pod(attempt),))
    assert plan.status.phase == Phase.RUNNING
    return with_status(job, plan.status)


def test_a_new_job_gets_its_first_training_job_and_no_report_yet() -> None:
    job = a_job()
    plan = plan_for(job)
    assert [m["metadata"]["name"] for m in plan.create] == ["tone-0a1b2c3d-a1"]
    assert plan.status == job.status


def test_the_default_claim_is_made_where_there_is_none() -> None:
    plan = plan_for(a_job(), claims={"models": True, "finetune-adapters": False})
    assert [m["kind"] for m in plan.create] == ["PersistentVolumeClaim", "Job"]


@pytest.mark.parametrize(
    ("spec", "missing", "reason"),
    [
        ({}, "models", "ModelNotFound"),
        ({"dataset": {"source": "pvc://rows/a.jsonl"}}, "rows", "DatasetNotFound"),
        ({"dataset": {"sources": [{"source": "hf://o/a"}, {"source": "pvc://rows/a"}]}}, "rows", "DatasetNotFound"),
        ({"evaluation": {"source": "pvc://held/a.jsonl"}}, "held", "DatasetNotFound"),
        ({"output": {"claim": "mine"}}, "mine", "SpecInvalid"),
    ],
)
def test_a_missing_claim_ends_the_job_before_a_pod_is_made(spec: Any, missing: str, reason: str) -> None:
    plan = plan_for(a_job(**spec), claims={**EXISTING, missing: False})
    assert plan.create == ()
    assert (plan.status.phase, plan.status.reason) == (Phase.FAILED, reason)
    assert missing in (plan.status.message or "")
    assert condition(plan.status, ConditionType.VALIDATED) == ("False", reason)


def test_a_missing_config_map_is_left_to_the_trainer_who_can_say_which_key() -> None:
    plan = plan_for(a_job(dataset={"source": "configmap://rows/train.jsonl"}))
    volumes = plan.create[0]["spec"]["template"]["spec"]["volumes"]
    (rows,) = [v["configMap"] for v in volumes if "configMap" in v]
    assert rows == {"name": "rows", "items": [{"key": "train.jsonl", "path": "train.jsonl"}], "optional": True}


@pytest.mark.parametrize(
    ("child", "pod", "phase", "reason"),
    [
        ({}, None, Phase.SCHEDULING, "WaitingForPod"),
        ({"is_suspended": True}, None, Phase.QUEUED, "QuotaPending"),
        ({}, {}, Phase.SCHEDULING, "WaitingForPod"),
        ({}, {"unschedulable": ("Unschedulable", "no GPU")}, Phase.SCHEDULING, "Unschedulable"),
        ({}, {"unschedulable": ("SchedulingGated", "")}, Phase.QUEUED, "QuotaPending"),
        ({}, {"is_scheduled": True}, Phase.SCHEDULING, "WaitingForPod"),
        ({}, {"is_scheduled": True, "waiting": ("ErrImagePull", "x")}, Phase.SCHEDULING, "ImagePullFailed"),
        (
            {},
            {"is_scheduled": True, "waiting": ("CreateContainerConfigError", 'secret "t" not found')},
            Phase.SCHEDULING,
            "ModelAccessDenied",
        ),
        ({}, {"is_scheduled": True, "validation_started_at": CREATED}, Phase.VALIDATING, "Validating"),
        ({}, {"is_scheduled": True, "started_at": CREATED}, Phase.RUNNING, "Training"),
        ({}, {"is_scheduled": True, "started_at": CREATED, "reason": "NodeLost"}, Phase.RUNNING, "NodeLost"),
        ({}, {"validation_started_at": CREATED, "reason": "NodeLost"}, Phase.RUNNING, "NodeLost"),
    ],
)
def test_status_says_what_the_pod_is_doing(child: Any, pod: Any, phase: Phase, reason: str) -> None:
    pods = () if pod is None else (a_pod(**pod),)
    job = a_job(model={"source": "hf://org/tiny", "secretRef": {"name": "t"}})
    plan = plan_for(job, children=(a_child(**child),), pods=pods)
    assert (plan.status.phase, plan.status.reason, plan.status.attempt) == (phase, reason, 1)
    assert plan.create == plan.delete_jobs == ()


def test_validated_is_unknown_then_true_in_the_words_of_validate() -> None:
    job = a_job()
    assert condition(plan_for(job, children=(a_child(),)).status, ConditionType.VALIDATED) == ("Unknown", "Validating")
    validating = plan_for(job, children=(a_child(),), pods=(a_validating_pod(),)).status
    assert (validating.phase, validating.start_time) == (Phase.VALIDATING, None)
    assert condition(validating, ConditionType.VALIDATED) == ("Unknown", "Validating")
    # The moment until the trainer starts is not worth a write.
    job = with_status(job, validating)
    between = a_validated_pod("Training: 8 rows.")
    assert plan_for(job, children=(a_child(),), pods=(between,)).status == validating
    trains = replace(between, phase="Running", started_at=NOW, waiting=None)
    status = plan_for(job, children=(a_child(),), pods=(trains,)).status
    assert (status.phase, status.start_time) == (Phase.RUNNING, NOW)
    validated = find_condition(status.conditions, ConditionType.VALIDATED)
    assert validated is not None
    assert (validated.status, validated.reason, validated.message) == ("True", "Accepted", "Training: 8 rows.")


def test_a_trainer_that_cannot_start_after_validation_says_why_and_has_its_time_from_there() -> None:
    pod = a_validated_pod(waiting=("CreateContainerError", "no runtime nvidia"))
    validated = CREATED + timedelta(seconds=5)
    early = plan_for(a_job(), now=validated + timedelta(seconds=599), children=(a_child(),), pods=(pod,))
    assert (early.status.phase, early.requeue_after) == (Phase.SCHEDULING, 1.0)
    assert condition(early.status, ConditionType.VALIDATED) == ("True", "Accepted")
    late = plan_for(a_job(), now=validated + timedelta(seconds=600), children=(a_child(),), pods=(pod,))
    assert (late.status.phase, late.status.reason) == (Phase.FAILED, "StartDeadlineExceeded")
    assert "no runtime nvidia" in (late.status.message or "")


def test_a_long_validation_is_no_late_start() -> None:
    late = CREATED + timedelta(hours=1)
    assert plan_for(a_job(), now=late, children=(a_child(),), pods=(a_validating_pod(),)).status.phase == "Validating"
    timed = a_job(policy={"activeDeadlineSeconds": 300})
    plan = plan_for(timed, now=late, children=(a_child(),), pods=(a_validating_pod(),))
    assert (plan.status.phase, plan.status.reason) == (Phase.FAILED, "DeadlineExceeded")


def test_what_validate_refuses_ends_the_job_without_usage() -> None:
    pod = a_refused_pod(a_failure(Reason.DATASET_INVALID, retryable=False, message="line 3: no prompt"))
    plan = plan_for(a_job(), children=(a_child(outcome="Failed"),), pods=(pod,))
    assert (plan.status.phase, plan.status.reason, plan.status.message) == (
        Phase.FAILED,
        "DatasetInvalid",
        "line 3: no prompt",
    )
    assert condition(plan.status, ConditionType.VALIDATED) == ("False", "DatasetInvalid")
    assert plan.status.usage is not None
    assert (plan.status.usage.attempt_seconds, plan.status.usage.wasted_seconds) == (0, 0)
    assert plan.status.last_failure is not None
    assert (plan.status.last_failure.exit_code, plan.status.start_time) == (3, None)
    settled = with_status(a_job(), plan.status)
    assert plan_for(settled, children=(a_child(outcome="Failed"),), pods=(pod,)).status == settled.status


def test_what_validate_could_not_find_out_is_tried_again() -> None:
    pod = a_refused_pod(a_failure(Reason.MODEL_NOT_FOUND, message="the hub cannot be reached"), exit_code=4)
    plan = plan_for(a_job(), children=(a_child(outcome="Failed"),), pods=(pod,))
    assert (plan.status.phase, plan.status.failed_attempts) == (Phase.RETRYING, 1)
    assert condition(plan.status, ConditionType.VALIDATED) is None


def test_a_validation_that_was_interrupted_costs_no_attempt() -> None:
    job = a_job(policy={"maxAttempts": 1})
    pod = a_refused_pod(an_interruption(), exit_code=143)
    plan = plan_for(job, children=(a_child(outcome="Failed"),), pods=(pod,))
    assert (plan.status.phase, plan.status.failed_attempts) == (Phase.RETRYING, 0)


def test_what_was_validated_once_stays_so_while_another_attempt_validates() -> None:
    job = running()
    failed = plan_for(job, children=(a_child(outcome="Failed"),), pods=(a_finished_pod(a_failure(), exit_code=1),))
    again = plan_for(with_status(job, failed.status), children=(a_child(2),), pods=(a_validating_pod(2),))
    assert again.status.phase == Phase.VALIDATING
    assert condition(again.status, ConditionType.VALIDATED) == ("True", "Accepted")


def test_validate_is_told_of_the_gpu_and_gets_none() -> None:
    def containers(memory: str | None, gpu: int) -> tuple[Any, Any]:
        plan = plan_for(a_job(resources={"gpu": gpu}), settings=Settings(gpu_memory=memory))
        pod = plan.create[0]["spec"]["template"]["spec"]
        (validate,), (trainer,) = pod["initContainers"], pod["containers"]
        assert validate["args"] == ["validate"]
        assert "args" not in trainer
        assert "nvidia.com/gpu" not in validate["resources"]["limits"]
        assert trainer["resources"]["limits"].get("nvidia.com/gpu") == (str(gpu) if gpu else None)
        return validate, trainer

    def gpu_memory(container: Any) -> str | None:
        return next((e["value"] for e in container["env"] if e["name"] == "FINETUNE_GPU_MEMORY"), None)

    assert [gpu_memory(c) for c in containers("80Gi", 2)] == [str(80 << 30), None]
    assert [gpu_memory(c) for c in containers(None, 1)] == ["0", None]
    assert [gpu_memory(c) for c in containers("80Gi", 0)] == [None, None]


def test_the_kubelets_changing_words_about_an_image_do_not_change_status() -> None:
    job = a_job()
    children, pod = (a_child(),), a_pod(is_scheduled=True, waiting=("ErrImagePull", "no such image"))
    first = plan_for(job, children=children, pods=(pod,))
    later = a_pod(is_scheduled=True, waiting=("ImagePullBackOff", "Back-off pulling image"))
    second = plan_for(with_status(job, first.status), children=children, pods=(later,))
    assert second.status == first.status
    assert "no such image" in (second.status.message or "")


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (a_pod(unschedulable=("Unschedulable", "no GPU left")), "StartDeadlineExceeded"),
        (a_pod(is_scheduled=True, waiting=("ErrImagePull", "no GPU left")), "ImagePullFailed"),
    ],
)
def test_a_pod_that_never_starts_fails_the_job_in_its_own_words(pod: Any, reason: str) -> None:
    late = CREATED + timedelta(seconds=600)
    plan = plan_for(a_job(), now=late, children=(a_child(),), pods=(pod,))
    assert (plan.status.phase, plan.status.reason) == (Phase.FAILED, reason)
    assert "no GPU left" in (plan.status.message or "")
    early = plan_for(a_job(), now=late - timedelta(seconds=1), children=(a_child(),), pods=(pod,))
    assert (early.status.phase, early.requeue_after) == (Phase.SCHEDULING, 1.0)


def test_waiting_for_kueue_is_not_waiting_to_start() -> None:
    late = CREATED + timedelta(days=3)
    plan = plan_for(a_job(queueName="q"), now=late, children=(a_child(is_suspended=True),))
    assert plan.status.phase == Phase.QUEUED


def test_a_job_that_kueue_takes_back_waits_and_goes_on_as_the_same_attempt() -> None:
    job, killed = running(a_job(queueName="q")), a_finished_pod(an_interruption(), exit_code=143)
    preempted = plan_for(job, children=(a_child(is_suspended=True),), pods=(killed,))
    assert (preempted.status.phase, preempted.status.reason) == (Phase.QUEUED, Reason.QUOTA_PENDING)
    assert preempted.status.last_failure is None
    job = with_status(job, preempted.status)
    again = plan_for(job, children=(a_child(),), pods=(killed, a_running_pod(name="tone-again")))
    assert (again.status.phase, again.status.attempt, again.create) == (Phase.RUNNING, 1, ())


def test_a_job_that_kueue_took_back_is_stopped_with_its_finetune_job() -> None:
    # Unlike another Job whose pod has ended, it would not finish by itself.
    job, child = a_job(running().status, queueName="q", suspend=True), a_child(is_suspended=True)
    pods = (a_finished_pod(an_interruption(), exit_code=143),)
    assert plan_for(job, children=(child,), pods=pods).delete_jobs == (child,)


def test_success_publishes_the_adapter_and_ends_a_job_without_an_endpoint() -> None:
    job = running()
    seen = {"children": (a_child(outcome="Complete"),), "pods": (a_finished_pod(a_success()),)}
    status = plan_for(job, **seen).status
    assert status.phase == Phase.SUCCEEDED
    assert status.adapter is not None
    assert status.adapter.uri == f"pvc://finetune-adapters/tone/{UID}"
    assert status.completion_time == NOW
    assert status.usage is not None
    assert (status.usage.attempt_seconds, status.usage.wasted_seconds) == (60, 0)


def test_what_the_trainer_says_of_a_success_stays_in_status() -> None:
    said = "Trained 10 steps on 8 rows. Not measured: rouge_l (raises ValueError (no words))."
    outcome = a_success().model_copy(update={"message": said})
    plan = plan_for(running(), children=(a_child(outcome="Complete"),), pods=(a_finished_pod(outcome),))
    ran = find_condition(plan.status.conditions, ConditionType.RUNNING)
    assert ran is not None
    assert (ran.status, ran.reason, ran.message) == ("False", "Trained", said)


def test_an_adapter_outside_its_claim_is_not_published() -> None:
    outcome = a_success()
    forged = outcome.model_copy(
        update={"adapter": outcome.adapter.model_copy(update={"path": "../x"}) if outcome.adapter else None}
    )
    plan = plan_for(running(), children=(a_child(outcome="Complete"),), pods=(a_finished_pod(forged),))
    assert plan.status.adapter is None
    assert plan.status.last_failure is not None
    assert plan.status.last_failure.reason == "TrainerCrashed"


def test_a_failure_is_recorded_before_the_next_attempt_is_made() -> None:
    job = running()
    seen = {"children": (a_child(outcome="Failed"),), "pods": (a_finished_pod(a_failure(), exit_code=1),)}
    report = plan_for(job, **seen)
    assert report.create == ()
    assert (report.status.phase, report.status.failed_attempts) == (Phase.RETRYING, 1)
    assert report.status.last_failure is not None
    assert (report.status.last_failure.attempt, report.status.last_failure.reason) == (1, "LossDiverged")
    assert report.status.usage is not None
    assert report.status.usage.wasted_seconds == 60

    recorded = with_status(job, report.status)
    finished = NOW - timedelta(minutes=1)
    early = plan_for(recorded, now=finished + timedelta(seconds=4), **seen)
    assert (early.create, early.requeue_after) == ((), 1.0)
    due = plan_for(recorded, now=finished + timedelta(seconds=5), **seen)
    assert [m["metadata"]["name"] for m in due.create] == ["tone-0a1b2c3d-a2"]


@pytest.mark.parametrize(
    "alive",
    [
        {"children": (a_child(outcome="Failed"),), "pods": (a_running_pod(is_deleting=True),)},
        {"children": (a_child(),), "pods": ()},
        {"children": (a_child(outcome="Failed", is_deleting=True),), "pods": ()},
    ],
)
def test_no_attempt_starts_while_anything_of_another_may_be_alive(alive: Any) -> None:
    job = running()
    dead = {"children": (a_child(outcome="Failed"),), "pods": (a_finished_pod(a_failure(), exit_code=1),)}
    recorded = with_status(job, plan_for(job, **dead).status)
    assert plan_for(recorded, now=NOW + timedelta(hours=1), **alive).create == ()


def test_delays_grow_and_end() -> None:
    status = running().status
    delays = []
    for failed in range(8):
        job = a_job(status.model_copy(update={"failed_attempts": failed}), policy={"maxAttempts": 20})
        pods = (a_finished_pod(a_failure(), exit_code=1),)
        delays.append(plan_for(job, children=(a_child(outcome="Failed"),), pods=pods).requeue_after)
    assert delays == [5, 10, 20, 40, 80, 160, 300, 300]


def test_the_last_attempt_ends_the_job() -> None:
    job = running(a_job(policy={"maxAttempts": 1}))
    plan = plan_for(job, children=(a_child(outcome="Failed"),), pods=(a_finished_pod(a_failure(), exit_code=1),))
    assert (plan.status.phase, plan.status.reason) == (Phase.FAILED, "AttemptsExhausted")


def test_an_interruption_is_not_a_failed_attempt() -> None:
    job = running(a_job(policy={"maxAttempts": 1}))
    pods = (a_finished_pod(an_interruption(checkpoint_step=7), exit_code=143),)
    plan = plan_for(job, children=(a_child(outcome="Failed"),), pods=pods)
    assert (plan.status.phase, plan.status.failed_attempts) == (Phase.RETRYING, 0)
    assert [c.step for c in plan.status.checkpoints] == [7]
    assert condition(plan.status, ConditionType.CHECKPOINT_AVAILABLE) == ("True", "Training")


def test_a_child_of_a_pass_that_died_is_adopted() -> None:
    plan = plan_for(a_job(), children=(a_child(1),), pods=(a_running_pod(1),))
    assert (plan.status.attempt, plan.status.phase, plan.create) == (1, Phase.RUNNING, ())


def test_suspend_deletes_the_child_and_says_suspended_when_nothing_is_left() -> None:
    job = running(a_job())
    suspended = job.model_copy(update={"spec": job.spec.model_copy(update={"suspend": True})})
    stopping = plan_for(suspended, children=(a_child(),), pods=(a_running_pod(),))
    assert [c.name for c in stopping.delete_jobs] == ["tone-0a1b2c3d-a1"]
    assert stopping.status.phase == Phase.SUSPENDING

    suspended = with_status(suspended, stopping.status)
    pods = (a_finished_pod(an_interruption(checkpoint_step=7), exit_code=143),)
    done = plan_for(suspended, pods=pods)
    assert (done.status.phase, [c.step for c in done.status.checkpoints]) == (Phase.SUSPENDED, [7])
    settled = with_status(suspended, done.status)
    assert plan_for(settled, pods=pods).status == settled.status

    resumed = settled.model_copy(update={"spec": settled.spec.model_copy(update={"suspend": False})})
    again = plan_for(resumed)
    assert [m["metadata"]["name"] for m in again.create] == ["tone-0a1b2c3d-a2"]
    report = plan_for(resumed, children=(a_child(2),), pods=(a_running_pod(2),))
    assert (report.status.phase, report.status.attempt) == (Phase.RUNNING, 2)
    assert condition(report.status, ConditionType.SUSPENDED) == ("False", "Resumed")


def test_an_adapter_that_was_finished_while_suspending_is_kept() -> None:
    job = running(a_job(suspend=False))
    suspended = job.model_copy(update={"spec": job.spec.model_copy(update={"suspend": True})})
    plan = plan_for(suspended, children=(a_child(outcome="Complete"),), pods=(a_finished_pod(a_success()),))
    assert plan.status.phase == Phase.SUCCEEDED


def test_cancel_is_final_and_the_next_pass_stops_the_pod() -> None:
    job = running()
    seen = {"children": (a_child(),), "pods": (a_running_pod(),)}
    cancelled = plan_for(a_job(job.status, cancel=True), **seen)
    assert (cancelled.status.phase, cancelled.delete_jobs) == (Phase.CANCELLED, ())
    after = plan_for(a_job(cancelled.status, cancel=True), **seen)
    assert [c.name for c in after.delete_jobs] == ["tone-0a1b2c3d-a1"]
    assert after.status == cancelled.status


def test_the_job_of_an_ended_pod_is_kept_as_evidence() -> None:
    job = running(a_job(policy={"maxAttempts": 1}))
    seen = {"children": (a_child(),), "pods": (a_finished_pod(a_failure(), exit_code=1),)}
    failed = plan_for(job, **seen)
    assert failed.status.phase == Phase.FAILED
    assert plan_for(with_status(job, failed.status), **seen).delete_jobs == ()


def test_the_deadline_counts_from_creation() -> None:
    job = a_job(policy={"activeDeadlineSeconds": 300})
    seen = {"children": (a_child(),), "pods": (a_running_pod(),)}
    assert plan_for(job, now=CREATED + timedelta(seconds=299), **seen).status.phase == Phase.RUNNING
    plan = plan_for(job, now=CREATED + timedelta(seconds=300), **seen)
    assert (plan.status.phase, plan.status.reason) == (Phase.FAILED, "DeadlineExceeded")


def test_a_finished_job_expires_when_its_time_has_come() -> None:
    job = running(a_job(ttlSecondsAfterFinished=60))
    pods = (a_finished_pod(a_success()),)
    done = with_status(job, plan_for(job, children=(a_child(outcome="Complete"),), pods=pods).status)
    early = plan_for(done, now=NOW + timedelta(seconds=59))
    assert (early.delete_self, early.requeue_after) == (False, 1.0)
    assert plan_for(done, now=NOW + timedelta(seconds=60)).delete_self


def test_a_foreign_child_is_a_conflict() -> None:
    conflict = ActionOutcome(conflict="Job tone-0a1b2c3d-a1")
    plan = decide_job(a_job(), Observed(claims=EXISTING), outcome=conflict)
    assert (plan.status.phase, plan.status.reason) == (Phase.FAILED, "ChildConflict")


def test_progress_is_reported_at_most_once_per_interval() -> None:
    job = running()
    seen = {"children": (a_child(),), "pods": (a_running_pod(),)}
    first = plan_for(job, progress=a_progress(5, loss=1.23456, eta_seconds=130, checkpoint_step=4), **seen).status
    assert first.progress is not None
    assert (first.progress.percent, first.progress.loss, first.progress.eta) == (50, "1.2346", "2m10s")
    assert [c.step for c in first.checkpoints] == [4]
    job = with_status(job, first)
    soon = a_progress(6, timestamp=NOW.timestamp() + 2)
    assert plan_for(job, progress=soon, **seen).status == first
    later = a_progress(6, timestamp=NOW.timestamp() + 5)
    second = plan_for(job, progress=later, **seen).status
    assert second.progress is not None
    assert second.progress.step == 6


def test_memory_that_ran_out_is_an_event_and_stays_in_status() -> None:
    passes = MicroBatching(micro_batch_size=4, reductions=1)
    seen = {"children": (a_child(),), "pods": (a_running_pod(),)}
    first = plan_for(running(), progress=a_progress(5, passes=passes), **seen)
    assert [(event.reason, event.is_warning) for event in first.events] == [("OutOfMemory", True)]
    assert first.status.progress is not None
    assert first.status.progress.passes == passes
    later = a_progress(6, passes=passes, timestamp=NOW.timestamp() + 60)
    assert plan_for(with_status(running(), first.status), progress=later, **seen).events == ()


def test_a_job_that_is_being_deleted_is_left_to_the_garbage_collector() -> None:
    job = a_job()
    job = job.model_copy(update={"metadata": job.metadata.model_copy(update={"deletion_timestamp": NOW})})
    plan = plan_for(job, children=(a_child(),), pods=(a_running_pod(),))
    assert plan == JobDecision(status=job.status)


def test_an_adapter_with_an_endpoint_to_come_is_published_then_applied() -> None:
    job = running(a_job(serve={"replicas": 2}))
    outcome = a_success(fingerprint=FINGERPRINT)
    published = plan_for(job, children=(a_child(outcome="Complete"),), pods=(a_finished_pod(outcome),))
    assert (published.status.phase, published.apply) == (Phase.PUBLISHING, ())
    applied = plan_for(with_status(job, published.status))
    (service,) = applied.apply
    assert service["metadata"]["ownerReferences"][0]["uid"] == UID
    assert service["spec"]["replicas"] == 2
    assert service["spec"]["adapters"][0]["fingerprint"] == FINGERPRINT.to_dict()


def deploying(**service_fields: Any) -> tuple[FinetuneJob, InferenceService]:
    """A job whose endpoint was made as it asked, and the endpoint with other fields of its spec."""
    job = running(a_job(serve={}))
    pods = (a_finished_pod(a_success(fingerprint=FINGERPRINT)),)
    job = with_status(job, plan_for(job, children=(a_child(outcome="Complete"),), pods=pods).status)
    (manifest,) = plan_for(job).apply
    metadata = {**manifest["metadata"], "uid": "service", "generation": 1, "creationTimestamp": NOW}
    spec = {**manifest["spec"], **service_fields}
    return job, InferenceService.model_validate({**manifest, "metadata": metadata, "spec": spec})


def test_what_a_person_adds_to_the_endpoint_of_a_job_stays() -> None:
    job, service = deploying()
    other = AdapterReference(name="other", source=service.spec.adapters[0].source)
    added = {"maxModelLength": 512, "adapters": [a.to_dict() for a in (other, *service.spec.adapters)]}
    job, service = deploying(**added)
    plan = plan_for(job, service=service)
    assert (plan.apply, plan.status.phase) == ((), Phase.DEPLOYING)


def test_an_endpoint_that_others_edit_is_repaired_and_still_has_to_be_ready_in_time() -> None:
    job, service = deploying(replicas=7)
    plan = plan_for(job, service=service)
    assert [child["spec"]["replicas"] for child in plan.apply] == [1]
    assert (plan.status.phase, plan.requeue_after) == (Phase.DEPLOYING, job.spec.serve.timeout_seconds)  # type: ignore[union-attr]
    late = NOW + timedelta(seconds=plan.requeue_after or 0)
    given_up = plan_for(with_status(job, plan.status), now=late, service=service)
    assert (given_up.apply, given_up.status.reason) == ((), Reason.ROLLOUT_TIMEOUT)


SERVED = ServedVersion(
    source="pvc://finetune-adapters/older", digest=f"sha256:{'b' * 64}", metrics=[Metric(name="eval_loss", value="0.4")]
)
INTO = {"serve": {"into": "chat"}, "evaluation": {"fraction": 0.1}}
GATED = {**INTO, "serve": {"into": "chat", "gate": {"metric": "eval_loss", "maxRegression": 0.02}}}


def chat(*adapters: dict[str, Any], served: ServedVersion | None = SERVED, **spec: Any) -> InferenceService:
    """An endpoint of somebody else that serves a version of the job's adapter."""
    raw = an_inference_service("chat", **{"adapters": [*adapters], "adaptersFrom": "Jobs", **spec})
    status = ServedAdapterStatus(name="tone", digest=SERVED.digest, served=served, verified="True", reason="x")
    raw["status"] = InferenceServiceStatus(observed_generation=1, adapters=[status]).to_dict()
    raw["metadata"] |= {"uid": "chat", "generation": 1}
    return InferenceService.model_validate(raw)


def published_for(spec: dict[str, Any], eval_loss: float = 0.41) -> FinetuneJob:
    job = running(a_job(**spec))
    outcome = a_success(fingerprint=FINGERPRINT).model_copy(update={"metrics": {"eval_loss": eval_loss, "loss": 0.1}})
    plan = plan_for(job, children=(a_child(outcome="Complete"),), pods=(a_finished_pod(outcome),))
    return with_status(job, plan.status)


def test_an_adapter_is_added_to_the_endpoint_of_somebody_else_with_what_it_is_compared_by() -> None:
    plan = plan_for(published_for(GATED), service=chat())
    (addition,) = plan.add
    assert addition["metadata"] == {"name": "chat", "namespace": "ml"}
    assert list(addition["spec"]) == ["adapters"]
    (entry,) = addition["spec"]["adapters"]
    assert (entry["name"], entry["metrics"]) == ("tone", [{"name": "eval_loss", "value": "0.41"}])


def test_an_added_adapter_is_followed_until_it_is_verified_and_is_not_put_back_if_it_is_replaced() -> None:
    job = published_for(INTO)
    entry = plan_for(job, service=chat()).add[0]["spec"]["adapters"][0]
    waiting = plan_for(job, service=chat(entry))
    assert (waiting.status.phase, waiting.add, waiting.requeue_after) == (Phase.DEPLOYING, (), 1.0)
    service = chat(entry)
    verdict = ServedAdapterStatus(name="tone", digest=entry["digest"], verified="True", reason="FingerprintMatched")
    done = service.model_copy(update={"status": service.status.model_copy(update={"adapters": [verdict]})})
    assert plan_for(with_status(job, waiting.status), service=done).status.phase == Phase.SUCCEEDED
    replaced = plan_for(with_status(job, waiting.status), service=chat())
    assert (replaced.add, replaced.status.reason) == ((), Reason.CHILD_CONFLICT)


def test_the_age_of_the_endpoint_of_somebody_else_does_not_count_towards_the_jobs_timeout() -> None:
    job = published_for(INTO)
    old = {"creation_timestamp": NOW - timedelta(days=9)}
    service = chat()
    service = service.model_copy(update={"metadata": service.metadata.model_copy(update=old)})
    plan = plan_for(job, service=service)
    listing = service.model_copy(update={"spec": chat(plan.add[0]["spec"]["adapters"][0]).spec})
    for before in (job, with_status(job, plan.status)):
        waiting = plan_for(before, service=listing)
        assert (waiting.status.phase, waiting.status.reason) == (Phase.DEPLOYING, Reason.ROLLING_OUT)
    late = plan_for(with_status(job, plan.status), now=NOW + timedelta(seconds=900), service=listing)
    assert late.status.reason == Reason.ROLLOUT_TIMEOUT


def test_of_two_jobs_that_bring_one_name_at_the_same_time_the_last_one_stays() -> None:
    first = plan_for(published_for(INTO), service=chat())
    ours = first.add[0]["spec"]["adapters"][0]
    theirs = {**ours, "source": "pvc://finetune-adapters/tone/theirs", "digest": f"sha256:{'c' * 64}"}
    overtaken = plan_for(with_status(published_for(INTO), first.status), service=chat(theirs))
    assert (overtaken.add, overtaken.status.reason) == ((), Reason.CHILD_CONFLICT)


def test_a_finished_job_says_that_its_version_was_replaced_and_not_that_the_endpoint_is_gone() -> None:
    job = published_for(INTO)
    entry = plan_for(job, service=chat()).add[0]["spec"]["adapters"][0]
    service = chat(entry)
    verdict = ServedAdapterStatus(name="tone", digest=entry["digest"], verified="True", reason="FingerprintMatched")
    status = service.status.model_copy(update={"adapters": [verdict]})
    done = plan_for(job, service=service.model_copy(update={"status": status}))
    replaced = plan_for(with_status(job, done.status), service=chat({**entry, "digest": f"sha256:{'c' * 64}"}))
    serving = next(c for c in replaced.status.conditions if c.type == ConditionType.SERVING_READY)
    assert (replaced.status.phase, serving.status, serving.reason) == (Phase.SUCCEEDED, "False", "AdapterSwitched")
    assert "another version" in serving.message
    gone = plan_for(with_status(job, done.status))
    assert "was deleted" in next(c for c in gone.status.conditions if c.type == ConditionType.SERVING_READY).message


@pytest.mark.parametrize(
    ("gate", "eval_loss", "served", "words"),
    [
        ({"maxRegression": 0.02}, 0.43, SERVED, "eval_loss is 0.43, of the served version 0.4: worse by 0.03"),
        ({}, 0.4001, SERVED, "worse by 0.0001"),
        ({"maxRegression": 0.02}, 0.42, SERVED, None),
        ({}, 0.3, SERVED, None),
        ({}, 9.0, None, None),
        ({}, 9.0, SERVED.model_copy(update={"metrics": []}), None),
        (
            {"metric": "exact_match"},
            0.1,
            SERVED.model_copy(update={"metrics": [Metric(name="exact_match", value="0.9")]}),
            "did not measure",
        ),
    ],
)
def test_an_adapter_that_is_worse_than_the_served_one_is_stored_and_not_served(
    gate: dict[str, Any], eval_loss: float, served: ServedVersion | None, words: str | None
) -> None:
    job = published_for({**GATED, "serve": {"into": "chat", "gate": gate}}, eval_loss)
    plan = plan_for(job, service=chat(served=served))
    if words is None:
        assert plan.add
        return
    assert (plan.add, plan.status.phase, plan.status.reason) == ((), Phase.FAILED, Reason.EVAL_REGRESSION)
    assert words in (plan.status.message or "")
    assert condition(plan.status, ConditionType.ADAPTER_PUBLISHED) == ("True", "Trained")
    assert condition(plan.status, ConditionType.SERVING_READY) == ("False", "EvalRegression")


def test_of_exact_match_more_is_better() -> None:
    served = [Metric(name="exact_match", value="0.9")]
    gate = RegressionGate(metric="exact_match", max_regression=0.05)
    assert find_regression(gate, [Metric(name="exact_match", value="0.86")], served) is None
    assert "worse by 0.1" in (find_regression(gate, [Metric(name="exact_match", value="0.8")], served) or "")


@pytest.mark.parametrize(
    ("service", "words"),
    [
        (None, "does not exist"),
        (chat(adaptersFrom="Spec"), "set its spec.adaptersFrom to Jobs"),
        (chat(model={"source": "pvc://models/other"}), "serves pvc://models/other"),
        (chat(adapterClaim="elsewhere"), "claim elsewhere"),
    ],
)
def test_an_endpoint_that_cannot_take_the_adapter_says_why(service: InferenceService | None, words: str) -> None:
    plan = plan_for(published_for(INTO), service=service)
    assert (plan.add, plan.status.phase) == ((), Phase.FAILED)
    assert words in (plan.status.message or "")


def test_a_cancelled_job_leaves_the_endpoint_of_somebody_else() -> None:
    job = published_for(INTO)
    entry = plan_for(job, service=chat()).add[0]["spec"]["adapters"][0]
    cancelled = plan_for(a_job(job.status, **INTO, cancel=True), service=chat(entry))
    assert (
        plan_for(with_status(a_job(**INTO, cancel=True), cancelled.status), service=chat(entry)).delete_service is None
    )


def test_an_unreadable_object_of_the_endpoints_name_does_not_block_its_job() -> None:
    job, _ = deploying()
    plan = plan_for(job, unreadable="spec.replicas: too many")
    assert (plan.status.phase, plan.status.reason) == (Phase.FAILED, Reason.CHILD_CONFLICT)
    assert "InferenceService tone" in (plan.status.message or "")
    assert "too many" in (plan.status.message or "")
    cancelled = plan_for(a_job(job.status, serve={}, cancel=True), unreadable="x")
    assert cancelled.status.reason == Reason.CANCELLED_BY_USER


def test_an_unreadable_object_of_the_endpoints_name_is_seen_as_one() -> None:
    class OneService:
        async def list(self, *_: Any) -> list[Any]:
            return []

        async def get(self, *_: Any) -> dict[str, Any]:
            return {"metadata": {"name": "tone", "namespace": "ml"}, "spec": {"replicas": "many"}}

    job, _ = deploying()
    seen = asyncio.run(observe(OneService(), None, job))  # type: ignore[arg-type]
    assert seen.service is None
    assert "spec.replicas" in (seen.unreadable or "")


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_fits_its_schema_and_is_documented(reason: Reason) -> None:
    assert len(reason) <= 128
    assert reason.isalpha()


@pytest.mark.parametrize(
    ("refusal", "phase", "reason"),
    [
        (Refusal("exceeded quota: gpus", is_final=False), Phase.QUEUED, "QuotaPending"),
        (Refusal("spec.x is invalid", is_final=True), Phase.FAILED, "SpecInvalid"),
    ],
)
def test_a_child_that_is_refused_says_so(refusal: Refusal, phase: Phase, reason: str) -> None:
    plan = decide_job(a_job(), Observed(claims=EXISTING), outcome=ActionOutcome(refusal=refusal))
    assert (plan.status.phase, plan.status.reason, plan.create) == (phase, reason, ())
    assert refusal.message in (plan.status.message or "")
