"""TrainingConfig: everything the trainer needs to know, in one document.

The operator builds it from a FinetuneJob and mounts it into the pod (`constants.CONFIG_PATH`, JSON); a person writes it by
hand for `python -m finetune_trainer train config.yaml`. Both are parsed by this class. Credentials are never part of it.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from finetune_api.base import SpecModel
from finetune_api.sources import DOWNLOADED, parse_source
from finetune_api.v1alpha1.job.dataset import Columns, DatasetFormat
from finetune_api.v1alpha1.job.evaluation import EvaluationSettings
from finetune_api.v1alpha1.job.hyperparameters import Checkpoint, Hyperparameters
from finetune_api.v1alpha1.job.method import Dpo, Lora
from finetune_api.v1alpha1.job.tracking import Tracking


class JobIdentity(SpecModel):
    """Which attempt of which FinetuneJob this is; absent when a person runs the trainer by hand."""

    namespace: Annotated[str, Field(description="namespace of the FinetuneJob.")]
    name: Annotated[str, Field(description="name of the FinetuneJob.")]
    uid: Annotated[str, Field(description="uid of the FinetuneJob.")]
    attempt: Annotated[int, Field(description="attempt number, from 1; with uid it is the fencing token.", ge=1)]


class ModelConfig(SpecModel):
    """The base model."""

    path: Annotated[
        str, Field(description="path of a local checkpoint folder, or ORG/NAME of a hub repository.", min_length=1)
    ]
    source: Annotated[
        str | None, Field(description="source URI that users know the model by, for records and messages.")
    ] = None
    revision: Annotated[str | None, Field(description="revision of a hub repository.")] = None


class RowsConfig(SpecModel):
    """Where rows are: exactly one of inline text and a file, which may be elsewhere."""

    inline: Annotated[str | None, Field(description="inline rows as JSON Lines.")] = None
    path: Annotated[
        str | None,
        Field(description="path of a .jsonl, .json, .csv or .parquet file, or its https://, s3:// or hf:// URI."),
    ] = None
    source: Annotated[
        str | None, Field(description="source URI that users know the rows by, for records and messages.")
    ] = None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.inline is None) == (self.path is None):
            raise ValueError("set exactly one of inline and path")
        return self

    @model_validator(mode="after")
    def _known_source(self) -> Self:
        # Of the whole and not of the field, whose value would be shown: it may hold a password or a signature.
        if self.path and "://" in self.path:
            try:
                parse_source(self.path, DOWNLOADED)
            except ValueError:
                raise ValueError(
                    "path is neither a file nor hf://ORG/NAME, https://HOST/PATH or s3://BUCKET/KEY without user and query"
                ) from None
        return self


class DatasetConfig(RowsConfig):
    """Training rows and how to read them."""

    format: Annotated[DatasetFormat, Field(description="format of a row, or auto.")] = "auto"
    columns: Annotated[Columns | None, Field(description="columns of the dataset by their part.")] = None
    evaluation_fraction: Annotated[
        float | None, Field(description="evaluationFraction of the rows that is held out.", gt=0, le=0.5)
    ] = None


class InitialAdapterConfig(SpecModel):
    """A committed adapter that training starts from."""

    path: Annotated[str, Field(description="path of the adapter's folder, with its manifest.", min_length=1)]
    digest: Annotated[
        str | None, Field(description="digest that the adapter must have; the one it has if unset.", max_length=71)
    ] = None
    source: Annotated[
        str | None, Field(description="source URI that users know the adapter by, for records and messages.")
    ] = None


class OutputConfig(SpecModel):
    """Where the adapter goes."""

    directory: Annotated[
        str, Field(description="directory (a volume's mount point) that holds adapters and checkpoints.", min_length=1)
    ]
    adapter_name: Annotated[str, Field(description="adapterName, also the folder's name.", min_length=1, max_length=63)]
    claim: Annotated[
        str | None, Field(description="claim mounted at directory, for the adapter's URI; absent when run by hand.")
    ] = None


class TrainingConfig(SpecModel):
    """One training run."""

    job: Annotated[JobIdentity | None, Field(description="job that this run is an attempt of.")] = None
    model: Annotated[ModelConfig, Field(description="model to tune.")]
    dataset: Annotated[DatasetConfig, Field(description="dataset to train on.")]
    evaluation: Annotated[RowsConfig | None, Field(description="evaluation rows, in the dataset's format.")] = None
    evaluation_settings: Annotated[
        EvaluationSettings, Field(description="evaluationSettings say what is done with held-out rows.")
    ] = Field(default_factory=EvaluationSettings)
    initial_adapter: Annotated[
        InitialAdapterConfig | None,
        Field(description="initialAdapter whose weights training starts from; an untrained adapter if unset."),
    ] = None
    lora: Annotated[Lora, Field(description="lora hyperparameters.")] = Field(default_factory=Lora)
    dpo: Annotated[Dpo | None, Field(description="dpo on preference pairs; supervised training if unset.")] = None
    hyperparameters: Annotated[Hyperparameters, Field(description="hyperparameters of training.")] = Field(
        default_factory=Hyperparameters
    )
    checkpoint: Annotated[Checkpoint, Field(description="checkpoint says when work is saved.")] = Field(
        default_factory=Checkpoint
    )
    tracking: Annotated[
        Tracking | None,
        Field(
            description="tracking says where figures go; credentials come from the trackers' own environment variables."
        ),
    ] = None
    output: Annotated[OutputConfig, Field(description="output says where the adapter goes.")]
    processes: Annotated[
        int | None,
        Field(description="processes that share each step on this machine, one a GPU; one if unset.", ge=1, le=64),
    ] = None

    @model_validator(mode="after")
    def _evaluations_need_rows(self) -> Self:
        has_rows = self.evaluation is not None or self.dataset.evaluation_fraction is not None
        if not has_rows and self.evaluation_settings != EvaluationSettings():
            raise ValueError("evaluationSettings need held-out rows; set evaluation or dataset.evaluationFraction")
        return self
