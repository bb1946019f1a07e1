"""Held-out rows of a FinetuneJob, metrics and early stopping."""

from typing import Annotated, ClassVar

from pydantic import Field

from finetune_api.base import Rule, SpecModel, exactly_one_of, requires
from finetune_api.v1alpha1.common import (
    DatasetSource,
)

EvaluationMetric = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z][a-z0-9_]*$")]
"""Name of a metric. The trainer knows which exist, because packages can add more."""


class EvaluationSettings(SpecModel):
    """Use of the held-out rows. Their loss is always measured at the end."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        requires(
            "earlyStoppingPatience", "evalSteps", "earlyStoppingPatience counts evaluations, so it needs evalSteps"
        ),
    )

    eval_steps: Annotated[
        int | None,
        Field(
            description="evalSteps is the number of optimizer steps between evaluations during training. The adapter "
            "with the best evaluation is kept. If unset, only the end is evaluated.",
            ge=1,
            le=1_000_000,
        ),
    ] = None
    early_stopping_patience: Annotated[
        int | None,
        Field(
            description="earlyStoppingPatience is the number of consecutive evaluations without improvement after which "
            "training stops. If unset, training never stops early.",
            ge=1,
            le=1000,
        ),
    ] = None

    metrics: Annotated[
        list[EvaluationMetric],
        Field(
            description="metrics lists what is measured besides the loss. exact_match is the share of held-out rows that "
            "greedy decoding answers token for token, including the end of the answer. answer_match, token_f1 and rouge_l "
            "compare answers generated at the end of training with the expected ones; so do metrics that packages in the "
            "trainer image register as entry points of the group finetune_trainer.metrics. With method.dpo, reward_accuracy and "
            "reward_margin are always measured instead.",
            max_length=8,
        ),
    ] = Field(default_factory=list)
    generated_rows: Annotated[
        int | None,
        Field(
            description="generatedRows is the number of held-out rows, evenly spaced, that are answered for metrics that need "
            "generated answers. Default: 200.",
            ge=1,
            le=100_000,
        ),
    ] = None
    max_new_tokens: Annotated[
        int | None,
        Field(
            description="maxNewTokens is the length in tokens at which a generated answer is cut off. Default: 128.",
            ge=1,
            le=8192,
        ),
    ] = None


class Evaluation(EvaluationSettings):
    """Held-out rows: exactly one of a fraction of the dataset, inline rows and a source."""

    RULES = (*EvaluationSettings.RULES, exactly_one_of("fraction", "inline", "source"))

    fraction: Annotated[
        float | None, Field(description="fraction is the share of the dataset's rows that is held out.", gt=0, le=0.5)
    ] = None
    inline: Annotated[
        str | None,
        Field(description="inline holds the held-out rows as JSON Lines.", min_length=1, max_length=131_072),
    ] = None
    source: Annotated[
        DatasetSource | None, Field(description="source is the URI of the held-out rows, as in dataset.source.")
    ] = None
