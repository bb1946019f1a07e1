"""Whatever a job's status says and whatever is observed: `decide` answers, terminal is terminal, and one trainer is alive.

The second half plays whole lives: a cluster that obeys the plans and is disturbed at every step, with the operator's memory
lost between any two passes (there is none: each pass reads everything).
"""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_api.conditions import Phase
from finetune_api.outcome import Outcome
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import FinetuneJob, FinetuneJobStatus
from finetune_operator.reconcile.job.decide import decide
from finetune_operator.reconcile.job.phase import is_terminal
from finetune_operator.reconcile.job.plan import ActionOutcome, Observed
from finetune_operator.reconcile.job.training_pod import ChildJob, TrainingPod
from support.objects.decisions import decide_job
from support.objects.job_situations import TIMES, observations, outcomes, specs, statuses
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
    a_refused_pod,
    a_running_pod,
    a_success,
    a_validating_pod,
    an_interruption,
    with_status,
)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(statuses, observations, specs, outcomes, TIMES)
def test_any_situation_has_a_plan_that_settles(
    status: FinetuneJobStatus, seen: Observed, spec: dict[str, object], outcome: ActionOutcome, now: datetime
) -> None:
    job = a_job(status, **spec)
    outcome = outcome if decide(job, seen, now, SETTINGS).makes_children else ActionOutcome()
    plan = decide_job(job, seen, now, outcome=outcome)
    assert plan == decide_job(job, seen, now, outcome=outcome), "the same input gives the same plan"
    if is_terminal(job.status):
        assert is_terminal(plan.status)
        assert plan.create == plan.apply == ()
    if plan.create:
        assert not seen.has_live_trainer
        assert plan.status == job.status, "act, or report"
    assert len([m for m in plan.create if m["kind"] == "Job"]) <= 1
    reread = with_status(job, plan.status)
    for _ in range(3):
        following = decide_job(reread, seen, now)
        if following.status == reread.status:
            break
        reread = with_status(reread, following.status)
    else:
        raise AssertionError(f"writes for ever: {reread.status} -> {following.status}")


@dataclass
class World:
    """A cluster that obeys plans: Jobs, pods, and a clock."""

    job: FinetuneJob
    now: datetime = NOW
    children: dict[int, ChildJob] = field(default_factory=dict)
    pods: dict[int, TrainingPod] = field(default_factory=dict)
    started: list[int] = field(default_factory=list)
    terminal: FinetuneJobStatus | None = None

    def reconcile(self) -> None:
        seen = Observed(
            children=tuple(self.children.values()),
            pods=tuple(self.pods.values()),
            claims={"models": True, "finetune-adapters": True},
        )
        plan = decide_job(self.job, seen, self.now)
        for manifest in plan.create:
            attempt = int(manifest["metadata"]["labels"]["finetune.dev/attempt"])
            assert not [p for p in self.pods.values() if not p.is_finished], "two trainers"
            assert attempt not in self.started or attempt not in self.children
            self.children[attempt] = a_child(attempt, created=self.now)
            self.started.append(attempt)
        for child in plan.delete_jobs:
            self.children.pop(child.attempt, None)
            if (pod := self.pods.get(child.attempt)) and not pod.is_finished:
                self.pods[child.attempt] = replace(pod, is_deleting=True)
        if is_terminal(self.job.status):
            assert plan.status.phase == self.job.status.phase
            assert not plan.create
        self.job = with_status(self.job, plan.status)

    def edit(self, **spec: bool) -> None:
        self.job = self.job.model_copy(update={"spec": self.job.spec.model_copy(update=spec)})

    def end_pod(self, outcome: Outcome | str, code: int) -> None:
        for attempt, pod in list(self.pods.items()):
            if not pod.is_finished:
                self.pods[attempt] = a_finished_pod(outcome, attempt, code, is_deleting=pod.is_deleting)

    def refuse(self, outcome: Outcome, code: int) -> None:
        """`validate` ends; a trainer that runs already has passed it."""
        for attempt, pod in list(self.pods.items()):
            if not pod.is_finished and pod.started_at is None:
                self.pods[attempt] = a_refused_pod(outcome, attempt, code, is_deleting=pod.is_deleting)

    def control(self) -> None:
        """What the Job controller and the garbage collector do."""
        for attempt, child in list(self.children.items()):
            pod = self.pods.get(attempt)
            if pod is None and not child.outcome:
                self.pods[attempt] = a_validating_pod(attempt, created=self.now, validation_started_at=self.now)
            elif pod is not None and pod.is_finished and not child.outcome:
                done = "Complete" if pod.phase == "Succeeded" else "Failed"
                self.children[attempt] = replace(child, outcome=done)
        for attempt, pod in list(self.pods.items()):
            if attempt not in self.children and pod.is_finished:
                del self.pods[attempt]

    def step(self, event: str) -> None:
        match event:
            case "succeed":
                self.end_pod(a_success(fingerprint=FINGERPRINT), 0)
            case "start":
                pods = self.pods.items()
                self.pods = {a: p if p.is_finished else a_running_pod(a, is_deleting=p.is_deleting) for a, p in pods}
            case "refuse":
                self.refuse(a_failure(Reason.DATASET_INVALID, retryable=False), 3)
            case "interrupt validation":
                self.refuse(an_interruption(), 143)
            case "fail":
                self.end_pod(a_failure(), 1)
            case "interrupt":
                self.end_pod(an_interruption(checkpoint_step=4), 143)
            case "delete pod":
                self.pods = {a: p for a, p in self.pods.items() if p.is_finished}
                unfinished = [c for c in self.children.values() if not c.outcome]
                self.children |= {c.attempt: replace(c, outcome="Failed") for c in unfinished}
            case "delete job":
                self.children, self.pods = {}, {}
            case "suspend":
                self.edit(suspend=True)
            case "resume":
                self.edit(suspend=False)
            case "cancel":
                self.edit(cancel=True)
            case "wait":
                self.now += timedelta(seconds=30)
            case "controller":
                self.control()
            case "reconcile":
                self.reconcile()


EVENTS = [
    "start",
    "succeed",
    "fail",
    "interrupt",
    "interrupt validation",
    "delete pod",
    "delete job",
    "suspend",
    "resume",
    "wait",
]
STEPS = st.sampled_from([*EVENTS, "cancel", "refuse", *["controller"] * 6, *["reconcile"] * 10])


@settings(max_examples=400, deadline=None)
@given(st.lists(STEPS, min_size=10, max_size=60))
def test_no_history_makes_two_trainers_or_revives_a_finished_job(steps: list[str]) -> None:
    world = World(a_job())
    for step in steps:
        world.step(step)
        alive = [p for p in world.pods.values() if not p.is_finished]
        assert len(alive) <= 1
    assert world.job.status.failed_attempts <= world.job.spec.policy.max_attempts


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, max_size=30))
def test_every_history_that_is_left_alone_comes_to_an_end(steps: list[str]) -> None:
    """No lost job: once nobody disturbs it and its trainer succeeds, it ends, whatever happened before."""
    world = World(a_job())
    for step in [*steps, "resume"]:
        world.step(step)
    for _ in range(40):
        for step in ("reconcile", "controller", "reconcile", "succeed", "controller", "wait"):
            world.step(step)
        if is_terminal(world.job.status):
            break
    assert world.job.status.phase in (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)
    assert UID in {world.job.metadata.uid}
    assert world.now >= CREATED
