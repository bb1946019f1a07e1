"""TrainingConfig: the whole configuration of a training run, in one document.

The operator builds it from a FinetuneJob and mounts it into the pod (`contract.CONFIG_PATH`, JSON); people write it by
hand for `python -m finetune_trainer train config.yaml`. Both are parsed by this class. It never contains credentials.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from finetune_api.base import SpecModel, exactly_one_of
from finetune_api.sources import DOWNLOADED, parse_source
from finetune_api.v1alpha1 import (
    MAX_SOURCES,
    Chat,
    Checkpoint,
    Columns,
    DatasetFormat,
    Dpo,
    EvaluationSettings,
    Hyperparameters,
    Lora,
    MaxRows,
    Tracking,
    Weight,
)


class JobIdentity(SpecModel):
    """FinetuneJob and attempt that a run belongs to; absent when a person runs the trainer by hand."""

    namespace: Annotated[str, Field(description="namespace is the namespace of the FinetuneJob.")]
    name: Annotated[str, Field(description="name is the name of the FinetuneJob.")]
    uid: Annotated[str, Field(description="uid is the uid of the FinetuneJob.")]
    attempt: Annotated[
        int,
        Field(
            description="attempt is the number of the attempt, counted from 1; together with uid it is the fencing token.",
            ge=1,
        ),
    ]


class ModelConfig(SpecModel):
    """Base model."""

    path: Annotated[
        str,
        Field(description="path is a local checkpoint folder, or ORG/NAME of a Hugging Face repository.", min_length=1),
    ]
    source: Annotated[
        str | None, Field(description="source is the URI by which users know the model, for records and messages.")
    ] = None
    revision: Annotated[
        str | None, Field(description="revision is the branch, tag or commit of a Hugging Face repository.")
    ] = None


class RowsConfig(SpecModel):
    """Rows: exactly one of inline text and a local or remote file."""

    RULES = (exactly_one_of("inline", "path"),)

    inline: Annotated[str | None, Field(description="inline holds the rows themselves as JSON Lines.")] = None
    path: Annotated[
        str | None,
        Field(description="path is a .jsonl, .json, .csv or .parquet file, or its https://, s3:// or hf:// URI."),
    ] = None
    source: Annotated[
        str | None, Field(description="source is the URI by which users know the rows, for records and messages.")
    ] = None

    @model_validator(mode="after")
    def _known_source(self) -> Self:
        # A check of the model, not of the field: the error would show the field's value, which may hold a password.
        if self.path and "://" in self.path:
            try:
                parse_source(self.path, DOWNLOADED)
            except ValueError:
                raise ValueError(
                    "path is neither a file nor hf://ORG/NAME[@REVISION][?config=CONFIG&split=SPLIT], https://HOST/PATH or "
                    "s3://BUCKET/KEY without user and query"
                ) from None
        return self


class SourceConfig(RowsConfig):
    """One of several sources of training rows."""

    weight: Annotated[Weight, Field(description="weight is the number of times that each row is used per epoch.")] = 1.0
    max_rows: Annotated[MaxRows | None, Field(description="maxRows is the largest number of rows before weight.")] = (
        None
    )
    columns: Annotated[
        Columns | None,
        Field(
            description="columns maps the parts of the format to this source's column names. Default: the dataset's."
        ),
    ] = None


class DatasetConfig(RowsConfig):
    """Training rows and their format: exactly one of inline text, a file and several sources."""

    RULES = (exactly_one_of("inline", "path", "sources"),)

    sources: Annotated[
        list[SourceConfig] | None,
        Field(
            description="sources lists several sources, whose rows are put together in this order.",
            min_length=1,
            max_length=MAX_SOURCES,
        ),
    ] = None
    format: Annotated[DatasetFormat, Field(description="format is the format of a row, or auto.")] = "auto"
    columns: Annotated[
        Columns | None, Field(description="columns maps the parts of the format to the dataset's own column names.")
    ] = None
    max_rows: Annotated[
        MaxRows | None, Field(description="maxRows is the largest number of rows, before any are held out.")
    ] = None
    shuffle: Annotated[
        bool, Field(description="shuffle trains rows in a new order each epoch; false keeps the order of the dataset.")
    ] = True
    strict: Annotated[
        bool | None,
        Field(description="strict refuses rows of which something is not used. Default: false, which only counts it."),
    ] = None
    evaluation_fraction: Annotated[
        float | None, Field(description="evaluationFraction is the share of the rows that is held out.", gt=0, le=0.5)
    ] = None


class InitialAdapterConfig(SpecModel):
    """Committed adapter that training starts from."""

    path: Annotated[str, Field(description="path is the adapter's folder, which has a manifest.", min_length=1)]
    digest: Annotated[
        str | None,
        Field(description="digest is the digest that the adapter must have. If unset, any is accepted.", max_length=71),
    ] = None
    source: Annotated[
        str | None, Field(description="source is the URI by which users know the adapter, for records and messages.")
    ] = None


class OutputConfig(SpecModel):
    """Destination of the adapter."""

    directory: Annotated[
        str,
        Field(
            description="directory holds adapters and checkpoints; in a pod, the mount point of a volume.", min_length=1
        ),
    ]
    adapter_name: Annotated[
        str, Field(description="adapterName is the name of the adapter and of its folder.", min_length=1, max_length=63)
    ]
    claim: Annotated[
        str | None,
        Field(description="claim is the claim mounted at directory, for the adapter's URI; absent when run by hand."),
    ] = None


class TrainingConfig(SpecModel):
    """One training run."""

    job: Annotated[JobIdentity | None, Field(description="job is the FinetuneJob that this run is an attempt of.")] = (
        None
    )
    model: Annotated[ModelConfig, Field(description="model is the base model to fine-tune.")]
    dataset: Annotated[DatasetConfig, Field(description="dataset holds the training rows.")]
    chat: Annotated[
        Chat | None,
        Field(description="chat says how chats are rendered. If unset, the model's own chat template is used."),
    ] = None
    evaluation: Annotated[
        RowsConfig | None, Field(description="evaluation holds the held-out rows, in the dataset's format.")
    ] = None
    evaluation_settings: Annotated[
        EvaluationSettings, Field(description="evaluationSettings says how held-out rows are used.")
    ] = Field(default_factory=EvaluationSettings)
    initial_adapter: Annotated[
        InitialAdapterConfig | None,
        Field(
            description="initialAdapter is the adapter that training starts from. If unset, training starts from a new adapter."
        ),
    ] = None
    lora: Annotated[Lora, Field(description="lora holds the LoRA hyperparameters.")] = Field(default_factory=Lora)
    dpo: Annotated[
        Dpo | None, Field(description="dpo trains on preference pairs. If unset, training is supervised.")
    ] = None
    hyperparameters: Annotated[Hyperparameters, Field(description="hyperparameters of the training.")] = Field(
        default_factory=Hyperparameters
    )
    checkpoint: Annotated[Checkpoint, Field(description="checkpoint says how often checkpoints are saved.")] = Field(
        default_factory=Checkpoint
    )
    tracking: Annotated[
        Tracking | None,
        Field(
            description="tracking names experiment trackers. Credentials come from the trackers' own environment variables."
        ),
    ] = None
    output: Annotated[OutputConfig, Field(description="output says where the adapter is stored.")]
    processes: Annotated[
        int | None,
        Field(
            description="processes is the number of processes that share each step on this machine, one per GPU. Default: 1.",
            ge=1,
            le=64,
        ),
    ] = None

    @model_validator(mode="after")
    def _evaluations_need_rows(self) -> Self:
        has_rows = self.evaluation is not None or self.dataset.evaluation_fraction is not None
        if not has_rows and self.evaluation_settings != EvaluationSettings():
            raise ValueError("evaluationSettings need held-out rows; set evaluation or dataset.evaluationFraction")
        return self
