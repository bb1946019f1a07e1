"""FinetuneJob: one fine-tuning run, from model and dataset to an adapter that is optionally served and verified."""

from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.base import CEL, Rule, SpecModel, StatusModel
from finetune_api.contract import API_VERSION
from finetune_api.v1alpha1.common import (
    DNS_LABEL_PATTERN,
    ModelReference,
    ObjectMeta,
    Resources,
)
from finetune_api.v1alpha1.job.chat import Chat
from finetune_api.v1alpha1.job.dataset import Dataset
from finetune_api.v1alpha1.job.evaluation import Evaluation
from finetune_api.v1alpha1.job.hyperparameters import Checkpoint, Hyperparameters
from finetune_api.v1alpha1.job.method import ContinueFrom, Method
from finetune_api.v1alpha1.job.policy import Output, Policy
from finetune_api.v1alpha1.job.serve import Serve
from finetune_api.v1alpha1.job.status import FinetuneJobStatus
from finetune_api.v1alpha1.job.tracking import Tracking

MUTABLE_FIELDS = ("suspend", "cancel", "ttlSecondsAfterFinished")
"""Fields of spec that may change after creation; `crd` makes CEL transition rules for all others. The rest is immutable because
the adapter's record refers to it."""


class FinetuneJobSpec(SpecModel):
    """Desired state of a FinetuneJob. Immutable except for suspend, cancel and ttlSecondsAfterFinished."""

    # A transition rule has no twin in Python: only the API server has the old object.
    model_config = ConfigDict(
        json_schema_extra={
            CEL: [
                {
                    "rule": "!oldSelf.cancel || self.cancel",
                    "message": "cancel cannot be taken back; create a new FinetuneJob instead",
                },
            ]
        }
    )
    RULES = (
        Rule(
            "!(has(self.serve) && !has(self.serve.into) && has(self.ttlSecondsAfterFinished))",
            lambda m: m.serve is None or m.serve.into is not None or m.ttl_seconds_after_finished is None,
            "ttlSecondsAfterFinished would remove the endpoint together with the job that owns it; "
            "remove serve, or serve the adapter with an InferenceService of your own",
        ),
        Rule(
            "!has(self.serve) || !has(self.serve.gate) || has(self.evaluation)",
            lambda m: m.serve is None or m.serve.gate is None or m.evaluation is not None,
            "serve.gate compares evaluations, so it needs evaluation",
        ),
    )

    model: Annotated[ModelReference, Field(description="model is the base model to fine-tune.")]
    dataset: Annotated[Dataset, Field(description="dataset holds the training rows.")]
    chat: Annotated[
        Chat | None,
        Field(description="chat says how chats are rendered. If unset, the model's own chat template is used."),
    ] = None
    evaluation: Annotated[
        Evaluation | None, Field(description="evaluation holds the held-out rows. If unset, nothing is evaluated.")
    ] = None
    continue_from: Annotated[
        ContinueFrom | None,
        Field(
            description="continueFrom is an existing adapter that training starts from. It needs the same model and method.lora "
            "(except for dropout). If unset, training starts from a new adapter."
        ),
    ] = None
    method: Annotated[Method, Field(description="method says how the model is tuned.")] = Field(default_factory=Method)
    hyperparameters: Annotated[Hyperparameters, Field(description="hyperparameters of the training.")] = Field(
        default_factory=Hyperparameters
    )
    checkpoint: Annotated[Checkpoint, Field(description="checkpoint says how often checkpoints are saved.")] = Field(
        default_factory=Checkpoint
    )
    tracking: Annotated[
        Tracking | None, Field(description="tracking names experiment trackers that receive the metrics of each step.")
    ] = None
    resources: Annotated[Resources, Field(description="resources of the training pod.")] = Field(
        default_factory=Resources
    )
    policy: Annotated[Policy, Field(description="policy sets the number of attempts and the deadlines.")] = Field(
        default_factory=Policy
    )
    output: Annotated[Output, Field(description="output says where the adapter is stored.")] = Field(
        default_factory=Output
    )
    serve: Annotated[
        Serve | None,
        Field(description="serve serves the adapter and verifies it. If unset, the job ends with the stored adapter."),
    ] = None
    queue_name: Annotated[
        str | None,
        Field(
            description="queueName is the name of a Kueue LocalQueue. The training Job then waits for Kueue to admit it.",
            min_length=1,
            max_length=63,
            pattern=DNS_LABEL_PATTERN,
        ),
    ] = None
    suspend: Annotated[
        bool,
        Field(description="suspend stops training after saving a checkpoint; training resumes when it is false again."),
    ] = False
    cancel: Annotated[bool, Field(description="cancel ends the job. It cannot be taken back.")] = False
    ttl_seconds_after_finished: Annotated[
        int | None,
        Field(
            description="ttlSecondsAfterFinished is the time after which a finished job is deleted. If unset, it is kept.",
            ge=0,
            le=31_536_000,
        ),
    ] = None


class FinetuneJob(StatusModel):
    """FinetuneJob fine-tunes a base model on a dataset with LoRA. The result is one adapter, which can be served and verified."""

    api_version: str = API_VERSION
    kind: str = "FinetuneJob"
    metadata: ObjectMeta
    spec: FinetuneJobSpec
    status: FinetuneJobStatus = Field(default_factory=FinetuneJobStatus)

    @property
    def adapter_name(self) -> str:
        """Name of the adapter that this job produces."""
        return self.spec.output.adapter_name or self.metadata.name

    @property
    def initial_adapter_uri(self) -> str | None:
        """URI of the adapter that training starts from; None without one, or until its job has published it."""
        if self.status.initial_adapter is not None:
            return self.status.initial_adapter.uri
        return self.spec.continue_from.source if self.spec.continue_from else None

    @property
    def service_name(self) -> str:
        """Name of the InferenceService that serves the adapter if spec.serve is set: one that the job owns, or an existing one."""
        serve = self.spec.serve
        return (serve.into or serve.name if serve else None) or self.metadata.name
