"""Held-out rows of a FinetuneJob, metrics and early stopping."""

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from finetune_api.base import CEL, SpecModel
from finetune_api.v1alpha1.common import (
    DatasetSource,
)

EvaluationMetric = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z][a-z0-9_]*$")]
"""Name of a metric; the trainer knows which there are, since packages may bring more."""


class EvaluationSettings(SpecModel):
    """What is done with held-out rows; their loss is measured at the end in any case."""

    eval_steps: Annotated[
        int | None,
        Field(
            description="evalSteps is the number of optimizer steps between evaluations while training runs; the adapter "
            "of the best one is kept. Unset, only the end is evaluated.",
            ge=1,
            le=1_000_000,
        ),
    ] = None
    early_stopping_patience: Annotated[
        int | None,
        Field(
            description="earlyStoppingPatience is how many evaluations in a row may be no better than the best one before "
            "training stops early; never if unset.",
            ge=1,
            le=1000,
        ),
    ] = None

    metrics: Annotated[
        list[EvaluationMetric],
        Field(
            description="metrics that are measured beside the loss. exact_match is the share of held-out rows whose answer "
            "greedy decoding gives token by token, its end included. All others compare answers that are generated at the end "
            "of training with the wanted ones: answer_match, token_f1, rouge_l, and entry points of the group "
            "finetune_trainer.metrics in the trainer image. Pairs of method.dpo have reward_accuracy and reward_margin "
            "instead, always.",
            max_length=8,
        ),
    ] = Field(default_factory=list)
    generated_rows: Annotated[
        int | None,
        Field(
            description="generatedRows is how many held-out rows, evenly spread, are answered for metrics that need "
            "generated answers; 200 if unset.",
            ge=1,
            le=100_000,
        ),
    ] = None
    max_new_tokens: Annotated[
        int | None,
        Field(
            description="maxNewTokens is where a generated answer is cut off that has not ended by itself; 128 if unset.",
            ge=1,
            le=8192,
        ),
    ] = None

    @model_validator(mode="after")
    def _patience_needs_evaluations(self) -> Self:
        if self.early_stopping_patience is not None and self.eval_steps is None:
            raise ValueError("earlyStoppingPatience counts evaluations; set evalSteps too")
        return self


class Evaluation(EvaluationSettings):
    """Held-out rows: a share of the dataset, or rows of their own."""

    model_config = ConfigDict(
        json_schema_extra={
            CEL: [
                {
                    "rule": "!has(self.earlyStoppingPatience) || has(self.evalSteps)",
                    "message": "earlyStoppingPatience counts evaluations; set evalSteps too",
                },
                {
                    "rule": "(has(self.fraction) ? 1 : 0) + (has(self.inline) ? 1 : 0) + (has(self.source) ? 1 : 0) == 1",
                    "message": "set exactly one of fraction, inline and source",
                },
            ]
        }
    )

    fraction: Annotated[
        float | None, Field(description="fraction of the dataset's rows that is held out.", gt=0, le=0.5)
    ] = None
    inline: Annotated[
        str | None, Field(description="inline held-out rows as JSON Lines.", min_length=1, max_length=131_072)
    ] = None
    source: Annotated[DatasetSource | None, Field(description="source of the held-out rows, as dataset.source.")] = None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if sum(v is not None for v in (self.fraction, self.inline, self.source)) != 1:
            raise ValueError("set exactly one of fraction, inline and source")
        return self
