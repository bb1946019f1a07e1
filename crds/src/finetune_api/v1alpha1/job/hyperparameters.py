"""Hyperparameters and checkpoints of a FinetuneJob."""

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import SpecModel, at_most_one_of

GradientCheckpointing = Literal["auto", "enabled", "disabled"]
"""Recomputation of activations in the backward pass; `auto` enables it if memory would not suffice otherwise."""


DEFAULT_EPOCHS = 3.0
"""Passes over the dataset when a job sets neither epochs nor maxSteps; OpenAI's `auto` gives 3 for small sets too."""


class Hyperparameters(SpecModel):
    """Hyperparameters of training."""

    RULES = (at_most_one_of("epochs", "maxSteps"),)

    epochs: Annotated[
        float | None,
        Field(
            description="epochs is the number of passes over the dataset. Default: 3, unless maxSteps is set.",
            gt=0,
            le=1000,
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
            description="microBatchSize is the number of rows per forward pass. If unset, the trainer chooses it. It affects "
            "memory and speed, never the result of a step, and is halved when memory runs out.",
            ge=1,
            le=4096,
        ),
    ] = None
    gradient_checkpointing: Annotated[
        GradientCheckpointing,
        Field(
            description="gradientCheckpointing recomputes activations in the backward pass instead of storing them: a step takes "
            "about a third longer and needs much less memory, with the same result. auto enables it only if memory would not "
            "suffice otherwise."
        ),
    ] = "auto"
    learning_rate: Annotated[
        float, Field(description="learningRate is the peak learning rate of AdamW.", gt=0, le=1)
    ] = 2e-4
    schedule: Annotated[
        Literal["linear", "cosine", "constant"],
        Field(description="schedule is the learning rate schedule after warmup."),
    ] = "linear"
    warmup_ratio: Annotated[
        float, Field(description="warmupRatio is the share of all steps used for warmup.", ge=0, le=0.5)
    ] = 0.03
    weight_decay: Annotated[float, Field(description="weightDecay is the weight decay of AdamW.", ge=0, le=1)] = 0.0
    max_length: Annotated[
        int,
        Field(
            description="maxLength is the maximum length of a row in tokens; longer rows are truncated at the end.",
            ge=8,
            le=131_072,
        ),
    ] = 1024
    loss_on: Annotated[
        Literal["completion", "all"],
        Field(
            description="lossOn selects the tokens that contribute to the loss: completion (the assistant's turns, or the "
            "completion) or all."
        ),
    ] = "completion"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Field(
            description="precision is the data type of weights and arithmetic. auto is bfloat16 on GPUs, float32 on CPUs."
        ),
    ] = "auto"
    seed: Annotated[
        int, Field(description="seed initializes every random number generator.", ge=0, le=4_294_967_295)
    ] = 42


class Checkpoint(SpecModel):
    """Frequency and number of checkpoints during training."""

    every_steps: Annotated[
        int, Field(description="everySteps is the number of optimizer steps between checkpoints.", ge=1, le=1_000_000)
    ] = 50
    every_minutes: Annotated[
        int,
        Field(
            description="everyMinutes is the longest time in minutes between checkpoints, for jobs with slow steps.",
            ge=1,
            le=10_080,
        ),
    ] = 10
    keep: Annotated[int, Field(description="keep is the number of checkpoints kept on the volume.", ge=1, le=20)] = 2
