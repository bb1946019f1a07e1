"""Serving of a FinetuneJob's adapter, and the regression gate before it."""

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import SpecModel, at_most_one_of, requires
from finetune_api.v1alpha1.common import (
    SERVICE_NAME_PATTERN,
    Resources,
)

GateMetric = Literal["eval_loss", "exact_match"]
"""Metrics that the regression gate can compare: lower is better for eval_loss, higher for exact_match."""


class RegressionGate(SpecModel):
    """Limit on how much worse than the served version a new version of an adapter may be."""

    metric: Annotated[
        GateMetric,
        Field(description="metric is the metric of the evaluation that is compared with the served version."),
    ] = "eval_loss"
    max_regression: Annotated[
        float,
        Field(
            description="maxRegression is how much worse the metric may be, in the metric's own unit: nats per token for "
            "eval_loss, share of rows for exact_match.",
            ge=0,
            le=100,
        ),
    ] = 0.0


class Serve(SpecModel):
    """Serving of the adapter behind an OpenAI-compatible endpoint, with proof that the endpoint applies it."""

    RULES = (
        at_most_one_of(
            "name",
            "into",
            message="name is for an endpoint that the job creates and owns, into for an existing one; set one of them",
        ),
        requires(
            "gate", "into", "gate compares with the served version, so it needs into: a new endpoint serves nothing yet"
        ),
    )

    name: Annotated[
        str | None,
        Field(
            description="name is the name of the InferenceService that the job creates and owns. Default: the job's name.",
            min_length=1,
            max_length=50,
            pattern=SERVICE_NAME_PATTERN,
        ),
    ] = None
    into: Annotated[
        str | None,
        Field(
            description="into is the name of an existing InferenceService in this namespace, with adaptersFrom: Jobs, that the "
            "adapter is added to. An adapter of the same name is replaced once the new version is verified. The adapter stays "
            "there when the job is deleted.",
            min_length=1,
            max_length=50,
            pattern=SERVICE_NAME_PATTERN,
        ),
    ] = None
    gate: Annotated[
        RegressionGate | None,
        Field(
            description="gate keeps an adapter that is worse than the served version from replacing it. The adapter is stored, and "
            "the job fails with EvalRegression."
        ),
    ] = None
    replicas: Annotated[
        int,
        Field(description="replicas is the number of server pods of an endpoint that the job creates.", ge=1, le=64),
    ] = 1
    resources: Annotated[
        Resources, Field(description="resources of each server pod of an endpoint that the job creates.")
    ] = Field(default_factory=Resources)
    timeout_seconds: Annotated[
        int,
        Field(
            description="timeoutSeconds is the time that the endpoint may take to become ready and verified.",
            ge=30,
            le=86_400,
        ),
    ] = 900
