"""Types that both kinds share: metadata, conditions, references, resources."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, Field, PlainSerializer

from finetune_api.base import CEL, SpecModel, StatusModel
from finetune_api.sources import DATASET_SCHEMES, MAX_SOURCE_LENGTH, cel_rules, parse_source

DNS_LABEL_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
"""RFC 1123 label."""
SERVICE_NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""RFC 1035 label, as the name of a Service needs it; the names of both kinds become names of Services."""


def metav1_time(moment: datetime) -> str:
    """Format as metav1.Time, which has no fractions: with them, each read would differ from what was written."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


Time = Annotated[AwareDatetime, PlainSerializer(metav1_time, return_type=str, when_used="json")]
"""metav1.Time: UTC, whole seconds."""


def _checked(*schemes: str, selects: bool = False) -> AfterValidator:
    def check(uri: str) -> str:
        parse_source(uri, schemes, selects=selects)
        return uri

    return AfterValidator(check)


ModelSource = Annotated[
    str,
    Field(min_length=1, max_length=MAX_SOURCE_LENGTH, json_schema_extra={CEL: cel_rules(("pvc", "hf"), selects=False)}),
    _checked("pvc", "hf"),
]
DatasetSource = Annotated[
    str,
    Field(min_length=1, max_length=MAX_SOURCE_LENGTH, json_schema_extra={CEL: cel_rules(DATASET_SCHEMES)}),
    _checked(*DATASET_SCHEMES, selects=True),
]
AdapterSource = Annotated[
    str,
    Field(min_length=1, max_length=MAX_SOURCE_LENGTH, json_schema_extra={CEL: cel_rules(("pvc",))}),
    _checked("pvc"),
]

Quantity = Annotated[
    int | str,
    Field(
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$",
        }
    ),
]
"""A Kubernetes quantity such as 2, 500m or 4Gi."""


class OwnerReference(StatusModel):
    """The fields of metav1.OwnerReference that the operator reads."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False


class ObjectMeta(StatusModel):
    """The fields of metav1.ObjectMeta that the operator reads."""

    name: str = ""
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    creation_timestamp: AwareDatetime | None = None
    deletion_timestamp: AwareDatetime | None = None
    owner_references: list[OwnerReference] = Field(default_factory=list)


class Condition(StatusModel):
    """metav1.Condition: one aspect of the object's state."""

    type: Annotated[str, Field(description="type of the condition, a CamelCase word.", max_length=316)]
    status: Annotated[
        Literal["True", "False", "Unknown"], Field(description="status of the condition: True, False or Unknown.")
    ]
    observed_generation: Annotated[
        int,
        Field(description="observedGeneration is the metadata.generation that the condition was computed from.", ge=0),
    ] = 0
    last_transition_time: Annotated[Time, Field(description="lastTransitionTime is when the status last changed.")]
    reason: Annotated[
        str,
        Field(
            description="reason is one CamelCase word for why the condition has this status, from the list of reasons of this API.",
            max_length=1024,
        ),
    ]
    message: Annotated[
        str, Field(description="message is a sentence for people with the details.", max_length=32768)
    ] = ""


class LocalSecretReference(SpecModel):
    """Key of a Secret in the object's own namespace."""

    name: Annotated[
        str, Field(description="name is the name of the Secret in this namespace.", min_length=1, max_length=253)
    ]
    key: Annotated[
        str, Field(description="key is the key of the Secret that holds the value.", min_length=1, max_length=253)
    ] = "token"


class ModelReference(SpecModel):
    """Base model."""

    source: Annotated[
        ModelSource,
        Field(
            description="source is the URI of the base model: pvc://CLAIM/PATH for a checkpoint folder on a claim in this "
            "namespace, or hf://ORG/NAME for a Hugging Face repository."
        ),
    ]
    revision: Annotated[
        str | None,
        Field(
            description="revision is the branch, tag or commit of an hf:// model. Pin a commit to make runs reproducible.",
            max_length=128,
            pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$",
        ),
    ] = None
    secret_ref: Annotated[
        LocalSecretReference | None,
        Field(description="secretRef names the Secret with the Hugging Face token for a gated model."),
    ] = None


class Metric(SpecModel):
    """One metric by which versions of an adapter are compared."""

    name: Annotated[
        str, Field(description="name is the name of the metric, for example eval_loss.", min_length=1, max_length=128)
    ]
    value: Annotated[
        str,
        Field(
            description="value is the measured value as text, for example 0.25.",
            max_length=64,
            pattern=r"^-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?$",
        ),
    ]


class Resources(SpecModel):
    """Resources of each pod. Memory is both request and limit; CPU is only a request, so that a pod can use idle cores."""

    cpu: Annotated[
        Quantity, Field(description="cpu is the CPU request, for example 2 or 500m. There is no CPU limit.")
    ] = "1"
    memory: Annotated[Quantity, Field(description="memory is the memory request and limit, for example 4Gi.")] = "4Gi"
    gpu: Annotated[int, Field(description="gpu is the number of whole GPUs (nvidia.com/gpu).", ge=0, le=16)] = 0
