"""ServingConfig: everything a server pod needs to know, in one document (see `training` for how it gets there)."""

import hashlib
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from finetune_api.base import SpecModel


class ServedModel(SpecModel):
    """The base model."""

    name: Annotated[str, Field(description="name that clients put into `model` for the base.", min_length=1)]
    path: Annotated[
        str, Field(description="path of a local checkpoint folder, or ORG/NAME of a hub repository.", min_length=1)
    ]
    revision: Annotated[str | None, Field(description="revision of a hub repository.")] = None


class ServedAdapter(SpecModel):
    """One adapter."""

    name: Annotated[str, Field(description="name that clients put into `model`.", min_length=1, max_length=80)]
    path: Annotated[str, Field(description="path of the committed adapter folder.", min_length=1)]
    digest: Annotated[str | None, Field(description="digest that the adapter's manifest must have, if known.")] = None
    promotion: Annotated[
        "Promotion | None", Field(description="promotion of a candidate: who may have clients get it by another name.")
    ] = None


class Promotion(SpecModel):
    """How clients come to get a candidate by its adapter's own name before the next list says so."""

    name: Annotated[str, Field(description="name that it gets then.", min_length=1, max_length=80)]
    token_digest: Annotated[
        str,
        Field(
            description="tokenDigest is the SHA-256 (hex) of the token that only whoever wrote the list knows.",
            pattern="^[0-9a-f]{64}$",
        ),
    ]


class PromotionRequest(SpecModel):
    """Body of `POST /promote`: clients are to get a candidate of the list by its adapter's own name from now on."""

    candidate: Annotated[str, Field(description="candidate is its name in the list.", min_length=1, max_length=80)]
    token: Annotated[str, Field(description="token that was made for this candidate.", min_length=1, max_length=512)]
    digest: Annotated[str | None, Field(description="digest of the version that was proven, if known.")] = None


def token_digest(token: str) -> str:
    """What the list says of a promotion's token."""
    return hashlib.sha256(token.encode()).hexdigest()


class AdapterList(SpecModel):
    """Adapters that may change while the server runs: a file of its own, beside the ServingConfig."""

    adapters: Annotated[
        list[ServedAdapter],
        Field(
            description="adapters that are served beside those of the ServingConfig; of two with one name, these count."
        ),
    ] = Field(default_factory=list)


class ServingConfig(SpecModel):
    """One server pod."""

    model: Annotated[ServedModel, Field(description="model that is served.")]
    adapters: Annotated[list[ServedAdapter], Field(description="adapters beside the base model.")] = Field(
        default_factory=list
    )
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Field(description="precision of the weights; auto is bfloat16 on GPUs, float32 on CPUs."),
    ] = "auto"
    max_model_length: Annotated[
        int | None, Field(description="maxModelLength is the longest prompt plus answer in tokens.", ge=16)
    ] = None
    merge_adapter: Annotated[
        bool | None,
        Field(
            description="mergeAdapter makes the one adapter a part of the weights: it costs no time then, and the base model is "
            "not served beside it. Unset is false, so that a pod's configuration is what it was before there was this field."
        ),
    ] = None

    @model_validator(mode="after")
    def _check_merge(self) -> Self:
        if self.merge_adapter and len(self.adapters) != 1:
            raise ValueError(
                f"mergeAdapter is true with {len(self.adapters)} adapters; it needs exactly one. List one, or set it to false."
            )
        return self
