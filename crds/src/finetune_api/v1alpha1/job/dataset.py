"""Training rows of a FinetuneJob: source, format and columns."""

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import SpecModel, exactly_one_of
from finetune_api.v1alpha1.common import (
    DatasetSource,
    LocalSecretReference,
)


class Columns(SpecModel):
    """Columns of the dataset by the part that they play."""

    messages: Annotated[
        str | None,
        Field(description="messages is the column with the conversation: a list of {role, content}.", max_length=128),
    ] = None
    prompt: Annotated[str | None, Field(description="prompt is the column with the input.", max_length=128)] = None
    completion: Annotated[
        str | None, Field(description="completion is the column with the expected output.", max_length=128)
    ] = None
    text: Annotated[str | None, Field(description="text is the column with plain text.", max_length=128)] = None
    chosen: Annotated[
        str | None, Field(description="chosen is the column with the preferred answer.", max_length=128)
    ] = None
    rejected: Annotated[
        str | None, Field(description="rejected is the column with the rejected answer.", max_length=128)
    ] = None
    system: Annotated[
        str | None, Field(description="system is the column with the system text of a conversation.", max_length=128)
    ] = None
    tools: Annotated[
        str | None,
        Field(description="tools is the column with the functions that a conversation offers.", max_length=128),
    ] = None


DatasetFormat = Literal["auto", "messages", "prompt-completion", "text", "preference"]
"""Format of a row; `auto` detects it."""


MAX_SOURCES = 16
"""Most sources of a dataset: each may be a volume of the pod, and each costs the API server a rule's evaluation."""

MaxRows = Annotated[int, Field(ge=1, le=1_000_000_000)]
"""Limit on a number of rows."""
Weight = Annotated[float, Field(gt=0, le=100)]
"""Number of times that each row is used per epoch."""


class WeightedSource(SpecModel):
    """One of several sources of training rows."""

    source: Annotated[DatasetSource, Field(description="source is the URI of the rows, as in dataset.source.")]
    weight: Annotated[
        Weight,
        Field(
            description="weight is the number of times that each row of this source is used per epoch, whatever the other "
            "sources have: 1 uses each row once, 3 uses it three times, 0.5 uses a half of the rows, and 2.5 uses all rows "
            "twice and a half of them once more. The part is drawn by hyperparameters.seed, or, with dataset.shuffle false, "
            "taken from the beginning. It is not a share of the dataset."
        ),
    ] = 1.0
    max_rows: Annotated[
        MaxRows | None,
        Field(
            description="maxRows is the largest number of rows of this source that is used, before weight is applied; the rows "
            "are drawn as for dataset.maxRows. If unset, all are used."
        ),
    ] = None
    columns: Annotated[
        Columns | None,
        Field(
            description="columns maps the parts of the format to this source's column names. Default: dataset.columns."
        ),
    ] = None


class Dataset(SpecModel):
    """Training rows: exactly one of `inline`, `source` and `sources`."""

    RULES = (exactly_one_of("inline", "source", "sources"),)

    inline: Annotated[
        str | None,
        Field(
            description="inline holds the rows themselves as JSON Lines: one JSON object per line.",
            min_length=1,
            max_length=131_072,
        ),
    ] = None
    source: Annotated[
        DatasetSource | None,
        Field(
            description="source is the URI of the rows: pvc://CLAIM/PATH (.jsonl, .json, .csv or .parquet; text may be "
            "compressed as .gz or .zst), configmap://NAME/KEY (JSON Lines), "
            "hf://ORG/NAME[@REVISION][?config=CONFIG&split=SPLIT], https://HOST/PATH or s3://BUCKET/KEY. Without split, the "
            "train split is used."
        ),
    ] = None
    sources: Annotated[
        list[WeightedSource] | None,
        Field(
            description="sources lists several sources, whose rows are put together in this order. All must have rows of one "
            "format.",
            min_length=1,
            max_length=MAX_SOURCES,
        ),
    ] = None
    secret_ref: Annotated[
        LocalSecretReference | None,
        Field(
            description="secretRef names the Secret with the credentials for dataset.source, dataset.sources and "
            "evaluation.source. For hf:// and https:// its key holds the token, which goes to one host only; for s3:// it "
            "holds AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if needed, AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL."
        ),
    ] = None
    format: Annotated[
        DatasetFormat,
        Field(
            description="format is the format of a row: messages ({messages: [{role, content}]}, or ShareGPT's "
            "conversations), prompt-completion ({prompt, completion}, or Alpaca's instruction, input and output), text "
            "({text}), preference ({prompt, chosen, rejected}, for method.dpo), or auto, which detects it."
        ),
    ] = "auto"
    columns: Annotated[
        Columns | None, Field(description="columns maps the parts of the format to the dataset's own column names.")
    ] = None
    max_rows: Annotated[
        MaxRows | None,
        Field(
            description="maxRows is the largest number of rows of the dataset that is used, after sources were put together "
            "and before rows are held out. The rows are drawn by hyperparameters.seed, or, with shuffle false, are the first "
            "ones. If unset, all are used."
        ),
    ] = None
    shuffle: Annotated[
        bool,
        Field(
            description="shuffle trains the rows of each epoch in a new order that depends on hyperparameters.seed only. If "
            "false, rows are trained in the order of the dataset, and limits use the first rows."
        ),
    ] = True
    strict: Annotated[
        bool,
        Field(
            description="strict refuses rows with columns or keys that are not used, and conversations of which the model's "
            "chat template leaves out a text. If false, both are counted in the dataset report and in a warning."
        ),
    ] = False

    @property
    def uris(self) -> list[str]:
        """URIs of all sources; none for inline rows."""
        return [self.source] if self.source else [part.source for part in self.sources or ()]
