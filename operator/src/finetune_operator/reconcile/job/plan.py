"""The values between observing, deciding, acting and reporting: data only, so that they can be compared and fuzzed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_api.outcome import Progress
from finetune_api.v1alpha1 import FinetuneJobStatus, InferenceService
from finetune_operator.reconcile.events import EventDraft
from finetune_operator.reconcile.job.findings import Finding, JobEnd
from finetune_operator.reconcile.job.training_pod import ChildJob, TrainingPod
from finetune_operator.resources import Manifest


@dataclass(frozen=True)
class Observed:
    """Everything outside the FinetuneJob that a decision about it may use, read at decision time."""

    children: tuple[ChildJob, ...] = ()
    pods: tuple[TrainingPod, ...] = ()
    claims: Mapping[str, bool] = field(default_factory=dict)
    """Existence of the claims that the spec names; empty if no attempt is about to start."""
    earlier: FinetuneJobStatus | None = None
    """Status of the job that spec.continueFrom names; None if there is no such job, or no need to know."""
    service: InferenceService | None = None
    """The object of the endpoint's name, whoever owns it."""
    unreadable: str | None = None
    """Problem of the object of the endpoint's name, if it cannot be read."""
    progress: Progress | None = None

    @property
    def has_live_trainer(self) -> bool:
        """A trainer runs, or may be started by the Job controller."""
        return any(not p.is_finished for p in self.pods) or any(
            not c.is_finished or c.is_deleting for c in self.children
        )

    @property
    def unfinished_jobs(self) -> tuple[ChildJob, ...]:
        """Jobs to stop. One whose pod has ended finishes by itself unless Kueue holds it, and stays as evidence."""
        ended = {p.attempt for p in self.pods if p.is_finished} - {p.attempt for p in self.pods if not p.is_finished}
        alive = (c for c in self.children if not c.is_finished and not c.is_deleting)
        return tuple(c for c in alive if c.is_suspended or c.attempt not in ended)


@dataclass(frozen=True)
class AttemptStart:
    """An attempt whose Job is to be created."""

    number: int
    with_claim: bool = False
    """The default output claim is missing, and is created before it."""


@dataclass(frozen=True)
class Plan:
    """The actions to take now, and the situation to report once they have been taken."""

    finding: Finding | None = None
    """The situation; None, without an end, if there is nothing to report before the next reconcile."""
    end: JobEnd | None = None
    """The job ends for good."""
    start: AttemptStart | None = None
    apply: tuple[Manifest, ...] = ()
    """Children to apply server-side."""
    add: tuple[Manifest, ...] = ()
    """Adapters to apply to InferenceServices of others, each by a field manager of its own."""
    delete_jobs: tuple[ChildJob, ...] = ()
    """Child Jobs to delete; their pods get SIGTERM."""
    delete_service: InferenceService | None = None
    delete_self: bool = False
    """The finished job has outlived ttlSecondsAfterFinished."""
    requeue_after: float | None = None
    """Seconds until something is due even if nothing happens."""

    @property
    def makes_children(self) -> bool:
        """The plan creates or changes other objects."""
        return bool(self.start or self.apply or self.add)


@dataclass(frozen=True)
class Refusal:
    """The API server's answer to a child that it did not take."""

    message: str
    is_final: bool
    """The schema forbids the child for good; otherwise a quota or a policy that somebody may change."""


@dataclass(frozen=True)
class ActionOutcome:
    """The result of making the children of a plan; nothing is set if all were made."""

    conflict: str | None = None
    """Kind and name of an object of a child's name that belongs to somebody else."""
    refusal: Refusal | None = None
    stalled: JobEnd | None = None
    """The spec allows no child to be built."""

    @property
    def is_done(self) -> bool:
        """All children were made."""
        return self == ActionOutcome()


@dataclass(frozen=True)
class Report:
    """The end of a reconcile: the status to write, the Events to post after it, and the next date."""

    status: FinetuneJobStatus
    events: tuple[EventDraft, ...] = ()
    requeue_after: float | None = None
