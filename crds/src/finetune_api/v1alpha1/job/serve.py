"""Whether and how the adapter of a FinetuneJob is served, and the regression gate before it."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from finetune_api.base import CEL, SpecModel
from finetune_api.v1alpha1.common import (
    SERVICE_NAME_PATTERN,
    Resources,
)

GateMetric = Literal["eval_loss", "exact_match"]
"""Metrics that can keep an adapter from being served; of eval_loss less is better, of exact_match more."""


class RegressionGate(SpecModel):
    """What the new version of a served adapter must not be worse in."""

    metric: Annotated[
        GateMetric, Field(description="metric of the evaluation that is compared with the version served until now.")
    ] = "eval_loss"
    max_regression: Annotated[
        float,
        Field(
            description="maxRegression is how much worse the metric may be, in its own unit: nats per token of eval_loss, a "
            "share of rows of exact_match.",
            ge=0,
            le=100,
        ),
    ] = 0.0


class Serve(SpecModel):
    """Roll the adapter out behind an OpenAI-compatible endpoint and prove it."""

    model_config = ConfigDict(
        json_schema_extra={
            CEL: [
                {
                    "rule": "!(has(self.into) && has(self.name))",
                    "message": "name is of an endpoint that the job makes and owns, into is of one that exists; give one",
                },
                {
                    "rule": "!has(self.gate) || has(self.into)",
                    "message": "gate compares with what is served already, so it needs into: a new endpoint serves nothing yet",
                },
            ]
        }
    )

    name: Annotated[
        str | None,
        Field(
            description="name of the InferenceService; the job's name if unset. The job owns it.",
            min_length=1,
            max_length=50,
            pattern=SERVICE_NAME_PATTERN,
        ),
    ] = None
    into: Annotated[
        str | None,
        Field(
            description="into is the name of an InferenceService of this namespace, with adaptersFrom: Jobs, that the adapter is "
            "added to; a version of the same name is replaced once the new one is proven. It stays there when the job is deleted.",
            min_length=1,
            max_length=50,
            pattern=SERVICE_NAME_PATTERN,
        ),
    ] = None
    gate: Annotated[
        RegressionGate | None,
        Field(
            description="gate keeps an adapter that is worse than the served one from replacing it: it is stored, and the job "
            "fails with EvalRegression."
        ),
    ] = None
    replicas: Annotated[
        int, Field(description="replicas is the number of server pods of an own endpoint.", ge=1, le=64)
    ] = 1
    resources: Annotated[Resources, Field(description="resources of each server pod of an own endpoint.")] = Field(
        default_factory=Resources
    )
    timeout_seconds: Annotated[
        int,
        Field(
            description="timeoutSeconds is how long the endpoint may take to become ready and verified.",
            ge=30,
            le=86_400,
        ),
    ] = 900

    @model_validator(mode="after")
    def _one_endpoint(self) -> Self:
        if self.into is not None and self.name is not None:
            raise ValueError("serve.name is of an endpoint that the job makes, serve.into of one that exists; give one")
        if self.gate is not None and self.into is None:
            raise ValueError("serve.gate compares with what is served already, so it needs serve.into")
        return self
