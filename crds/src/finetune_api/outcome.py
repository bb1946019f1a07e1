"""What a trainer pod hands back: the Outcome in the termination message of each container, and Progress through the Celery task's state."""

from bisect import bisect
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from finetune_api.base import StatusModel
from finetune_api.contract import MAX_TERMINATION_BYTES
from finetune_api.fingerprint import Fingerprint
from finetune_api.reasons import Reason


class Result(StrEnum):
    """How an attempt ended."""

    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    INTERRUPTED = "Interrupted"
    """SIGTERM arrived; another attempt can go on from the last checkpoint."""


class CommittedAdapter(StatusModel):
    """The adapter on the volume."""

    path: Annotated[str, Field(description="path inside the output directory.")]
    digest: Annotated[str, Field(description="digest is the sha256 of the adapter's manifest.")]
    size_bytes: Annotated[int, Field(description="sizeBytes of all its files.", ge=0)]
    base_revision: Annotated[str | None, Field(description="baseRevision is the commit or digest of the base.")] = None
    fingerprint: Annotated[Fingerprint | None, Field(description="fingerprint of the tuned weights.")] = None


class MicroBatching(StatusModel):
    """How a step's rows are cut into passes through the model, which changes memory and time, and not the result."""

    micro_batch_size: Annotated[int, Field(description="microBatchSize is the number of rows per forward pass.", ge=1)]
    gradient_checkpointing: Annotated[
        bool, Field(description="gradientCheckpointing says whether activations are computed again instead of kept.")
    ] = False
    reductions: Annotated[
        int, Field(description="reductions is how often memory ran out and passes were made smaller.", ge=0)
    ] = 0


class Outcome(StatusModel):
    """Why a container of a training pod ended. Written once, at the very end; at most 4096 bytes.

    `validate` succeeds with the reason Accepted and a message on rows, tokens and memory, the trainer with an adapter.
    """

    result: Annotated[Result, Field(description="result of the attempt.")]
    reason: Annotated[Reason, Field(description="reason from the glossary.")]
    message: Annotated[str, Field(description="message for people: field or row, found, expected, remedy.")] = ""
    retryable: Annotated[bool, Field(description="retryable says whether another attempt can end differently.")] = False
    step: Annotated[int, Field(description="step that was reached.", ge=0)] = 0
    checkpoint_step: Annotated[
        int | None, Field(description="checkpointStep is the newest committed checkpoint.", ge=0)
    ] = None
    trained_tokens: Annotated[int | None, Field(description="trainedTokens in this attempt.", ge=0)] = None
    metrics: Annotated[dict[str, float], Field(description="metrics by name.")] = Field(default_factory=dict)
    passes: Annotated[MicroBatching | None, Field(description="passes that the last steps were cut into.")] = None
    adapter: Annotated[CommittedAdapter | None, Field(description="adapter that was committed.")] = None

    def to_termination_message(self) -> str:
        """JSON of at most `MAX_TERMINATION_BYTES`; the message is shortened first, as the rest is for programs."""
        text = self._json(self.message)
        if len(text.encode()) <= MAX_TERMINATION_BYTES:
            return text
        # How much a character costs depends on its escape in JSON: search for the longest prefix that fits.
        keep = bisect(range(len(self.message)), MAX_TERMINATION_BYTES, key=lambda n: len(self._shortened(n).encode()))
        return self._shortened(max(0, keep - 1))

    def _shortened(self, characters: int) -> str:
        return self._json(self.message[:characters] + "…")

    def _json(self, message: str) -> str:
        return self.model_copy(update={"message": message}).model_dump_json(by_alias=True, exclude_none=True)


class Progress(StatusModel):
    """The `result` of the Celery task while its state is PROGRESS."""

    step: Annotated[int, Field(description="step is the number of finished optimizer steps.", ge=0)]
    total_steps: Annotated[int, Field(description="totalSteps is the number of planned steps.", ge=0)]
    epoch: Annotated[float | None, Field(description="epoch is the number of passes over the dataset.")] = None
    loss: Annotated[float | None, Field(description="loss of the latest logged step.")] = None
    eval_loss: Annotated[float | None, Field(description="evalLoss of the latest evaluation on held-out rows.")] = None
    evaluation: Annotated[dict[str, float], Field(description="evaluation holds all metrics of the latest one.")] = (
        Field(default_factory=dict)
    )
    evaluation_step: Annotated[int | None, Field(description="evaluationStep is the step that it measured.")] = None
    learning_rate: Annotated[float | None, Field(description="learningRate of that step.")] = None
    tokens_per_second: Annotated[float | None, Field(description="tokensPerSecond of real tokens.")] = None
    eta_seconds: Annotated[float | None, Field(description="etaSeconds until training ends.")] = None
    peak_memory_bytes: Annotated[
        int | None, Field(description="peakMemoryBytes of the accelerator, or of the process without one.")
    ] = None
    checkpoint_step: Annotated[int | None, Field(description="checkpointStep is the newest checkpoint.")] = None
    passes: Annotated[MicroBatching | None, Field(description="passes that steps are cut into.")] = None
    timestamp: Annotated[float, Field(description="timestamp (Unix seconds) of these figures.")]


PROGRESS_STATE = "PROGRESS"
"""Celery's conventional custom state for a running task."""
