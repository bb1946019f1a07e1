"""ServingConfig: the whole configuration of a server pod, in one document (see `training` for how it reaches the pod)."""

import hashlib
from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Rule, SpecModel


class ServedModel(SpecModel):
    """Base model."""

    name: Annotated[
        str, Field(description="name is the name that clients use as `model` for the base model.", min_length=1)
    ]
    path: Annotated[
        str,
        Field(description="path is a local checkpoint folder, or ORG/NAME of a Hugging Face repository.", min_length=1),
    ]
    revision: Annotated[
        str | None, Field(description="revision is the branch, tag or commit of a Hugging Face repository.")
    ] = None


class ServedAdapter(SpecModel):
    """Adapter to serve."""

    name: Annotated[
        str, Field(description="name is the name that clients use as `model`.", min_length=1, max_length=80)
    ]
    path: Annotated[str, Field(description="path is the committed adapter folder.", min_length=1)]
    digest: Annotated[
        str | None, Field(description="digest is the digest that the adapter's manifest must have, if known.")
    ] = None
    promotion: Annotated[
        "Promotion | None",
        Field(description="promotion allows a candidate to be served under the name of its adapter."),
    ] = None


class Promotion(SpecModel):
    """Permission to serve a candidate under its adapter's name before the next list does."""

    name: Annotated[
        str,
        Field(description="name is the adapter's name, which the candidate then gets.", min_length=1, max_length=80),
    ]
    token_digest: Annotated[
        str,
        Field(
            description="tokenDigest is the SHA-256 in hex of the token, which only the author of the list knows.",
            pattern="^[0-9a-f]{64}$",
        ),
    ]


class PromotionRequest(SpecModel):
    """Body of `POST /promote`: serve a candidate of the list under its adapter's name from now on."""

    candidate: Annotated[
        str, Field(description="candidate is the candidate's name in the list.", min_length=1, max_length=80)
    ]
    token: Annotated[
        str, Field(description="token is the token that was made for this candidate.", min_length=1, max_length=512)
    ]
    digest: Annotated[str | None, Field(description="digest is the digest of the verified version, if known.")] = None


def token_digest(token: str) -> str:
    """Return the tokenDigest of a promotion's token."""
    return hashlib.sha256(token.encode()).hexdigest()


class AdapterList(SpecModel):
    """Adapters that can change while the server runs, in a file of their own beside the ServingConfig."""

    adapters: Annotated[
        list[ServedAdapter],
        Field(
            description="adapters lists the adapters to serve in addition to those of the ServingConfig. If a name is in both, this list wins."
        ),
    ] = Field(default_factory=list)


class ServingConfig(SpecModel):
    """Configuration of one server pod."""

    RULES = (
        Rule(
            "!has(self.mergeAdapter) || !self.mergeAdapter || has(self.adapters) && self.adapters.size() == 1",
            lambda m: not m.merge_adapter or len(m.adapters) == 1,
            "mergeAdapter needs exactly one adapter; list one in adapters, or set mergeAdapter to false",
        ),
    )

    model: Annotated[ServedModel, Field(description="model is the base model.")]
    adapters: Annotated[
        list[ServedAdapter], Field(description="adapters lists the adapters to serve beside the base model.")
    ] = Field(default_factory=list)
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Field(description="precision is the data type of the weights. auto is bfloat16 on GPUs, float32 on CPUs."),
    ] = "auto"
    max_model_length: Annotated[
        int | None, Field(description="maxModelLength is the maximum length of prompt plus answer in tokens.", ge=16)
    ] = None
    merge_adapter: Annotated[
        bool | None,
        Field(
            description="mergeAdapter merges the only adapter into the weights, which removes its runtime cost; the base model is not "
            "served beside it then. Unset means false, so that pods of releases before this field keep their configuration."
        ),
    ] = None
