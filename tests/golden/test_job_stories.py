"""Lives of FinetuneJobs: what users read in status and Events, and what the operator does, on file for review."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from finetune_api.contract import ExitCode
from finetune_api.outcome import MicroBatching
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import FinetuneJobStatus, InferenceService
from finetune_operator.reconcile.job.findings import JobEnd
from finetune_operator.reconcile.job.plan import ActionOutcome, Refusal
from finetune_operator.reconcile.job.training_pod import TrainingPod
from support.objects.operator_objects import (
    CREATED,
    FINGERPRINT,
    NOW,
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
)
from support.objects.stories import CLAIMS, JobStory, Story, compare_stories

STORIES = Path(__file__).parent / "stories"
CHILD = (a_child(),)
LATE = 601


def trained(**spec: Any) -> JobStory:
    """A job whose adapter is published."""
    story = JobStory(job=a_job(**spec))
    outcome = a_success(fingerprint=FINGERPRINT).model_copy(update={"metrics": {"eval_loss": 0.41, "loss": 1 / 3}})
    story.step("It trains.", children=CHILD, pods=(a_running_pod(),))
    story.step("Training succeeded.", children=CHILD, pods=(a_finished_pod(outcome),))
    return story


def an_endpoint(story: JobStory, ready: Any = None, verdict: Any = None, **fields: Any) -> InferenceService:
    """The endpoint that the job applies, with this status."""
    (manifest,) = JobStory(job=story.job).step("", service=None).apply
    conditions = [{"type": "Ready", "lastTransitionTime": NOW, **ready}] if ready else []
    adapter = manifest["spec"]["adapters"][0]
    adapters = [{"name": adapter["name"], "digest": adapter["digest"], **verdict}] if verdict else []
    status = {"observedGeneration": 1, "conditions": conditions, "adapters": adapters, "url": "http://tone/v1"}
    metadata = {"uid": "service", "generation": 1, "creationTimestamp": NOW, **fields}
    return InferenceService.model_validate(
        {**manifest, "metadata": {**manifest["metadata"], **metadata}, "status": status}
    )


READY = {"status": "True", "reason": "EndpointReady", "message": "The endpoint answers."}
PROVEN = {"verified": "True", "reason": "FingerprintMatched", "message": "Deviation 0.001."}
WRONG = {"verified": "False", "reason": "AdapterHasNoEffect", "message": "It answers like the base model."}
OPEN = {"verified": "Unknown", "reason": "Verifying", "message": "Pod s0: 1 of 2 probes."}


def from_a_spec_to_an_endpoint() -> list[Story]:
    story = JobStory(job=a_job(serve={}))
    story.step("It is new.", claims={**CLAIMS, "finetune-adapters": False})
    story.step("Its Job has no pod.", children=CHILD)
    story.step("Its pod has no node.", children=CHILD, pods=(a_pod(),))
    story.step("No node fits.", children=CHILD, pods=(a_pod(unschedulable=("Unschedulable", "0/3 nodes have a GPU.")),))
    story.step("A queue holds the pod.", children=CHILD, pods=(a_pod(unschedulable=("SchedulingGated", "")),))
    story.step("The pod has a node.", children=CHILD, pods=(a_pod(is_scheduled=True),))
    story.step(
        "It cannot pull its image.", children=CHILD, pods=(a_pod(is_scheduled=True, waiting=("ErrImagePull", "404")),)
    )
    story.step("So still.", children=CHILD, pods=(a_pod(is_scheduled=True, waiting=("ImagePullBackOff", "wait")),))
    story.step("It validates.", children=CHILD, pods=(a_validating_pod(),))
    story.step("Its node is lost.", children=CHILD, pods=(a_validating_pod(reason="NodeLost"),))
    story.step("Its node is back.", children=CHILD, pods=(a_validating_pod(),))
    broken = a_validated_pod(waiting=("CreateContainerError", "no runtime nvidia"))
    story.step("The trainer cannot start.", children=CHILD, pods=(broken,))
    pod = replace(a_validated_pod(), phase="Running", started_at=NOW, waiting=None)
    story.step("The trainer starts.", children=CHILD, pods=(pod,))
    figures = {"epoch": 0.4567, "loss": 1.23456, "eval_loss": 1.5, "eta_seconds": 3725.4, "tokens_per_second": 99.6}
    passes = MicroBatching(micro_batch_size=1, gradient_checkpointing=True, reductions=1)
    progress = a_progress(4, **figures, checkpoint_step=4, passes=passes)
    story.step("It reports a step.", children=CHILD, pods=(pod,), progress=progress)
    soon = a_progress(5, timestamp=NOW.timestamp() + 1)
    story.step("The next step comes too soon.", children=CHILD, pods=(pod,), progress=soon)
    smaller = MicroBatching(micro_batch_size=2, reductions=2)
    later = a_progress(8, timestamp=NOW.timestamp() + 60, checkpoint_step=8, passes=smaller, eta_seconds=130)
    story.step("It reports again.", children=CHILD, pods=(pod,), progress=later)
    unchanged = a_progress(9, timestamp=NOW.timestamp() + 120, passes=smaller)
    story.step("It reports the same batches.", children=CHILD, pods=(pod,), progress=unchanged)
    story.step("Its node is lost.", children=CHILD, pods=(replace(pod, reason="NodeLost"),))
    outcome = a_success(fingerprint=FINGERPRINT, base_revision="4f2a").model_copy(
        update={"message": "10 steps.", "trained_tokens": 77, "metrics": {"loss": 1 / 3, "eval_loss": 0.41}}
    )
    story.step(
        "Training succeeded.", children=CHILD, pods=(a_finished_pod(outcome, validation_end=pod.validation_end),)
    )
    story.step("There is no endpoint.")
    story.step("It is being deployed.", service=an_endpoint(story))
    unready = {"status": "False", "reason": "ImagePullFailed", "message": "Pod s0 cannot pull its image."}
    story.step("It has an obstacle.", service=an_endpoint(story, unready, OPEN))
    story.step("It answers.", service=an_endpoint(story, READY))
    story.step("Its adapter is being verified.", service=an_endpoint(story, READY, OPEN))
    service = an_endpoint(story, READY, PROVEN)
    story.step("Its adapter is verified.", service=service)
    story.step("A pod of it fails.", service=an_endpoint_of(service, unready))
    story.step("It was deleted.")
    story.step("Nothing happens.")
    expiring = trained(ttlSecondsAfterFinished=3600)
    expiring.step("It may be read for an hour.", 60)
    expiring.step("The hour is over.", 3540)
    return [story, expiring]


def an_endpoint_of(service: InferenceService, ready: dict[str, str]) -> InferenceService:
    """The same endpoint with another condition Ready."""
    (old,) = service.status.conditions
    status = service.status.model_copy(update={"conditions": [old.model_copy(update=ready)]})
    return service.model_copy(update={"status": status})


def attempts() -> list[Story]:
    retried = JobStory(job=a_job(policy={"maxAttempts": 2}))
    retried.step("It trains.", children=CHILD, pods=(a_running_pod(),))
    end = a_failure(message="Loss is NaN.").model_copy(update={"checkpoint_step": 6, "trained_tokens": 5})
    failed = (ended_at(NOW + timedelta(hours=1), a_finished_pod(end, exit_code=1)),)
    children: Any = (a_child(outcome="Failed"),)
    retried.step("The trainer fails; the clock of its node is ahead.", children=children, pods=failed)
    retried.step("The next attempt is not due.", 4, children=children, pods=failed)
    retried.step("It is due.", children=children, pods=failed)
    children = (a_child(outcome="Failed"), a_child(2))
    retried.step("It trains again.", children=children, pods=(*failed, a_running_pod(2)))
    crashed = a_finished_pod("Traceback\nKeyError: 'x'", 2, 1)
    retried.step("The trainer crashes.", children=children, pods=(*failed, crashed))
    retried.step("Nothing follows.", children=children, pods=(*failed, crashed))

    interrupted = JobStory(job=a_job(policy={"maxAttempts": 1}))
    for number in (1, 2, 3):
        pod = a_finished_pod(an_interruption(checkpoint_step=number * 3), number, 143)
        interrupted.step(f"Attempt {number} is evicted.", 100, children=(a_child(number),), pods=(pod,))
    interrupted.step("A newer attempt is seen while it stops.", children=(a_child(3),), pods=(pod, a_running_pod(3)))
    interrupted.step("Job and pod are gone.", 100)

    deleted = JobStory()
    deleted.step("It trains.", children=CHILD, pods=(a_running_pod(),))
    deleted.step("Somebody deletes Job and pod.")
    unseen = JobStory()
    unseen.step("Nobody saw it train.", children=CHILD, pods=(a_finished_pod(a_success()),))
    backwards = JobStory()
    pod = ended_at(NOW - timedelta(hours=1), a_finished_pod(a_failure(), exit_code=1))
    backwards.step("The clock of its node goes backwards.", children=CHILD, pods=(pod,))

    stories = [retried, interrupted, deleted, unseen, backwards]
    for title, pod in (
        ("The kernel kills the trainer.", a_finished_pod("", exit_code=137, ended_reason="OOMKilled")),
        ("The validation refuses the dataset.", a_refused_pod(a_failure(Reason.DATASET_INVALID, retryable=False))),
        ("The validation could not find out.", a_refused_pod(a_failure(Reason.MODEL_NOT_FOUND), exit_code=4)),
        ("The adapter's path cannot be used.", a_finished_pod(unusable(path="../elsewhere"))),
        ("Success without an adapter.", a_finished_pod(a_success().model_copy(update={"adapter": None}))),
        ("Exit code 3 without a word.", a_finished_pod("", exit_code=ExitCode.DATASET_INVALID)),
        ("Exit code 75 without a word.", a_finished_pod("", exit_code=ExitCode.FENCED)),
        ("Exit code 0 without a word.", a_finished_pod("", exit_code=0)),
        ("The node refuses the pod.", a_pod(phase="Failed", reason="OutOfcpu", message="Node has no CPU.")),
        ("The pod is evicted for its disk.", a_finished_pod("", exit_code=137, reason="Evicted", message="20Gi used")),
        ("The scheduler preempts it.", a_finished_pod("", exit_code=137, disruption=("PreemptionByScheduler", "p"))),
    ):
        stories.append(JobStory())
        stories[-1].step(title, children=CHILD, pods=(pod,))
    return [*stories]


def ended_at(moment: datetime, pod: TrainingPod) -> TrainingPod:
    """The pod with another time of its trainer's end."""
    assert pod.end is not None
    return replace(pod, end=replace(pod.end, finished_at=moment))


def unusable(**fields: str) -> Any:
    """A success whose adapter cannot be addressed."""
    outcome = a_success()
    assert outcome.adapter is not None
    return outcome.model_copy(update={"adapter": outcome.adapter.model_copy(update=fields)})


def pods_that_never_start() -> list[Story]:
    stories = []
    for title, child, pod in (
        ("Its Job has no pod.", a_child(created=None, started=CREATED), None),
        ("No node fits.", a_child(), a_pod(unschedulable=("Unschedulable", "no GPU left"))),
        ("Its image is missing.", a_child(), a_pod(is_scheduled=True, waiting=("ErrImagePull", "404"))),
        (
            "The token of its model is missing.",
            a_child(),
            a_pod(is_scheduled=True, waiting=("CreateContainerConfigError", 'secret "t" not found')),
        ),
        ("Its trainer cannot start.", a_child(), a_validated_pod(waiting=("RunContainerError", "no runtime nvidia"))),
    ):
        story = JobStory(job=a_job(model={"source": "hf://org/tiny", "secretRef": {"name": "t"}}))
        pods = (pod,) if pod is not None else ()
        story.step(f"{title} It has time left.", 200, children=(child,), pods=pods)
        story.step("It has none.", LATE, children=(child,), pods=pods)
        story.step("Its Job is stopped.", children=(child,), pods=pods)
        stories.append(story)
    return [*stories]


def suspension_and_cancellation() -> list[Story]:
    suspended = JobStory()
    suspended.step("It trains.", children=CHILD, pods=(a_running_pod(),))
    suspended.edit(suspend=True)
    suspended.step("It is suspended.", children=CHILD, pods=(a_running_pod(),))
    stopping = (a_child(is_deleting=True),)
    suspended.step("Its pod is stopping.", children=stopping, pods=(a_running_pod(is_deleting=True),))
    saved = (a_finished_pod(an_interruption(checkpoint_step=3), exit_code=143),)
    suspended.step("Its pod has stopped.", pods=saved)
    suspended.step("It stays suspended.", pods=saved)
    suspended.edit()
    suspended.step("It is resumed.", pods=saved)
    suspended.step("It trains again.", children=(a_child(2),), pods=(a_running_pod(2),))

    hasty = JobStory(job=a_job(suspended.job.status, suspend=True))
    hasty.step("It is suspended again.", children=(a_child(2),), pods=(a_finished_pod(an_interruption(), 2, 143),))
    hasty.step("Its pod has stopped.", pods=(a_finished_pod(an_interruption(), 2, 143),))
    hasty.edit()
    hasty.step("It is resumed, and fails at once.", children=(a_child(3),), pods=(a_finished_pod(a_failure(), 3, 1),))

    early = JobStory(job=a_job(suspend=True))
    early.step("It is suspended from the start.")
    unseen = JobStory(job=a_job(suspend=True))
    unseen.step("It is suspended before its Job was reported.", children=CHILD)
    failing = JobStory()
    failing.step("It trains.", children=CHILD, pods=(a_running_pod(),))
    failing.edit(suspend=True)
    failing.step("It is suspended.", children=CHILD, pods=(a_running_pod(),))
    failing.step("It fails while it is being suspended.", children=CHILD, pods=(a_finished_pod(a_failure(), 1, 1),))
    failing.step("It is suspended.", pods=())

    queued = JobStory(job=a_job(queueName="q"))
    held = (a_child(is_suspended=True),)
    queued.step("Kueue holds the Job.", LATE, children=held)
    queued.edit(queueName="q", cancel=True)
    queued.step("It is cancelled.", children=held)
    queued.step("Its Job is stopped.", children=held)

    served = trained(serve={})
    service = an_endpoint(served, READY, OPEN)
    served.step("Its endpoint answers.", service=service)
    served.edit(serve={}, cancel=True)
    served.step("It is cancelled.", service=service)
    served.step("Its endpoint is deleted.", service=service)

    slow = JobStory(job=a_job(policy={"activeDeadlineSeconds": 300}))
    slow.step("It is over its deadline.", 0, children=CHILD, pods=(a_running_pod(),))
    return [suspended, hasty, early, unseen, failing, queued, served, slow]


def spec_without_what_it_names() -> list[Story]:
    stories = []
    for missing, spec in (
        ("models", {}),
        ("rows", {"dataset": {"source": "pvc://rows/a.jsonl"}}),
        ("rows", {"dataset": {"sources": [{"source": "hf://o/a"}, {"source": "pvc://rows/a"}]}}),
        ("held", {"evaluation": {"source": "pvc://held/a.jsonl"}}),
        ("mine", {"output": {"claim": "mine"}}),
        ("theirs", {"continueFrom": {"source": "pvc://theirs/a"}}),
    ):
        stories.append(JobStory(job=a_job(**spec)))
        stories[-1].step(f"Claim {missing} is missing.", claims={**CLAIMS, missing: False})
    for title, seen in (
        ("has no adapter yet", {}),
        ("trains", {"phase": "Running"}),
        ("has failed", {"reason": "LossDiverged", "message": "NaN", "conditions": [FAILED]}),
        ("does not exist", None),
    ):
        story = JobStory(job=a_job(continueFrom={"finetuneJob": "polite"}))
        earlier = None if seen is None else FinetuneJobStatus.model_validate(seen)
        story.step(f"The job that it continues from {title}.", earlier=earlier)
        stories.append(story)
    uri = "pvc://finetune-adapters/polite/uid-9"
    adapter = {"name": "polite", "uri": uri, "digest": f"sha256:{'b' * 64}", "baseModel": "pvc://models/tiny"}
    pinned = JobStory(job=a_job(continueFrom={"finetuneJob": "polite"}))
    pinned.step("The job that it continues from trains.", earlier=FinetuneJobStatus(phase="Running"))
    pinned.step("The job that it continues from has an adapter.", earlier=FinetuneJobStatus(adapter=adapter))  # type: ignore[arg-type]
    pinned.step("The first attempt starts.")
    itself = JobStory(job=a_job(continueFrom={"finetuneJob": "tone"}))
    itself.step("It continues from itself.")
    return [*stories, pinned, itself]


FAILED = {"type": "Failed", "status": "True", "reason": "LossDiverged", "lastTransitionTime": NOW}


def refused_children() -> list[Story]:
    quota = Refusal("exceeded quota: gpus", is_final=False)
    stories: list[Story] = []
    for title, outcome in (
        ("A Job of that name is somebody else's.", ActionOutcome(conflict="Job tone-0a1b2c3d-a1")),
        ("A quota forbids the Job.", ActionOutcome(refusal=quota)),
        ("The schema forbids the Job.", ActionOutcome(refusal=Refusal("spec.x is invalid", is_final=True))),
        ("No Job can be built.", ActionOutcome(stalled=JobEnd(Reason.SPEC_INVALID, "Too large.", is_invalid=True))),
    ):
        story = JobStory()
        story.step(title, outcome=outcome)
        stories.append(story)
    rows = {"inline": '{"prompt": "a", "completion": "b"}\n' * 3000}
    large = JobStory(job=a_job(dataset=rows, evaluation=rows))
    large.step("Its inline rows are too large.")
    served = trained(serve={})
    served.step("A quota forbids the endpoint.", outcome=ActionOutcome(refusal=quota))
    return [*stories, large, served]


def endpoints() -> list[Story]:
    stories: list[Story] = []
    foreign = {"ownerReferences": [{**OWNER, "uid": "x", "kind": "Deployment"}]}
    for title, fields in (
        ("The adapter is disproven.", {"ready": READY, "verdict": WRONG}),
        ("It carries no fingerprint.", {"ready": READY, "verdict": {"verified": "Unknown", "reason": "NoFingerprint"}}),
        ("The endpoint conflicts.", {"ready": {"status": "False", "reason": "ChildConflict", "message": "Theirs."}}),
        ("Its spec is refused.", {"ready": {"status": "False", "reason": "SpecInvalid", "message": "No."}}),
        ("It has a reason of a later release.", {"ready": {"status": "False", "reason": "Later", "message": "x"}}),
        ("Its status is of an older spec.", {"ready": READY, "verdict": PROVEN, "generation": 2}),
        ("It is somebody else's.", foreign),
        ("It is that of a deleted namesake.", {"ownerReferences": [{**OWNER, "uid": "x"}]}),
    ):
        story = trained(serve={})
        service = an_endpoint(story, **fields)
        del story.steps[:]
        story.step(title, service=service)
        stories.append(story)
    late = trained(serve={"timeoutSeconds": 60})
    edited = an_endpoint(late, READY, OPEN)
    edited = edited.model_copy(update={"spec": edited.spec.model_copy(update={"replicas": 7})})
    service = an_endpoint(late, READY, OPEN)
    del late.steps[:]
    late.step("Somebody edits the endpoint.", service=edited)
    late.step("Less than a second is left.", 56, service=service)
    late.step("It is not verified in time.", service=service)
    unserved = trained(serve={})
    del unserved.steps[:]
    unserved.edit()
    unserved.step("It is to be served no more.")
    unreadable = trained(serve={"name": "mine"})
    del unreadable.steps[:]
    unreadable.step("The object of its name cannot be read.", unreadable="spec.replicas: too many")
    return [*stories, late, unserved, unreadable]


OWNER = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FinetuneJob", "name": "tone", "controller": True}


def shared_endpoints() -> list[Story]:
    gate = {"metric": "eval_loss", "maxRegression": 0.02}
    stories: list[Story] = []
    for title, fields, metrics in (
        ("There is none.", None, ()),
        ("It takes no adapters of jobs.", {"adaptersFrom": "Spec"}, ()),
        ("It serves another model.", {"model": {"source": "pvc://models/other"}}, ()),
        ("It serves adapters of another claim.", {"adapterClaim": "elsewhere"}, ()),
        ("It serves a better version.", {}, [{"name": "eval_loss", "value": "0.3"}]),
        ("It serves a version that cannot be compared.", {}, ()),
        ("It serves a worse version.", {}, [{"name": "eval_loss", "value": "0.5"}]),
    ):
        story = trained(serve={"into": "chat", "gate": gate}, evaluation={"fraction": 0.1})
        del story.steps[:]
        chat = shared(metrics, **fields) if fields is not None else None
        decision = story.step(title, service=chat)
        stories.append(story)
    (addition,) = decision.add
    entry = addition["spec"]["adapters"][0]
    added = shared(metrics, entry)
    verdict = {"name": "tone", "digest": entry["digest"], **PROVEN}
    story.step("The adapter was added.", service=added)
    story.step("It is verified.", service=shared(metrics, entry, verdict=verdict))
    story.step("It is replaced.", service=shared(metrics))
    replaced = trained(serve={"into": "chat"})
    del replaced.steps[:]
    replaced.step("The adapter was added.", service=added)
    replaced.step("Another job was faster.", service=shared(metrics))
    return [*stories, replaced]


def shared(metrics: Any = (), *adapters: Any, verdict: Any = None, **spec: Any) -> InferenceService:
    """An endpoint of somebody else that serves an older version of the job's adapter."""
    served = {"source": "pvc://finetune-adapters/older", "digest": f"sha256:{'b' * 64}", "metrics": [*metrics]}
    old = {"name": "tone", "digest": served["digest"], "served": served, **PROVEN}
    other = {**old, "name": "other", "served": {**served, "metrics": [{"name": "eval_loss", "value": "0.01"}]}}
    ready = {"type": "Ready", "lastTransitionTime": NOW - timedelta(days=1), **READY}
    return InferenceService.model_validate(
        {
            "metadata": {"name": "chat", "namespace": "ml", "uid": "chat", "generation": 1},
            "spec": {"model": {"source": "pvc://models/tiny"}, "adapters": adapters, "adaptersFrom": "Jobs", **spec},
            "status": {
                "observedGeneration": 1,
                "conditions": [ready],
                "adapters": [other, verdict or old],
                "url": "http://c",
            },
        }
    )


@pytest.mark.parametrize(
    "tell",
    [
        from_a_spec_to_an_endpoint,
        attempts,
        pods_that_never_start,
        suspension_and_cancellation,
        spec_without_what_it_names,
        refused_children,
        endpoints,
        shared_endpoints,
    ],
)
def test_the_life_of_a_job_is_that_on_file(tell: Callable[[], list[Story]]) -> None:
    compare_stories(STORIES / f"job-{tell.__name__.replace('_', '-')}.yaml", tell())
