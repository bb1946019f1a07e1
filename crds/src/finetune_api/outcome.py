"""Reports of a training pod: the Outcome in the termination message of each container, and Progress as the Celery task's state."""

from bisect import bisect
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from finetune_api.base import StatusModel
from finetune_api.contract import MAX_TERMINATION_BYTES
from finetune_api.fingerprint import Fingerprint
from finetune_api.reasons import Reason


class Result(StrEnum):
    """Result of an attempt."""

    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    INTERRUPTED = "Interrupted"
    """SIGTERM arrived; another attempt can resume from the last checkpoint."""


class CommittedAdapter(StatusModel):
    """Committed adapter on the volume."""

    path: Annotated[str, Field(description="path is the adapter's folder inside the output directory.")]
    digest: Annotated[str, Field(description="digest is the sha256 of the adapter's manifest.")]
    size_bytes: Annotated[int, Field(description="sizeBytes is the size of all files of the adapter in bytes.", ge=0)]
    base_revision: Annotated[
        str | None, Field(description="baseRevision is the commit or digest of the base model.")
    ] = None
    fingerprint: Annotated[
        Fingerprint | None, Field(description="fingerprint identifies the tuned weights by their log-probabilities.")
    ] = None


class MicroBatching(StatusModel):
    """Split of a step's rows into forward passes. It affects memory and time, not the result."""

    micro_batch_size: Annotated[int, Field(description="microBatchSize is the number of rows per forward pass.", ge=1)]
    gradient_checkpointing: Annotated[
        bool, Field(description="gradientCheckpointing says whether activations are recomputed instead of stored.")
    ] = False
    reductions: Annotated[
        int,
        Field(description="reductions is the number of times that memory ran out and passes were made smaller.", ge=0),
    ] = 0


class Outcome(StatusModel):
    """Outcome of a container of a training pod. Written once, at the end; at most 4096 bytes.

    `validate` succeeds with the reason Accepted and a message about rows, tokens and memory, the trainer with an adapter.
    """

    result: Annotated[Result, Field(description="result of the attempt: Succeeded, Failed or Interrupted.")]
    reason: Annotated[
        Reason, Field(description="reason is one CamelCase word for the result, from the list of reasons of this API.")
    ]
    message: Annotated[
        str, Field(description="message is a sentence for people: field or row, value found, value expected, remedy.")
    ] = ""
    retryable: Annotated[bool, Field(description="retryable says whether another attempt may succeed.")] = False
    step: Annotated[int, Field(description="step is the number of finished optimizer steps.", ge=0)] = 0
    checkpoint_step: Annotated[
        int | None, Field(description="checkpointStep is the step of the newest committed checkpoint.", ge=0)
    ] = None
    trained_tokens: Annotated[
        int | None, Field(description="trainedTokens is the number of tokens trained in this attempt.", ge=0)
    ] = None
    metrics: Annotated[dict[str, float], Field(description="metrics holds the metrics by name.")] = Field(
        default_factory=dict
    )
    passes: Annotated[
        MicroBatching | None, Field(description="passes says how the last steps were split into forward passes.")
    ] = None
    adapter: Annotated[CommittedAdapter | None, Field(description="adapter is the committed adapter.")] = None

    def to_termination_message(self) -> str:
        """Return JSON of at most `MAX_TERMINATION_BYTES`. The message is shortened if needed, because the rest is for programs."""
        text = self._json(self.message)
        if len(text.encode()) <= MAX_TERMINATION_BYTES:
            return text
        # The size of a character depends on its escape in JSON, so search for the longest prefix that fits.
        keep = bisect(range(len(self.message)), MAX_TERMINATION_BYTES, key=lambda n: len(self._shortened(n).encode()))
        return self._shortened(max(0, keep - 1))

    def _shortened(self, characters: int) -> str:
        return self._json(self.message[:characters] + "…")

    def _json(self, message: str) -> str:
        return self.model_copy(update={"message": message}).model_dump_json(by_alias=True, exclude_none=True)


class Progress(StatusModel):
    """`result` of the Celery task while its state is PROGRESS."""

    step: Annotated[int, Field(description="step is the number of finished optimizer steps.", ge=0)]
    total_steps: Annotated[int, Field(description="totalSteps is the number of planned steps.", ge=0)]
    epoch: Annotated[float | None, Field(description="epoch is the number of passes over the dataset.")] = None
    loss: Annotated[float | None, Field(description="loss is the training loss of the latest logged step.")] = None
    eval_loss: Annotated[
        float | None, Field(description="evalLoss is the loss of the latest evaluation on held-out rows.")
    ] = None
    evaluation: Annotated[
        dict[str, float], Field(description="evaluation holds all metrics of the latest evaluation.")
    ] = Field(default_factory=dict)
    evaluation_step: Annotated[
        int | None, Field(description="evaluationStep is the step of the latest evaluation.")
    ] = None
    learning_rate: Annotated[
        float | None, Field(description="learningRate is the learning rate of the latest logged step.")
    ] = None
    tokens_per_second: Annotated[
        float | None, Field(description="tokensPerSecond is the training throughput in tokens, padding not counted.")
    ] = None
    eta_seconds: Annotated[
        float | None, Field(description="etaSeconds is the estimated number of seconds until training ends.")
    ] = None
    peak_memory_bytes: Annotated[
        int | None,
        Field(description="peakMemoryBytes is the peak memory of the accelerator, or of the process if there is none."),
    ] = None
    checkpoint_step: Annotated[
        int | None, Field(description="checkpointStep is the step of the newest checkpoint.")
    ] = None
    passes: Annotated[
        MicroBatching | None, Field(description="passes says how steps are split into forward passes.")
    ] = None
    timestamp: Annotated[float, Field(description="timestamp is when these figures were measured, in Unix seconds.")]


PROGRESS_STATE = "PROGRESS"
"""Celery's conventional custom state for a running task."""
