"""Training rows of a FinetuneJob: where they come from and what their columns mean."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from finetune_api.base import CEL, SpecModel
from finetune_api.v1alpha1.common import (
    DatasetSource,
    LocalSecretReference,
)


class Columns(SpecModel):
    """Which columns of the dataset play which part."""

    messages: Annotated[
        str | None, Field(description="messages is the column with a chat: a list of {role, content}.", max_length=128)
    ] = None
    prompt: Annotated[str | None, Field(description="prompt is the column with the input.", max_length=128)] = None
    completion: Annotated[
        str | None, Field(description="completion is the column with the wanted output.", max_length=128)
    ] = None
    text: Annotated[str | None, Field(description="text is the column with plain text.", max_length=128)] = None
    chosen: Annotated[
        str | None, Field(description="chosen is the column with the better of two answers.", max_length=128)
    ] = None
    rejected: Annotated[
        str | None, Field(description="rejected is the column with the worse of two answers.", max_length=128)
    ] = None


DatasetFormat = Literal["auto", "messages", "prompt-completion", "text", "preference"]


class Dataset(SpecModel):
    """Training rows: exactly one of `inline` and `source`."""

    model_config = ConfigDict(
        json_schema_extra={
            CEL: [{"rule": "has(self.inline) != has(self.source)", "message": "set exactly one of inline and source"}]
        }
    )

    inline: Annotated[
        str | None,
        Field(description="inline rows as JSON Lines: one JSON object a line.", min_length=1, max_length=131_072),
    ] = None
    source: Annotated[
        DatasetSource | None,
        Field(
            description="source of the rows: pvc://CLAIM/PATH (.jsonl, .json, .csv or .parquet; text may be "
            "compressed, .gz or .zst), configmap://NAME/KEY (JSON Lines), hf://ORG/NAME[@REVISION], https://HOST/PATH or "
            "s3://BUCKET/KEY."
        ),
    ] = None
    secret_ref: Annotated[
        LocalSecretReference | None,
        Field(
            description="secretRef names the Secret with the credentials of dataset.source and evaluation.source: its key "
            "is the token for hf:// and https://; for s3:// the Secret has AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, "
            "if need be, AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL."
        ),
    ] = None
    format: Annotated[
        DatasetFormat,
        Field(
            description="format of a row: messages ({messages: [{role, content}]}), prompt-completion "
            "({prompt, completion}), text ({text}), preference ({prompt, chosen, rejected}, for "
            "method.dpo), or auto to detect it."
        ),
    ] = "auto"
    columns: Annotated[
        Columns | None, Field(description="columns maps the names used in the dataset to the parts of the format.")
    ] = None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.inline is None) == (self.source is None):
            raise ValueError("set exactly one of inline and source")
        return self
