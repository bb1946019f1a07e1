"""Status of a FinetuneJob."""

from typing import Annotated

from pydantic import Field

from finetune_api.base import StatusModel
from finetune_api.fingerprint import Fingerprint
from finetune_api.outcome import MicroBatching
from finetune_api.v1alpha1.common import (
    Condition,
    Time,
)


class ProgressStatus(StatusModel):
    """How far the running attempt is."""

    step: Annotated[int, Field(description="step is the number of finished optimizer steps.", ge=0)] = 0
    total_steps: Annotated[int, Field(description="totalSteps is the number of planned steps.", ge=0)] = 0
    epoch: Annotated[float | None, Field(description="epoch is the number of passes over the dataset so far.")] = None
    percent: Annotated[int, Field(description="percent of the steps that is done.", ge=0, le=100)] = 0
    loss: Annotated[
        str | None, Field(description="loss of the latest logged step, as text: floats do not survive every client.")
    ] = None
    eval_loss: Annotated[
        str | None, Field(description="evalLoss of the latest evaluation on held-out rows, as text.")
    ] = None
    eta_seconds: Annotated[int | None, Field(description="etaSeconds until training ends, as estimated.", ge=0)] = None
    eta: Annotated[str | None, Field(description="eta is etaSeconds as people write it, for example 2m10s.")] = None
    tokens_per_second: Annotated[int | None, Field(description="tokensPerSecond of real training tokens.", ge=0)] = None
    passes: Annotated[
        MicroBatching | None, Field(description="passes that steps are cut into, smaller once memory ran out.")
    ] = None
    last_update_time: Annotated[Time | None, Field(description="lastUpdateTime of these figures.")] = None


class MetricStatus(StatusModel):
    """One measured value."""

    name: Annotated[str, Field(description="name of the metric, for example train_loss.", max_length=128)]
    value: Annotated[str, Field(description="value as text.", max_length=64)]


class CheckpointStatus(StatusModel):
    """One checkpoint on the volume."""

    step: Annotated[int, Field(description="step that was saved.", ge=0)]
    path: Annotated[str, Field(description="path inside the output claim.", max_length=512)]


class FailureStatus(StatusModel):
    """The last failed attempt, kept after its pod is gone."""

    attempt: Annotated[int, Field(description="attempt that failed.", ge=1)]
    pod: Annotated[str | None, Field(description="pod that ran it.", max_length=253)] = None
    exit_code: Annotated[int | None, Field(description="exitCode of the trainer.")] = None
    reason: Annotated[str, Field(description="reason from the glossary.", max_length=128)]
    message: Annotated[str, Field(description="message that says what to change.", max_length=4096)] = ""
    log_tail: Annotated[str | None, Field(description="logTail is the end of the trainer's log.", max_length=4096)] = (
        None
    )
    finish_time: Annotated[Time | None, Field(description="finishTime of the attempt.")] = None


class AdapterStatus(StatusModel):
    """The committed adapter."""

    name: Annotated[str, Field(description="name of the adapter.", max_length=63)]
    uri: Annotated[str, Field(description="uri of its folder: pvc://CLAIM/PATH.", max_length=512)]
    digest: Annotated[str, Field(description="digest is the sha256 of its manifest.", max_length=71)]
    size_bytes: Annotated[int | None, Field(description="sizeBytes of all its files.", ge=0)] = None
    base_model: Annotated[str, Field(description="baseModel it was trained on, as the source URI.", max_length=512)]
    base_revision: Annotated[
        str | None, Field(description="baseRevision is the commit or digest of the base model.", max_length=128)
    ] = None
    fingerprint: Annotated[Fingerprint | None, Field(description="fingerprint to recognize the tuned weights by.")] = (
        None
    )


class InitialAdapterStatus(StatusModel):
    """The adapter that all attempts start from."""

    uri: Annotated[str, Field(description="uri of its folder: pvc://CLAIM/PATH.", max_length=512)]
    digest: Annotated[str, Field(description="digest is the sha256 of its manifest.", max_length=71)]


class ServingStatus(StatusModel):
    """The endpoint."""

    name: Annotated[str, Field(description="name of the InferenceService.", max_length=63)]
    url: Annotated[str | None, Field(description="url of the OpenAI-compatible API inside the cluster.")] = None
    ready: Annotated[bool, Field(description="ready says whether the endpoint answers.")] = False
    verified: Annotated[
        bool, Field(description="verified says whether it was shown to answer with the tuned weights.")
    ] = False
    state: Annotated[
        str | None,
        Field(description="state in one word, for the printer column: Deploying, Ready, Verified or Failed."),
    ] = None
    started_time: Annotated[Time | None, Field(description="startedTime is when the rollout began.")] = None


class Usage(StatusModel):
    """What the job has used."""

    attempt_seconds: Annotated[
        int,
        Field(
            description="attemptSeconds is the running time of all trainers of the job; validation, which uses no GPU, is not counted.",
            ge=0,
        ),
    ] = 0
    wasted_seconds: Annotated[
        int, Field(description="wastedSeconds is the part of attemptSeconds spent in failed attempts.", ge=0)
    ] = 0
    trained_tokens: Annotated[int | None, Field(description="trainedTokens of the successful attempt.", ge=0)] = None


class FinetuneJobStatus(StatusModel):
    """Observed state of a FinetuneJob."""

    observed_generation: Annotated[
        int, Field(description="observedGeneration is metadata.generation that this status was computed from.", ge=0)
    ] = 0
    phase: Annotated[str | None, Field(description="phase is one word for people, derived from the conditions.")] = None
    reason: Annotated[str | None, Field(description="reason of the phase, from the glossary.")] = None
    message: Annotated[str | None, Field(description="message of the phase.", max_length=4096)] = None
    conditions: Annotated[
        list[Condition],
        Field(
            description="conditions of the job; Succeeded and Failed never leave True.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = Field(default_factory=list)
    start_time: Annotated[Time | None, Field(description="startTime of the first trainer.")] = None
    completion_time: Annotated[Time | None, Field(description="completionTime of the job.")] = None
    attempt: Annotated[int, Field(description="attempt is the number of the latest attempt, from 1.", ge=0)] = 0
    failed_attempts: Annotated[int, Field(description="failedAttempts counts towards policy.maxAttempts.", ge=0)] = 0
    initial_adapter: Annotated[
        InitialAdapterStatus | None,
        Field(description="initialAdapter is what continueFrom.finetuneJob had when the first attempt was due."),
    ] = None
    progress: Annotated[ProgressStatus | None, Field(description="progress of the running attempt.")] = None
    metrics: Annotated[
        list[MetricStatus],
        Field(
            description="metrics of the finished training.",
            max_length=64,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(default_factory=list)
    checkpoints: Annotated[
        list[CheckpointStatus], Field(description="checkpoints that can be resumed from.", max_length=20)
    ] = Field(default_factory=list)
    last_failure: Annotated[FailureStatus | None, Field(description="lastFailure of an attempt.")] = None
    adapter: Annotated[AdapterStatus | None, Field(description="adapter that was committed.")] = None
    serving: Annotated[ServingStatus | None, Field(description="serving is the endpoint.")] = None
    usage: Annotated[Usage | None, Field(description="usage of all attempts.")] = None
