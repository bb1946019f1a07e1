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


DatasetFormat = Literal["auto", "messages", "prompt-completion", "text", "preference"]
"""Format of a row; `auto` detects it."""


class Dataset(SpecModel):
    """Training rows: exactly one of `inline` and `source`."""

    RULES = (exactly_one_of("inline", "source"),)

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
            "compressed as .gz or .zst), configmap://NAME/KEY (JSON Lines), hf://ORG/NAME[@REVISION], https://HOST/PATH or "
            "s3://BUCKET/KEY."
        ),
    ] = None
    secret_ref: Annotated[
        LocalSecretReference | None,
        Field(
            description="secretRef names the Secret with the credentials for dataset.source and evaluation.source. For hf:// "
            "and https:// its key holds the token; for s3:// it holds AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, "
            "if needed, AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL."
        ),
    ] = None
    format: Annotated[
        DatasetFormat,
        Field(
            description="format is the format of a row: messages ({messages: [{role, content}]}), prompt-completion "
            "({prompt, completion}), text ({text}), preference ({prompt, chosen, rejected}, for "
            "method.dpo), or auto, which detects it."
        ),
    ] = "auto"
    columns: Annotated[
        Columns | None, Field(description="columns maps the parts of the format to the dataset's own column names.")
    ] = None
