"""Phases and condition types: the words of `status` that say where an object stands.

The docstring of a member is its entry in the generated reference and in `kubectl explain`, so it has a fixed form. A phase: its
meaning. A condition type: its meaning, the kinds that have it, then when it is True, False and Unknown, and which component
sets it. `glossary` reads them.
"""

from enum import StrEnum


class Phase(StrEnum):
    """Summary of the conditions in one word for people. Programs should read the conditions."""

    PENDING = "Pending"
    """Nothing has started yet."""
    VALIDATING = "Validating"
    """The first container of the training pod is checking spec, model and dataset."""
    QUEUED = "Queued"
    """Kueue has not admitted the job, or a quota or policy does not allow its pod."""
    SCHEDULING = "Scheduling"
    """The training pod is waiting for a node, an image or a volume."""
    RUNNING = "Running"
    """The model is being trained."""
    SUSPENDING = "Suspending"
    """The training pod is saving a checkpoint before it stops."""
    SUSPENDED = "Suspended"
    """No training pod is left. Training resumes when spec.suspend is false."""
    RETRYING = "Retrying"
    """An attempt failed or was interrupted, and the next one starts soon."""
    PUBLISHING = "Publishing"
    """The adapter is committed, and the endpoint is about to be created."""
    DEPLOYING = "Deploying"
    """The endpoint is being rolled out."""
    VERIFYING = "Verifying"
    """The fingerprint is being replayed against the endpoint."""
    SUCCEEDED = "Succeeded"
    """The job is complete: the adapter is stored and, with spec.serve, served and verified. Final."""
    FAILED = "Failed"
    """The job has ended without success; status.message says why. Final."""
    CANCELLED = "Cancelled"
    """The job was cancelled with spec.cancel. Final."""


TERMINAL_PHASES = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED})
"""Phases that a job never leaves."""


class ConditionType(StrEnum):
    """Condition types of both kinds."""

    VALIDATED = "Validated"
    """Result of the checks before training.

    Kinds: FinetuneJob.
    True: The first container of the training pod, `validate`, accepted spec, model, dataset, memory and disk. The message has the number of rows and tokens, and warnings.
    False: One of these checks failed, or the operator found a claim or an adapter missing. The reason says which.
    Unknown: The checks are running, or the job waits for the adapter that spec.continueFrom names.
    Set by: The operator, from the outcome that `validate` reports.
    """
    SCHEDULED = "Scheduled"
    """Placement of the training pod.

    Kinds: FinetuneJob.
    True: The training pod has a node.
    False: The pod does not exist yet, has no node, or waits for Kueue or a quota. The message is that of the scheduler or the API server.
    Set by: The operator, from the training Job and its pod.
    """
    RUNNING = "Running"
    """Activity of the trainer.

    Kinds: FinetuneJob.
    True: The trainer is running.
    False: The trainer has not started, has ended, or is about to be retried. The reason says which.
    Unknown: The node of the training pod stopped reporting.
    Set by: The operator, from the training pod.
    """
    SUSPENDED = "Suspended"
    """Suspension with spec.suspend.

    Kinds: FinetuneJob.
    True: spec.suspend is true and no training pod is left.
    False: The training pod is still saving a checkpoint, or the job was resumed.
    Set by: The operator, from spec.suspend and the training pod.
    """
    CHECKPOINT_AVAILABLE = "CheckpointAvailable"
    """Availability of a checkpoint.

    Kinds: FinetuneJob.
    True: A checkpoint is on the output claim; the next attempt resumes from it.
    False: Training ended, and the checkpoints were removed.
    Set by: The operator, from the trainer's progress and outcome.
    """
    ADAPTER_PUBLISHED = "AdapterPublished"
    """Availability of the adapter.

    Kinds: FinetuneJob.
    True: The adapter is committed to the output claim, and status.adapter has its URI and digest.
    Set by: The operator, from the trainer's outcome.
    """
    SERVING_READY = "ServingReady"
    """Readiness of the endpoint that serves the job's adapter.

    Kinds: FinetuneJob.
    True: The endpoint answers.
    False: The endpoint is being deployed, was deleted, was refused, or serves another version of the adapter.
    Set by: The operator, from the condition Ready of the InferenceService.
    """
    ADAPTER_VERIFIED = "AdapterVerified"
    """Proof that the endpoint answers with the tuned weights.

    Kinds: FinetuneJob, InferenceService.
    True: The fingerprint was replayed, and the answers match the tuned weights. An InferenceService needs that for each of its adapters.
    False: The answers do not match, or a server refused an adapter. The reason says how.
    Unknown: The fingerprint was not replayed yet, or the adapter has none.
    Set by: The operator, from what each server pod answers.
    """
    SUCCEEDED = "Succeeded"
    """End of the job with success.

    Kinds: FinetuneJob.
    True: The job is complete: the adapter is stored and, with spec.serve, served and verified. It stays True.
    Set by: The operator.
    """
    FAILED = "Failed"
    """End of the job without success, cancellation included.

    Kinds: FinetuneJob.
    True: The job has ended without success. It stays True; the message says what to change.
    Set by: The operator.
    """
    READY = "Ready"
    """Readiness of the endpoint.

    Kinds: InferenceService.
    True: At least one server pod answers: one of the current configuration, or during a rollout one of the previous.
    False: No server pod answers. The message says what the rollout waits for, or what only a person can change.
    Set by: The operator, from the Deployment and its pods.
    """
    PROGRESSING = "Progressing"
    """Progress of a rollout.

    Kinds: InferenceService.
    True: A rollout of the server pods is in progress.
    False: The rollout is complete, or it stopped because a new version of an adapter failed verification.
    Set by: The operator, from the Deployment and its pods.
    """
