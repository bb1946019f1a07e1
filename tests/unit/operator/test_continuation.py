"""A job that continues from the adapter of another one: it waits, keeps to what it found, or says why it never will."""

import asyncio
from typing import Any

import pytest

from finetune_api.conditions import ConditionType, Phase
from finetune_api.training import InitialAdapterConfig, TrainingConfig
from finetune_api.v1alpha1 import FinetuneJobStatus
from finetune_operator.io.cluster import CLAIMS, FINETUNE_JOBS, Resource
from finetune_operator.reconcile.job.plan import Observed
from finetune_operator.reconcile.job.reconcile import observe
from finetune_operator.resources.annotations import ANNOTATION_CONFIG
from support.objects.decisions import JobDecision, decide_job
from support.objects.operator_objects import (
    NOW,
    SETTINGS,
    a_child,
    a_failure,
    a_finished_pod,
    a_job,
    condition,
    with_status,
)

URI = "pvc://elsewhere/polite/uid-9"
DIGEST = f"sha256:{'b' * 64}"
AFTER = {"continueFrom": {"finetuneJob": "polite"}}
CLAIMS_THERE = {"models": True, "finetune-adapters": True, "elsewhere": True}
ADAPTER = {"name": "polite", "uri": URI, "digest": DIGEST, "baseModel": "pvc://models/tiny"}
FAILED = [{"type": "Failed", "status": "True", "reason": "LossDiverged", "lastTransitionTime": NOW}]


def earlier(**status: Any) -> FinetuneJobStatus:
    return FinetuneJobStatus.model_validate(status)


def plan_for(job: Any, **seen: Any) -> JobDecision:
    return decide_job(job, Observed(**{"claims": CLAIMS_THERE, **seen}), NOW, SETTINGS)


def initial_adapter(plan: JobDecision) -> InitialAdapterConfig | None:
    (manifest,) = plan.create
    text = manifest["spec"]["template"]["metadata"]["annotations"][ANNOTATION_CONFIG]
    return TrainingConfig.model_validate_json(text).initial_adapter


def test_it_waits_for_a_job_without_an_adapter_and_says_for_what() -> None:
    plan = plan_for(a_job(**AFTER), earlier=earlier(phase="Running"))
    assert (plan.create, plan.status.phase, plan.status.reason) == ((), Phase.PENDING, "WaitingForAdapter")
    assert "FinetuneJob polite in namespace ml has no adapter yet (it is Running)" in (plan.status.message or "")
    assert plan.requeue_after is not None
    again = plan_for(with_status(a_job(**AFTER), plan.status), earlier=earlier(phase="Running"))
    assert again.status == plan.status


def test_what_it_waited_for_is_in_status_before_the_first_attempt_and_all_attempts_keep_to_it() -> None:
    waiting = with_status(a_job(**AFTER), plan_for(a_job(**AFTER), earlier=earlier()).status)
    pinned = plan_for(waiting, earlier=earlier(adapter=ADAPTER))
    assert pinned.create == ()
    assert condition(pinned.status, ConditionType.VALIDATED) == ("Unknown", "Validating")
    job = with_status(waiting, pinned.status)
    expected = InitialAdapterConfig(path="/initial-adapter/polite/uid-9", digest=DIGEST, source=URI)
    # Whatever becomes of the other job, it is not asked again.
    assert initial_adapter(plan_for(job)) == expected
    ended = plan_for(job, children=(a_child(),), pods=(a_finished_pod(a_failure(), exit_code=1),))
    assert ended.status.failed_attempts == 1
    later = NOW.replace(year=NOW.year + 1)
    second = decide_job(with_status(job, ended.status), Observed(claims=CLAIMS_THERE), later, SETTINGS)
    assert initial_adapter(second) == expected


def test_an_adapter_counts_whatever_became_of_its_endpoint() -> None:
    assert plan_for(a_job(**AFTER), earlier=earlier(adapter=ADAPTER, conditions=FAILED)).status.initial_adapter


@pytest.mark.parametrize(
    ("name", "seen", "reason", "words"),
    [
        ("polite", None, "AdapterNotFound", "polite in namespace ml does not exist"),
        (
            "polite",
            {"conditions": FAILED, "reason": "LossDiverged", "message": "NaN"},
            "AdapterNotFound",
            "ended without an adapter (LossDiverged: NaN)",
        ),
        ("tone", {}, "SpecInvalid", "is this job itself"),
    ],
)
def test_what_will_never_come_ends_the_job(name: str, seen: Any, reason: str, words: str) -> None:
    job = a_job(continueFrom={"finetuneJob": name})
    plan = plan_for(job, earlier=None if seen is None else earlier(**seen))
    assert (plan.create, plan.status.phase, plan.status.reason) == ((), Phase.FAILED, reason)
    assert words in (plan.status.message or "")
    assert condition(plan.status, ConditionType.VALIDATED) == ("False", reason)


def test_a_source_is_mounted_read_only_and_left_to_the_trainer_to_verify() -> None:
    job = a_job(continueFrom={"source": URI})
    plan = plan_for(job)
    assert initial_adapter(plan) == InitialAdapterConfig(path="/initial-adapter/polite/uid-9", source=URI)
    pod = plan.create[0]["spec"]["template"]["spec"]
    (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["mountPath"] == "/initial-adapter"]
    assert mount == {"name": "initial-adapter", "mountPath": "/initial-adapter", "readOnly": True}
    missing = plan_for(job, claims={**CLAIMS_THERE, "elsewhere": False})
    assert (missing.status.reason, missing.create) == ("AdapterNotFound", ())
    assert "there is no PersistentVolumeClaim elsewhere" in (missing.status.message or "")


def test_a_waiting_job_can_be_suspended_cancelled_and_resumed() -> None:
    waiting = with_status(a_job(**AFTER), plan_for(a_job(**AFTER), earlier=earlier()).status)
    suspended = plan_for(a_job(waiting.status, **AFTER, suspend=True), earlier=earlier())
    assert suspended.status.phase == Phase.SUSPENDED
    resumed = plan_for(a_job(suspended.status, **AFTER), earlier=earlier())
    assert (resumed.status.phase, resumed.status.reason) == (Phase.PENDING, "WaitingForAdapter")
    assert plan_for(a_job(waiting.status, **AFTER, cancel=True), earlier=earlier()).status.phase == Phase.CANCELLED


def test_the_other_job_is_read_until_its_adapter_is_known_and_its_claim_from_then_on() -> None:
    asked: list[tuple[Resource, str]] = []

    class Asked:
        async def list(self, *_: Any) -> list[Any]:
            return []

        async def get(self, resource: Resource, _namespace: str, name: str) -> Any:
            asked.append((resource, name))
            return {"status": {"adapter": ADAPTER}}

    job = a_job(**AFTER)
    seen = asyncio.run(observe(Asked(), None, job))  # type: ignore[arg-type]
    assert (FINETUNE_JOBS, "polite") in asked
    asked.clear()
    pinned = with_status(job, decide_job(job, seen, NOW, SETTINGS).status)
    asyncio.run(observe(Asked(), None, pinned))  # type: ignore[arg-type]
    assert (CLAIMS, "elsewhere") in asked
    assert (FINETUNE_JOBS, "polite") not in asked
