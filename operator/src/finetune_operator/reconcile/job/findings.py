"""The situations that `decide` finds a FinetuneJob in, with the facts that its status is made from."""

from dataclasses import dataclass

from finetune_api.outcome import Outcome, Progress
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import AdapterStatus, InferenceService
from finetune_api.v1alpha1.job.status import InitialAdapterStatus
from finetune_operator.reconcile.job.attempt_outcome import AttemptEnd
from finetune_operator.reconcile.job.attempts import Attempt
from finetune_operator.reconcile.job.endpoint import Endpoint


@dataclass(frozen=True)
class JobEnd:
    """The job ends for good."""

    reason: Reason
    message: str
    is_success: bool = False
    """Everything the spec asks for is done."""
    is_invalid: bool = False
    """The spec cannot be carried out: Validated becomes False, too."""


@dataclass(frozen=True)
class Finished:
    """The job has ended already."""

    endpoint: Endpoint | None = None
    """Its endpoint, to be mirrored."""
    replaced_by: InferenceService | None = None
    """The service that serves another version by now."""
    is_lost: bool = False
    """The endpoint is gone, or replaced."""


@dataclass(frozen=True)
class Serving:
    """The adapter is published, and its endpoint is deployed or verified."""

    endpoint: Endpoint
    regression: str | None = None
    """Explanation why serve.gate keeps the adapter out."""


@dataclass(frozen=True)
class Published:
    """Training succeeded."""

    attempt: Attempt
    end: AttemptEnd
    outcome: Outcome
    adapter: AdapterStatus


@dataclass(frozen=True)
class AttemptFailed:
    """An attempt failed or was interrupted."""

    attempt: Attempt
    end: AttemptEnd
    failed_attempts: int
    """Including this one, unless it was interrupted."""
    retry_seconds: float | None
    """Time until the next attempt; None if there is none."""


@dataclass(frozen=True)
class Suspending:
    """spec.suspend is true."""

    attempt: Attempt
    is_stopped: bool
    """No trainer is left."""


@dataclass(frozen=True)
class Following:
    """An attempt is under way."""

    attempt: Attempt
    progress: Progress | None
    progress_seconds: float
    """Shortest time between two writes of progress."""
    is_late: bool = False
    """The pod did not start within policy.startDeadlineSeconds: the job ends."""


@dataclass(frozen=True)
class Continuing:
    """The first attempt waits for the adapter of another job, or has found it."""

    adapter: InitialAdapterStatus | None = None
    message: str = ""
    """Explanation for the wait."""


Finding = Finished | Serving | Published | AttemptFailed | Suspending | Following | Continuing
