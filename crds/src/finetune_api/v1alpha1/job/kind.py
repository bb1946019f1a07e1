"""FinetuneJob: one fine-tuning, from model and dataset to an adapter, optionally served and verified."""

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from finetune_api.base import CEL, SpecModel, StatusModel
from finetune_api.contract import API_VERSION
from finetune_api.v1alpha1.common import (
    DNS_LABEL_PATTERN,
    ModelReference,
    ObjectMeta,
    Resources,
)
from finetune_api.v1alpha1.job.dataset import Dataset
from finetune_api.v1alpha1.job.evaluation import Evaluation
from finetune_api.v1alpha1.job.hyperparameters import Checkpoint, Hyperparameters
from finetune_api.v1alpha1.job.method import ContinueFrom, Method
from finetune_api.v1alpha1.job.policy import Output, Policy
from finetune_api.v1alpha1.job.serve import Serve
from finetune_api.v1alpha1.job.status import FinetuneJobStatus
from finetune_api.v1alpha1.job.tracking import Tracking

MUTABLE_FIELDS = ("suspend", "cancel", "ttlSecondsAfterFinished")
"""Fields of spec that may change after creation; `crd` makes CEL transition rules for all others. What is immutable is
what the adapter's record says it was made from."""


class FinetuneJobSpec(SpecModel):
    """Desired state of a FinetuneJob. Immutable but for suspend, cancel and ttlSecondsAfterFinished."""

    model_config = ConfigDict(
        json_schema_extra={
            CEL: [
                {
                    "rule": "!(has(self.serve) && !has(self.serve.into) && has(self.ttlSecondsAfterFinished))",
                    "message": "ttlSecondsAfterFinished would remove the endpoint together with the job that owns it; "
                    "remove serve, or serve the adapter with an InferenceService of your own",
                },
                {
                    "rule": "!has(self.serve) || !has(self.serve.gate) || has(self.evaluation)",
                    "message": "serve.gate compares evaluations, so it needs evaluation",
                },
                {
                    "rule": "!oldSelf.cancel || self.cancel",
                    "message": "cancel cannot be taken back; create a new FinetuneJob instead",
                },
            ]
        }
    )

    model: Annotated[ModelReference, Field(description="model is the base model to tune.")]
    dataset: Annotated[Dataset, Field(description="dataset holds the training rows.")]
    evaluation: Annotated[
        Evaluation | None, Field(description="evaluation holds the held-out rows; none by default.")
    ] = None
    continue_from: Annotated[
        ContinueFrom | None,
        Field(
            description="continueFrom is an earlier adapter that training starts from, with the same model and method.lora (but "
            "for dropout); an untrained one by default."
        ),
    ] = None
    method: Annotated[Method, Field(description="method of tuning.")] = Field(default_factory=Method)
    hyperparameters: Annotated[Hyperparameters, Field(description="hyperparameters of training.")] = Field(
        default_factory=Hyperparameters
    )
    checkpoint: Annotated[Checkpoint, Field(description="checkpoint says when work is saved.")] = Field(
        default_factory=Checkpoint
    )
    tracking: Annotated[
        Tracking | None, Field(description="tracking says where figures go beside the status; nowhere by default.")
    ] = None
    resources: Annotated[Resources, Field(description="resources of the training pod.")] = Field(
        default_factory=Resources
    )
    policy: Annotated[Policy, Field(description="policy for attempts and deadlines.")] = Field(default_factory=Policy)
    output: Annotated[Output, Field(description="output says where the adapter goes.")] = Field(default_factory=Output)
    serve: Annotated[
        Serve | None, Field(description="serve rolls the adapter out; without it the job ends with the adapter.")
    ] = None
    queue_name: Annotated[
        str | None,
        Field(
            description="queueName of Kueue's LocalQueue; the training Job then waits for Kueue's admission.",
            min_length=1,
            max_length=63,
            pattern=DNS_LABEL_PATTERN,
        ),
    ] = None
    suspend: Annotated[
        bool, Field(description="suspend stops training after a checkpoint, until it is false again.")
    ] = False
    cancel: Annotated[bool, Field(description="cancel ends the job for good; it cannot be taken back.")] = False
    ttl_seconds_after_finished: Annotated[
        int | None,
        Field(
            description="ttlSecondsAfterFinished is how long the finished object is kept; for ever if unset.",
            ge=0,
            le=31_536_000,
        ),
    ] = None

    @model_validator(mode="after")
    def _ttl_without_endpoint(self) -> Self:
        if self.serve is not None and self.serve.into is None and self.ttl_seconds_after_finished is not None:
            raise ValueError("ttlSecondsAfterFinished would remove the endpoint together with the job; remove serve")
        return self


class FinetuneJob(StatusModel):
    """FinetuneJob tunes a base model on a dataset with LoRA and yields one adapter, optionally served and verified."""

    api_version: str = API_VERSION
    kind: str = "FinetuneJob"
    metadata: ObjectMeta
    spec: FinetuneJobSpec
    status: FinetuneJobStatus = Field(default_factory=FinetuneJobStatus)

    @property
    def adapter_name(self) -> str:
        """Name of the adapter this job makes."""
        return self.spec.output.adapter_name or self.metadata.name

    @property
    def initial_adapter_uri(self) -> str | None:
        """Where the adapter is that training starts from; None without one, or as long as its job has not published it."""
        if self.status.initial_adapter is not None:
            return self.status.initial_adapter.uri
        return self.spec.continue_from.source if self.spec.continue_from else None

    @property
    def service_name(self) -> str:
        """Name of the InferenceService that the adapter is served by, if it is: one of the job's own, or one that exists."""
        serve = self.spec.serve
        return (serve.into or serve.name if serve else None) or self.metadata.name
