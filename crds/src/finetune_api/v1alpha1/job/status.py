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
    """Progress of the running attempt."""

    step: Annotated[int, Field(description="step is the number of finished optimizer steps.", ge=0)] = 0
    total_steps: Annotated[int, Field(description="totalSteps is the number of planned steps.", ge=0)] = 0
    epoch: Annotated[
        float | None, Field(description="epoch is the number of passes over the dataset completed so far.")
    ] = None
    percent: Annotated[int, Field(description="percent is the share of the steps that is finished.", ge=0, le=100)] = 0
    loss: Annotated[
        str | None,
        Field(
            description="loss is the training loss of the latest logged step, as text because some clients round numbers."
        ),
    ] = None
    eval_loss: Annotated[
        str | None, Field(description="evalLoss is the loss of the latest evaluation on held-out rows, as text.")
    ] = None
    eta_seconds: Annotated[
        int | None, Field(description="etaSeconds is the estimated number of seconds until training ends.", ge=0)
    ] = None
    eta: Annotated[str | None, Field(description="eta is etaSeconds in human-readable form, for example 2m10s.")] = None
    tokens_per_second: Annotated[
        int | None,
        Field(description="tokensPerSecond is the training throughput in tokens, padding not counted.", ge=0),
    ] = None
    passes: Annotated[
        MicroBatching | None,
        Field(
            description="passes says how a step is split into forward passes; they get smaller when memory runs out."
        ),
    ] = None
    last_update_time: Annotated[
        Time | None, Field(description="lastUpdateTime is when these figures were measured.")
    ] = None


class MetricStatus(StatusModel):
    """One metric."""

    name: Annotated[str, Field(description="name is the name of the metric, for example train_loss.", max_length=128)]
    value: Annotated[str, Field(description="value is the measured value as text.", max_length=64)]


class CheckpointStatus(StatusModel):
    """One checkpoint on the volume."""

    step: Annotated[int, Field(description="step is the optimizer step after which the checkpoint was saved.", ge=0)]
    path: Annotated[str, Field(description="path is the checkpoint's folder inside the output claim.", max_length=512)]


class FailureStatus(StatusModel):
    """Last failed attempt, kept after its pod is gone."""

    attempt: Annotated[int, Field(description="attempt is the number of the failed attempt.", ge=1)]
    pod: Annotated[
        str | None, Field(description="pod is the name of the pod that ran the attempt.", max_length=253)
    ] = None
    exit_code: Annotated[int | None, Field(description="exitCode is the exit code of the trainer.")] = None
    reason: Annotated[
        str,
        Field(
            description="reason is one CamelCase word for why the attempt failed, from the list of reasons of this API.",
            max_length=128,
        ),
    ]
    message: Annotated[str, Field(description="message says what happened and what to change.", max_length=4096)] = ""
    log_tail: Annotated[
        str | None,
        Field(description="logTail is the end of the trainer's log, if the trainer crashed.", max_length=4096),
    ] = None
    finish_time: Annotated[Time | None, Field(description="finishTime is when the attempt ended.")] = None


class AdapterStatus(StatusModel):
    """Committed adapter."""

    name: Annotated[str, Field(description="name is the name of the adapter.", max_length=63)]
    uri: Annotated[str, Field(description="uri is the URI of the adapter's folder: pvc://CLAIM/PATH.", max_length=512)]
    digest: Annotated[str, Field(description="digest is the sha256 of the adapter's manifest.", max_length=71)]
    size_bytes: Annotated[
        int | None, Field(description="sizeBytes is the size of all files of the adapter in bytes.", ge=0)
    ] = None
    base_model: Annotated[str, Field(description="baseModel is the source URI of the base model.", max_length=512)]
    base_revision: Annotated[
        str | None, Field(description="baseRevision is the commit or digest of the base model.", max_length=128)
    ] = None
    fingerprint: Annotated[
        Fingerprint | None, Field(description="fingerprint identifies the tuned weights by their log-probabilities.")
    ] = None


class InitialAdapterStatus(StatusModel):
    """Adapter that every attempt starts from."""

    uri: Annotated[str, Field(description="uri is the URI of the adapter's folder: pvc://CLAIM/PATH.", max_length=512)]
    digest: Annotated[str, Field(description="digest is the sha256 of the adapter's manifest.", max_length=71)]


class ServingStatus(StatusModel):
    """State of the endpoint."""

    name: Annotated[str, Field(description="name is the name of the InferenceService.", max_length=63)]
    url: Annotated[str | None, Field(description="url is the URL of the OpenAI-compatible API inside the cluster.")] = (
        None
    )
    ready: Annotated[bool, Field(description="ready says whether the endpoint answers.")] = False
    verified: Annotated[
        bool, Field(description="verified says whether the endpoint is proven to answer with the tuned weights.")
    ] = False
    state: Annotated[
        str | None,
        Field(description="state is one word for the printer column: Deploying, Ready, Verified or Failed."),
    ] = None
    started_time: Annotated[Time | None, Field(description="startedTime is when the rollout began.")] = None


class Usage(StatusModel):
    """Time and tokens that the job has used."""

    attempt_seconds: Annotated[
        int,
        Field(
            description="attemptSeconds is the running time of all attempts. Validation, which uses no GPU, is not counted.",
            ge=0,
        ),
    ] = 0
    wasted_seconds: Annotated[
        int, Field(description="wastedSeconds is the share of attemptSeconds that was spent in failed attempts.", ge=0)
    ] = 0
    trained_tokens: Annotated[
        int | None, Field(description="trainedTokens is the number of tokens trained in the successful attempt.", ge=0)
    ] = None


class FinetuneJobStatus(StatusModel):
    """Observed state of a FinetuneJob."""

    observed_generation: Annotated[
        int,
        Field(description="observedGeneration is the metadata.generation that this status was computed from.", ge=0),
    ] = 0
    phase: Annotated[
        str | None,
        Field(
            description="phase summarizes the conditions in one word for people. Programs should read the conditions."
        ),
    ] = None
    reason: Annotated[
        str | None,
        Field(
            description="reason is one CamelCase word for why the job is in this phase, from the list of reasons of this API."
        ),
    ] = None
    message: Annotated[
        str | None,
        Field(description="message is a sentence about the phase that says what to do, if anything.", max_length=4096),
    ] = None
    conditions: Annotated[
        list[Condition],
        Field(
            description="conditions of the job. Succeeded and Failed stay True once they are True.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = Field(default_factory=list)
    start_time: Annotated[
        Time | None, Field(description="startTime is when training started in the first attempt.")
    ] = None
    completion_time: Annotated[
        Time | None, Field(description="completionTime is when the job succeeded, failed or was cancelled.")
    ] = None
    attempt: Annotated[int, Field(description="attempt is the number of the latest attempt, counted from 1.", ge=0)] = 0
    failed_attempts: Annotated[
        int,
        Field(description="failedAttempts is the number of failed attempts, which policy.maxAttempts limits.", ge=0),
    ] = 0
    initial_adapter: Annotated[
        InitialAdapterStatus | None,
        Field(description="initialAdapter is the adapter of continueFrom.finetuneJob that every attempt starts from."),
    ] = None
    progress: Annotated[ProgressStatus | None, Field(description="progress of the running attempt.")] = None
    metrics: Annotated[
        list[MetricStatus],
        Field(
            description="metrics of the finished training run.",
            max_length=64,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(default_factory=list)
    checkpoints: Annotated[
        list[CheckpointStatus],
        Field(description="checkpoints lists the checkpoints that training can resume from.", max_length=20),
    ] = Field(default_factory=list)
    last_failure: Annotated[
        FailureStatus | None, Field(description="lastFailure describes the last failed attempt.")
    ] = None
    adapter: Annotated[AdapterStatus | None, Field(description="adapter is the committed adapter.")] = None
    serving: Annotated[ServingStatus | None, Field(description="serving is the state of the endpoint.")] = None
    usage: Annotated[Usage | None, Field(description="usage is the time and the tokens used by all attempts.")] = None
