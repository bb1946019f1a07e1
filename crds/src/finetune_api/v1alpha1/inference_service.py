"""InferenceService: one base model, served with zero or more adapters behind an OpenAI-compatible endpoint."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from finetune_api.base import CEL, SpecModel, StatusModel
from finetune_api.contract import API_VERSION
from finetune_api.fingerprint import Fingerprint
from finetune_api.v1alpha1.common import (
    DNS_LABEL_PATTERN,
    AdapterSource,
    Condition,
    Metric,
    ModelReference,
    ObjectMeta,
    Resources,
    Time,
)


class AdapterReference(SpecModel):
    """One adapter to serve."""

    # Whoever applies a version replaces the one before whole, metrics and fingerprint included, whoever wrote those.
    model_config = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})

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
    metrics: Annotated[
        list[Metric],
        Field(
            description="metrics of the version's evaluation, for serve.gate of the job that brings the next one.",
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(default_factory=list)


class Autoscaling(SpecModel):
    """How many server pods there are, by their load."""

    model_config = ConfigDict(
        json_schema_extra={
            CEL: [
                {
                    "rule": "self.minReplicas <= self.maxReplicas",
                    "message": "minReplicas must not be greater than maxReplicas",
                }
            ]
        }
    )

    min_replicas: Annotated[int, Field(description="minReplicas is the least number of server pods.", ge=1, le=64)] = 1
    max_replicas: Annotated[int, Field(description="maxReplicas is the greatest number of server pods.", ge=1, le=64)]
    target_cpu_utilization: Annotated[
        int,
        Field(
            description="targetCpuUtilization is the CPU time of all pods that is aimed at, in percent of what they request.",
            ge=1,
            le=6400,
        ),
    ] = 80

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"minReplicas {self.min_replicas} is greater than maxReplicas {self.max_replicas}")
        return self


class RolloutStrategy(SpecModel):
    """How a change of the adapters reaches the server pods."""

    mode: Annotated[
        Literal["Hot", "Rolling"],
        Field(
            description="mode says how adapters change: Hot, in running pods; Rolling, with new pods, each of which gets traffic "
            "once it was shown to answer with every adapter, while pods of the version before serve on."
        ),
    ] = "Hot"


class InferenceServiceSpec(SpecModel):
    """Desired state of an InferenceService."""

    model_config = ConfigDict(
        json_schema_extra={
            CEL: [
                {
                    "rule": "!has(self.adapters) || self.adapters.all(a, self.adapters.all(b, "
                    "a.source.split('/')[2] == b.source.split('/')[2]))",
                    "message": "all adapters must be on the same claim",
                },
                {
                    "rule": "!has(self.adapterClaim) || !has(self.adapters) || "
                    "self.adapters.all(a, a.source.split('/')[2] == self.adapterClaim)",
                    "message": "all adapters must be on adapterClaim",
                },
                {
                    "rule": "!has(self.mergeAdapter) || !self.mergeAdapter || "
                    "has(self.rollout) && self.rollout.mode == 'Rolling'",
                    "message": "mergeAdapter needs new pods for each version, because it changes the weights; set rollout.mode to "
                    "Rolling, or mergeAdapter to false",
                },
                {
                    "rule": "!has(self.mergeAdapter) || !self.mergeAdapter || "
                    "has(self.adapters) && self.adapters.size() == 1",
                    "message": "mergeAdapter needs exactly one adapter; list one in adapters, or set mergeAdapter to false",
                },
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
    engine: Annotated[
        Literal["Transformers", "VLLM"],
        Field(
            description="engine that computes the answers: Transformers, for CPUs and adapters of every kind; VLLM, for large "
            "models on GPUs, where the administrator has given the operator an image with it."
        ),
    ] = "Transformers"
    adapters_from: Annotated[
        Literal["Spec", "Jobs"],
        Field(
            description="adaptersFrom says who adds and replaces adapters: Spec, whoever edits this object; Jobs, FinetuneJobs "
            "of this namespace as well whose serve.into names it."
        ),
    ] = "Spec"
    adapter_claim: Annotated[
        str | None,
        Field(
            description="adapterClaim is the claim that all adapters are on, mounted from the start: with it the first "
            "adapter needs no new pod. Unset means the claim of the adapters listed, and none while there are none.",
            min_length=1,
            max_length=63,
            pattern=DNS_LABEL_PATTERN,
        ),
    ] = None
    rollout: Annotated[
        RolloutStrategy, Field(description="rollout says how a change of the adapters reaches the server pods.")
    ] = Field(default_factory=RolloutStrategy)
    merge_adapter: Annotated[
        bool,
        Field(
            description="mergeAdapter makes the one adapter a part of the weights: it costs no time then, and the base model is "
            "not served beside it. It needs rollout.mode Rolling."
        ),
    ] = False
    replicas: Annotated[
        int,
        Field(
            description="replicas is the number of server pods; with autoscaling only 0 counts, which stops all.",
            ge=0,
            le=64,
        ),
    ] = 1
    autoscaling: Annotated[
        Autoscaling | None,
        Field(
            description="autoscaling makes a HorizontalPodAutoscaler decide the number of server pods; it needs a metrics server."
        ),
    ] = None
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
        if self.adapter_claim is not None and claims - {self.adapter_claim}:
            raise ValueError(
                f"adapters are on claim {claims.pop()} and adapterClaim is {self.adapter_claim}; name one claim in both"
            )
        return self

    @model_validator(mode="after")
    def _can_merge(self) -> Self:
        if self.merge_adapter and self.rollout.mode != "Rolling":
            raise ValueError(
                f"mergeAdapter is true and rollout.mode is {self.rollout.mode}; set rollout.mode to Rolling, because merging "
                "changes the weights and so needs new pods, or set mergeAdapter to false"
            )
        if self.merge_adapter and len(self.adapters) != 1:
            raise ValueError(
                f"mergeAdapter is true with {len(self.adapters)} adapters; list exactly one, or set mergeAdapter to false"
            )
        return self


class ServedVersion(StatusModel):
    """A version of an adapter."""

    source: Annotated[str, Field(description="source of the version: pvc://CLAIM/PATH.")]
    digest: Annotated[str | None, Field(description="digest of the version; it never changes while it is served.")] = (
        None
    )
    metrics: Annotated[list[Metric], Field(description="metrics of the version's evaluation.")] = Field(
        default_factory=list
    )


class ReplicaVerdict(StatusModel):
    """What one server pod was shown to do with an adapter."""

    pod: Annotated[str, Field(description="pod that was asked, by its own address.")]
    restarts: Annotated[
        int, Field(description="restarts of its server at that time; after another one it is asked anew.")
    ]
    loaded: Annotated[bool, Field(description="loaded says whether it has the version in memory.")]
    verified: Annotated[
        Literal["True", "False", "Unknown"],
        Field(description="verified says whether it was shown to answer with the tuned weights."),
    ]
    reason: Annotated[str, Field(description="reason for verified, from the glossary.")]


class ServedAdapterStatus(StatusModel):
    """What is known about one adapter at the endpoint."""

    name: Annotated[str, Field(description="name of the adapter.")]
    digest: Annotated[
        str | None,
        Field(
            description="digest of the version that spec.adapters asks for; where it gives none, as the servers report it."
        ),
    ] = None
    served: Annotated[
        ServedVersion | None,
        Field(
            description="served is the version that clients get by this name; it differs from what spec.adapters asks for "
            "until that is verified on every replica, and is unset while there is none."
        ),
    ] = None
    desired_replicas: Annotated[
        int, Field(description="desiredReplicas is how many server pods there should be.", ge=0)
    ] = 0
    loaded_replicas: Annotated[
        int, Field(description="loadedReplicas is how many ready server pods have the version in memory.", ge=0)
    ] = 0
    verified_replicas: Annotated[
        int, Field(description="verifiedReplicas is how many of them were shown to answer with it.", ge=0)
    ] = 0
    verified: Annotated[
        Literal["True", "False", "Unknown"],
        Field(description="verified says whether the endpoint was shown to answer with the tuned weights."),
    ]
    reason: Annotated[str, Field(description="reason for verified, from the glossary.")]
    message: Annotated[str, Field(description="message with the measured distances.", max_length=1024)] = ""
    probed_hash: Annotated[
        str | None,
        Field(
            description="probedHash identifies what the verdicts are about: base model, version, and the name asked for."
        ),
    ] = None
    replicas: Annotated[
        list[ReplicaVerdict],
        Field(
            description="replicas that were asked; one that is added or restarted is asked before it counts.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["pod"]},
        ),
    ] = Field(default_factory=list)


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
    model_name: Annotated[
        str | None,
        Field(
            description="modelName is what clients put into `model` for the base; unset where an adapter is merged into it."
        ),
    ] = None
    replicas: Annotated[int, Field(description="replicas that exist.", ge=0)] = 0
    ready_replicas: Annotated[int, Field(description="readyReplicas answer requests.", ge=0)] = 0
    adapters: Annotated[
        list[ServedAdapterStatus],
        Field(
            description="adapters and whether each is verified.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(default_factory=list)
    proven_config: Annotated[
        str | None,
        Field(
            description="provenConfig identifies the configuration that all pods of a Rolling service were last proven with; a "
            "pod that takes the place of one of them gets traffic without being asked once the spec has moved on."
        ),
    ] = None
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
