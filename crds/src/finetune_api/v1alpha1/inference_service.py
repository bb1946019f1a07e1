"""InferenceService: one base model and its adapters behind an OpenAI-compatible endpoint."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from finetune_api.base import Rule, SpecModel, StatusModel
from finetune_api.contract import API_VERSION
from finetune_api.fingerprint import Fingerprint
from finetune_api.sources import parse_source
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
    """Adapter to serve."""

    # Atomic, so that applying a version replaces the previous one completely, including metrics and fingerprint of another manager.
    model_config = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})

    name: Annotated[
        str,
        Field(
            description="name is the name that clients use as `model`.",
            min_length=1,
            max_length=63,
            pattern=DNS_LABEL_PATTERN,
        ),
    ]
    source: Annotated[
        AdapterSource, Field(description="source is the URI of a committed adapter folder: pvc://CLAIM/PATH.")
    ]
    digest: Annotated[
        str | None,
        Field(
            description="digest is the sha256 that the adapter's manifest must have. If unset, any complete adapter is accepted.",
            max_length=71,
            pattern=r"^sha256:[0-9a-f]{64}$",
        ),
    ] = None
    fingerprint: Annotated[
        Fingerprint | None,
        Field(
            description="fingerprint is replayed against the endpoint. If unset, the adapter is never reported as verified."
        ),
    ] = None
    metrics: Annotated[
        list[Metric],
        Field(
            description="metrics of the version's evaluation, for serve.gate of the job that brings the next version.",
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(default_factory=list)


class Autoscaling(SpecModel):
    """Number of server pods by load."""

    RULES = (
        Rule(
            "self.minReplicas <= self.maxReplicas",
            lambda m: m.min_replicas <= m.max_replicas,
            "minReplicas must not be greater than maxReplicas",
        ),
    )

    min_replicas: Annotated[
        int, Field(description="minReplicas is the minimum number of server pods.", ge=1, le=64)
    ] = 1
    max_replicas: Annotated[int, Field(description="maxReplicas is the maximum number of server pods.", ge=1, le=64)]
    target_cpu_utilization: Annotated[
        int,
        Field(
            description="targetCpuUtilization is the target CPU utilization over all pods, in percent of their requests.",
            ge=1,
            le=6400,
        ),
    ] = 80


class RolloutStrategy(SpecModel):
    """Strategy for bringing a change of the adapters to the server pods."""

    mode: Annotated[
        Literal["Hot", "Rolling"],
        Field(
            description="mode says how adapters change. Hot loads them into running pods. Rolling starts new pods; each gets "
            "traffic once it is verified with every adapter, and old pods serve until then."
        ),
    ] = "Hot"


class InferenceServiceSpec(SpecModel):
    """Desired state of an InferenceService."""

    RULES = (
        Rule(
            "!has(self.adapters) || self.adapters.all(a, self.adapters.all(b, "
            "a.source.split('/')[2] == b.source.split('/')[2]))",
            lambda m: len(_claims(m)) <= 1,
            "all adapters must be on the same claim",
        ),
        Rule(
            "!has(self.adapterClaim) || !has(self.adapters) || "
            "self.adapters.all(a, a.source.split('/')[2] == self.adapterClaim)",
            lambda m: m.adapter_claim is None or _claims(m) <= {m.adapter_claim},
            "all adapters must be on adapterClaim",
        ),
        Rule(
            "!has(self.mergeAdapter) || !self.mergeAdapter || has(self.rollout) && self.rollout.mode == 'Rolling'",
            lambda m: not m.merge_adapter or m.rollout.mode == "Rolling",
            "mergeAdapter changes the weights, so each version needs new pods; set rollout.mode to Rolling, or "
            "mergeAdapter to false",
        ),
        Rule(
            "!has(self.mergeAdapter) || !self.mergeAdapter || has(self.adapters) && self.adapters.size() == 1",
            lambda m: not m.merge_adapter or len(m.adapters) == 1,
            "mergeAdapter needs exactly one adapter; list one in adapters, or set mergeAdapter to false",
        ),
    )

    model: Annotated[ModelReference, Field(description="model is the base model.")]
    adapters: Annotated[
        list[AdapterReference],
        Field(
            description="adapters lists the adapters that are served beside the base model. All are on one claim.",
            max_length=32,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(default_factory=list)
    engine: Annotated[
        Literal["Transformers", "VLLM"],
        Field(
            description="engine is the inference engine. Transformers runs on CPUs too and serves every kind of adapter. VLLM is for "
            "large models on GPUs and needs an image that the administrator configures."
        ),
    ] = "Transformers"
    adapters_from: Annotated[
        Literal["Spec", "Jobs"],
        Field(
            description="adaptersFrom says who adds and replaces adapters. Spec: only whoever edits this object. Jobs: also "
            "FinetuneJobs in this namespace whose serve.into names this object."
        ),
    ] = "Spec"
    adapter_claim: Annotated[
        str | None,
        Field(
            description="adapterClaim is the claim that all adapters are on. It is mounted from the start, so that the first "
            "adapter needs no new pod. Default: the claim of the listed adapters, if any.",
            min_length=1,
            max_length=63,
            pattern=DNS_LABEL_PATTERN,
        ),
    ] = None
    rollout: Annotated[RolloutStrategy, Field(description="rollout is the strategy for changes of the adapters.")] = (
        Field(default_factory=RolloutStrategy)
    )
    merge_adapter: Annotated[
        bool,
        Field(
            description="mergeAdapter merges the only adapter into the weights, which removes its runtime cost; the base model is not "
            "served beside it then. It needs rollout.mode Rolling."
        ),
    ] = False
    replicas: Annotated[
        int,
        Field(
            description="replicas is the number of server pods. With autoscaling, only 0 has an effect: it stops all pods.",
            ge=0,
            le=64,
        ),
    ] = 1
    autoscaling: Annotated[
        Autoscaling | None,
        Field(
            description="autoscaling lets a HorizontalPodAutoscaler set the number of server pods. It needs a metrics server in the cluster."
        ),
    ] = None
    resources: Annotated[Resources, Field(description="resources of each server pod.")] = Field(
        default_factory=Resources
    )
    max_model_length: Annotated[
        int | None,
        Field(
            description="maxModelLength is the maximum length of prompt plus answer in tokens. Default: the model's own limit.",
            ge=16,
            le=1_048_576,
        ),
    ] = None


def _claims(spec: InferenceServiceSpec) -> set[str]:
    """Return the claims that the adapters of a service are on."""
    return {parse_source(adapter.source).name for adapter in spec.adapters}


class ServedVersion(StatusModel):
    """Version of an adapter."""

    source: Annotated[str, Field(description="source is the URI of the version: pvc://CLAIM/PATH.")]
    digest: Annotated[
        str | None, Field(description="digest is the digest of the version, which never changes while it is served.")
    ] = None
    metrics: Annotated[list[Metric], Field(description="metrics of the version's evaluation.")] = Field(
        default_factory=list
    )


class ReplicaVerdict(StatusModel):
    """Result of verifying an adapter on one server pod."""

    pod: Annotated[str, Field(description="pod is the name of the pod that was probed at its own address.")]
    restarts: Annotated[
        int,
        Field(
            description="restarts is the restart count of the server at that time; it is probed again after a restart."
        ),
    ]
    loaded: Annotated[bool, Field(description="loaded says whether the pod has the version in memory.")]
    verified: Annotated[
        Literal["True", "False", "Unknown"],
        Field(description="verified says whether the pod is proven to answer with the tuned weights."),
    ]
    reason: Annotated[
        str,
        Field(
            description="reason is one CamelCase word for the value of verified, from the list of reasons of this API."
        ),
    ]


class ServedAdapterStatus(StatusModel):
    """State of one adapter at the endpoint."""

    name: Annotated[str, Field(description="name is the name of the adapter.")]
    digest: Annotated[
        str | None,
        Field(
            description="digest is the digest of the version in spec.adapters, or the one that the servers report if it names none."
        ),
    ] = None
    served: Annotated[
        ServedVersion | None,
        Field(
            description="served is the version that clients get under this name. It differs from the version in spec.adapters "
            "until that is verified on every replica, and is unset while nothing is served."
        ),
    ] = None
    desired_replicas: Annotated[
        int, Field(description="desiredReplicas is the desired number of server pods.", ge=0)
    ] = 0
    loaded_replicas: Annotated[
        int,
        Field(description="loadedReplicas is the number of ready server pods that have the version in memory.", ge=0),
    ] = 0
    verified_replicas: Annotated[
        int,
        Field(
            description="verifiedReplicas is the number of ready server pods that are proven to answer with the version.",
            ge=0,
        ),
    ] = 0
    verified: Annotated[
        Literal["True", "False", "Unknown"],
        Field(description="verified says whether the endpoint is proven to answer with the tuned weights."),
    ]
    reason: Annotated[
        str,
        Field(
            description="reason is one CamelCase word for the value of verified, from the list of reasons of this API."
        ),
    ]
    message: Annotated[
        str, Field(description="message is a sentence for people with the measured distances.", max_length=1024)
    ] = ""
    probed_hash: Annotated[
        str | None,
        Field(description="probedHash identifies the subject of the verdicts: base model, version and requested name."),
    ] = None
    replicas: Annotated[
        list[ReplicaVerdict],
        Field(
            description="replicas lists the verdict for each probed pod. A new or restarted pod counts only after it is probed.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["pod"]},
        ),
    ] = Field(default_factory=list)


class InferenceServiceStatus(StatusModel):
    """Observed state of an InferenceService."""

    observed_generation: Annotated[
        int,
        Field(description="observedGeneration is the metadata.generation that this status was computed from.", ge=0),
    ] = 0
    phase: Annotated[
        str | None,
        Field(
            description="phase summarizes the conditions in one word for people: Pending, Deploying, Verifying, Ready or Failed."
        ),
    ] = None
    conditions: Annotated[
        list[Condition],
        Field(
            description="conditions of the service.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = Field(default_factory=list)
    url: Annotated[str | None, Field(description="url is the URL of the OpenAI-compatible API inside the cluster.")] = (
        None
    )
    model_name: Annotated[
        str | None,
        Field(
            description="modelName is the name that clients use as `model` for the base model. Unset if an adapter is merged into it."
        ),
    ] = None
    replicas: Annotated[int, Field(description="replicas is the number of server pods.", ge=0)] = 0
    ready_replicas: Annotated[
        int, Field(description="readyReplicas is the number of server pods that answer requests.", ge=0)
    ] = 0
    adapters: Annotated[
        list[ServedAdapterStatus],
        Field(
            description="adapters lists the state of each adapter.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(default_factory=list)
    proven_config: Annotated[
        str | None,
        Field(
            description="provenConfig identifies the configuration with which all pods of a Rolling service were last verified. "
            "Once the spec has changed, a replacement pod with this configuration gets traffic without being probed."
        ),
    ] = None
    adapters_summary: Annotated[
        str | None,
        Field(description="adaptersSummary is VERIFIED/DESIRED, the number of adapters, for the printer column."),
    ] = None
    last_update_time: Annotated[
        Time | None, Field(description="lastUpdateTime is when this status was last written.")
    ] = None


class InferenceService(StatusModel):
    """InferenceService serves one base model and its LoRA adapters behind an OpenAI-compatible endpoint."""

    api_version: str = API_VERSION
    kind: str = "InferenceService"
    metadata: ObjectMeta
    spec: InferenceServiceSpec
    status: InferenceServiceStatus = Field(default_factory=InferenceServiceStatus)
