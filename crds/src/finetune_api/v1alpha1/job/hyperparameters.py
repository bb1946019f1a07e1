"""Hyperparameters and checkpoints of a FinetuneJob."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from finetune_api.base import CEL, SpecModel

GradientCheckpointing = Literal["auto", "enabled", "disabled"]


DEFAULT_EPOCHS = 3.0
"""Passes over the dataset when a job names neither epochs nor maxSteps; OpenAI's `auto` gives 3 for small sets too."""


class Hyperparameters(SpecModel):
    """How training proceeds."""

    model_config = ConfigDict(
        json_schema_extra={
            CEL: [
                {
                    "rule": "!(has(self.epochs) && has(self.maxSteps))",
                    "message": "set at most one of epochs and maxSteps",
                }
            ]
        }
    )

    epochs: Annotated[
        float | None,
        Field(
            description="epochs is the number of passes over the dataset; 3 if maxSteps is unset too.", gt=0, le=1000
        ),
    ] = None
    max_steps: Annotated[
        int | None, Field(description="maxSteps is the number of optimizer steps.", ge=1, le=10_000_000)
    ] = None
    batch_size: Annotated[
        int, Field(description="batchSize is the number of rows per optimizer step.", ge=1, le=4096)
    ] = 8
    micro_batch_size: Annotated[
        int | None,
        Field(
            description="microBatchSize is the number of rows per forward pass; unset lets the trainer choose. It never "
            "changes the result of a step, only its memory and speed, and is halved where memory runs out.",
            ge=1,
            le=4096,
        ),
    ] = None
    gradient_checkpointing: Annotated[
        GradientCheckpointing,
        Field(
            description="gradientCheckpointing computes activations again instead of keeping them: a step takes about a third "
            "longer and much less memory, with the same result. auto enables it if memory would not suffice otherwise."
        ),
    ] = "auto"
    learning_rate: Annotated[
        float, Field(description="learningRate is the peak learning rate of AdamW.", gt=0, le=1)
    ] = 2e-4
    schedule: Annotated[
        Literal["linear", "cosine", "constant"],
        Field(description="schedule of the learning rate after warm-up."),
    ] = "linear"
    warmup_ratio: Annotated[
        float, Field(description="warmupRatio is the share of all steps used for warm-up.", ge=0, le=0.5)
    ] = 0.03
    weight_decay: Annotated[float, Field(description="weightDecay of AdamW.", ge=0, le=1)] = 0.0
    max_length: Annotated[
        int,
        Field(description="maxLength is the longest row in tokens; longer rows are cut at the end.", ge=8, le=131_072),
    ] = 1024
    loss_on: Annotated[
        Literal["completion", "all"],
        Field(
            description="lossOn says which tokens carry loss: completion (the assistant's turns, or the completion) or all."
        ),
    ] = "completion"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Field(description="precision of the weights and the arithmetic; auto is bfloat16 on GPUs, float32 on CPUs."),
    ] = "auto"
    seed: Annotated[int, Field(description="seed of everything random.", ge=0, le=4_294_967_295)] = 42

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("set at most one of epochs and maxSteps")
        return self


class Checkpoint(SpecModel):
    """When work is saved while training runs."""

    every_steps: Annotated[
        int, Field(description="everySteps is the number of optimizer steps between checkpoints.", ge=1, le=1_000_000)
    ] = 50
    every_minutes: Annotated[
        int,
        Field(
            description="everyMinutes is the longest time without a checkpoint, for steps that take long.",
            ge=1,
            le=10_080,
        ),
    ] = 10
    keep: Annotated[int, Field(description="keep is how many checkpoints stay on the volume.", ge=1, le=20)] = 2
