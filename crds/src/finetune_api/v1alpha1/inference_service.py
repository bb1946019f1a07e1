"""InferenceService: one base model, served with zero or more adapters behind an OpenAI-compatible endpoint."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from finetune_api.base import CEL, SpecModel, StatusModel
from finetune_api.constants import API_VERSION
from finetune_api.fingerprint import Fingerprint
from finetune_api.v1alpha1.common import (
    DNS_LABEL_PATTERN,
    AdapterSource,
    Condition,
    ModelReference,
    ObjectMeta,
    Resources,
    Time,
)


class AdapterReference(SpecModel):
    """One adapter to serve."""

    name: Annotated[
        str,
        Field(
            description="name that clients put into `model`.", min_length=1, max_length=63, pattern=DNS_LABEL_PATTERN
        ),
    ]
    source: Annotated[
        AdapterSource, Field(description="source of the adapter: pvc://CLAIM/PATH of a committed adapter folder.")
    ]
    digest: Annotated[
        str | None,
        Field(
            description="digest (sha256) that the adapter's manifest must have; without it any whole adapter is taken.",
            max_length=71,
            pattern=r"^sha256:[0-9a-f]{64}$",
        ),
    ] = None
    fingerprint: Annotated[
        Fingerprint | None,
        Field(
            description="fingerprint to replay against the endpoint; without it the adapter is never called verified."
        ),
    ] = None


class InferenceServiceSpec(SpecModel):
    """Desired state of an InferenceService."""

    model_config = ConfigDict(
        json_schema_extra={
            CEL: [
                {
                    "rule": "!has(self.adapters) || self.adapters.all(a, self.adapters.all(b, "
                    "a.source.split('/')[2] == b.source.split('/')[2]))",
                    "message": "all adapters must be on the same claim",
                }
            ]
        }
    )

    model: Annotated[ModelReference, Field(description="model is the base model.")]
    adapters: Annotated[
        list[AdapterReference],
        Field(
            description="adapters that are served beside the base model; all on one claim.",
            max_length=32,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(default_factory=list)
    replicas: Annotated[int, Field(description="replicas is the number of server pods.", ge=0, le=64)] = 1
    resources: Annotated[Resources, Field(description="resources of each server pod.")] = Field(
        default_factory=Resources
    )
    max_model_length: Annotated[
        int | None,
        Field(
            description="maxModelLength is the longest prompt plus answer in tokens; the model's own limit if unset.",
            ge=16,
            le=1_048_576,
        ),
    ] = None

    @model_validator(mode="after")
    def _one_claim(self) -> Self:
        claims = {a.source.split("/")[2] for a in self.adapters}
        if len(claims) > 1:
            raise ValueError(
                f"adapters are on claims {', '.join(sorted(claims))}; all adapters must be on the same claim"
            )
        return self


class ServedAdapterStatus(StatusModel):
    """What is known about one adapter at the endpoint."""

    name: Annotated[str, Field(description="name of the adapter.")]
    digest: Annotated[str | None, Field(description="digest that spec.adapters asked for.")] = None
    verified: Annotated[
        Literal["True", "False", "Unknown"],
        Field(description="verified says whether the endpoint was shown to answer with the tuned weights."),
    ]
    reason: Annotated[str, Field(description="reason for verified, from the glossary.")]
    message: Annotated[str, Field(description="message with the measured distances.", max_length=1024)] = ""
    probed_hash: Annotated[
        str | None,
        Field(description="probedHash identifies the rollout and adapter that the verdict belongs to."),
    ] = None


class InferenceServiceStatus(StatusModel):
    """Observed state of an InferenceService."""

    observed_generation: Annotated[
        int, Field(description="observedGeneration is metadata.generation that this status was computed from.", ge=0)
    ] = 0
    phase: Annotated[
        str | None, Field(description="phase is one word for people: Pending, Deploying, Verifying, Ready or Failed.")
    ] = None
    conditions: Annotated[
        list[Condition],
        Field(
            description="conditions of the service: Ready, Progressing, AdapterVerified.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = Field(default_factory=list)
    url: Annotated[str | None, Field(description="url of the OpenAI-compatible API inside the cluster.")] = None
    model_name: Annotated[str | None, Field(description="modelName is what clients put into `model` for the base.")] = (
        None
    )
    replicas: Annotated[int, Field(description="replicas that exist.", ge=0)] = 0
    ready_replicas: Annotated[int, Field(description="readyReplicas answer requests.", ge=0)] = 0
    adapters: Annotated[
        list[ServedAdapterStatus],
        Field(
            description="adapters and whether each is verified.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(default_factory=list)
    adapters_summary: Annotated[
        str | None, Field(description="adaptersSummary is `verified/wanted`, for the printer column.")
    ] = None
    last_update_time: Annotated[Time | None, Field(description="lastUpdateTime of this status.")] = None


class InferenceService(StatusModel):
    """InferenceService serves one base model and its LoRA adapters behind an OpenAI-compatible endpoint."""

    api_version: str = API_VERSION
    kind: str = "InferenceService"
    metadata: ObjectMeta
    spec: InferenceServiceSpec
    status: InferenceServiceStatus = Field(default_factory=InferenceServiceStatus)
