"""What `decide` hands over: data only, so that it can be compared, printed and fuzzed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_api.outcome import Progress
from finetune_api.v1alpha1 import FinetuneJobStatus, InferenceService
from finetune_operator.reconcile.views import ChildJobView, PodView
from finetune_operator.resources import Manifest


@dataclass(frozen=True)
class EventDraft:
    """A Kubernetes Event to be posted once the status that it tells about is written."""

    reason: str
    message: str
    is_warning: bool = False


@dataclass(frozen=True)
class Refusal:
    """The API server did not take a child."""

    message: str
    is_final: bool
    """Never will (schema); otherwise it may later (quota, a policy that somebody changes)."""


@dataclass(frozen=True)
class Observed:
    """Everything outside the FinetuneJob that a decision about it may use, read at decision time."""

    children: tuple[ChildJobView, ...] = ()
    pods: tuple[PodView, ...] = ()
    claims: Mapping[str, bool] = field(default_factory=dict)
    """Whether the claims that the spec names exist; empty if no attempt is about to start."""
    earlier: FinetuneJobStatus | None = None
    """Status of the job that spec.continueFrom names; None if there is no such job, or no need to know."""
    service: InferenceService | None = None
    """The object of the endpoint's name, whoever owns it."""
    unreadable: str | None = None
    """What is wrong with the object of the endpoint's name, if it cannot be read."""
    conflict: str | None = None
    """Name of an object that we tried to create and that belongs to somebody else."""
    refusal: Refusal | None = None
    """The answer to our attempt at making a child in this very pass."""
    progress: Progress | None = None

    @property
    def has_live_trainer(self) -> bool:
        """Whether a trainer runs, or may be started by the Job controller."""
        return any(not p.is_finished for p in self.pods) or any(
            not c.is_finished or c.is_deleting for c in self.children
        )


@dataclass(frozen=True)
class Plan:
    """What to do now. Either children are made (`create`, `apply`) or something is reported; a repair and an addition do both."""

    status: FinetuneJobStatus
    create: tuple[Manifest, ...] = ()
    """Children to POST; that one exists already is fine if it is ours."""
    apply: tuple[Manifest, ...] = ()
    """Children to apply server-side."""
    add: tuple[Manifest, ...] = ()
    """Adapters to apply to InferenceServices of others, each by a manager of its own."""
    delete_jobs: tuple[ChildJobView, ...] = ()
    """Child Jobs to delete; their pods get SIGTERM."""
    delete_service: InferenceService | None = None
    delete_self: bool = False
    """The finished job has outlived ttlSecondsAfterFinished."""
    events: tuple[EventDraft, ...] = ()
    requeue_after: float | None = None
    """Seconds until something is due even if nothing happens."""
