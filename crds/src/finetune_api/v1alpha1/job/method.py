"""Method of a FinetuneJob: LoRA and its variants, DPO, and the adapter that training continues from."""

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Rule, SpecModel, exactly_one_of
from finetune_api.v1alpha1.common import (
    SERVICE_NAME_PATTERN,
    AdapterSource,
)

Quantization = Literal["none", "nf4"]
"""Quantization of the frozen weights during training."""


class ContinueFrom(SpecModel):
    """Existing adapter that training starts from: exactly one of `finetuneJob` and `source`."""

    RULES = (exactly_one_of("finetuneJob", "source"),)

    finetune_job: Annotated[
        str | None,
        Field(
            description="finetuneJob is the name of a FinetuneJob in this namespace. Training waits until its adapter is "
            "published.",
            min_length=1,
            max_length=50,
            pattern=SERVICE_NAME_PATTERN,
        ),
    ] = None
    source: Annotated[
        AdapterSource | None,
        Field(description="source is the URI of the adapter's folder: pvc://CLAIM/PATH."),
    ] = None


class Lora(SpecModel):
    """LoRA (Hu et al. 2021, arXiv 2106.09685): trains a product of two thin matrices beside the frozen weights."""

    RULES = (
        Rule(
            "!(has(self.useDora) && self.useDora && has(self.quantization) && self.quantization != 'none')",
            lambda m: not m.use_dora or m.quantization == "none",
            "useDora needs unquantized weights; set quantization to none, or useDora to false",
        ),
    )

    rank: Annotated[int, Field(description="rank is the rank of the update matrices.", ge=1, le=256)] = 8
    alpha: Annotated[
        float,
        Field(description="alpha scales the update by alpha / rank. Twice the rank is a common choice.", gt=0, le=4096),
    ] = 16
    dropout: Annotated[
        float, Field(description="dropout is the dropout probability of the adapter's input.", ge=0, lt=1)
    ] = 0.0
    use_rslora: Annotated[
        bool,
        Field(
            description="useRslora scales the update by alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732), which "
            "keeps high ranks effective."
        ),
    ] = False
    use_dora: Annotated[
        bool,
        Field(
            description="useDora also learns a magnitude for each output (DoRA, arXiv 2402.09353): often "
            "better at low ranks, but slower to train."
        ),
    ] = False
    target_modules: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]],
        Field(
            description="targetModules lists the modules that get an adapter, for example q_proj. all-linear selects "
            "every linear layer except the output head.",
            min_length=1,
            max_length=64,
            json_schema_extra={"default": ["all-linear"]},
        ),
    ] = Field(default_factory=lambda: ["all-linear"])
    quantization: Annotated[
        Quantization,
        Field(
            description="quantization is the quantization of the frozen linear layers during training. nf4 (QLoRA, arXiv "
            "2305.14314) needs about a quarter of the memory of bfloat16 and is somewhat slower. The adapter is for the "
            "unquantized model and is verified with it."
        ),
    ] = "none"


class Dpo(SpecModel):
    """DPO (Rafailov et al. 2023, arXiv 2305.18290): learns from pairs of a preferred and a rejected answer."""

    beta: Annotated[
        float,
        Field(
            description="beta scales the implicit reward. Higher values keep the model closer to where training started.",
            gt=0,
            le=10,
        ),
    ] = 0.1


class Method(SpecModel):
    """Method of tuning: the weights that are trained, and the objective."""

    lora: Annotated[Lora, Field(description="lora holds the LoRA hyperparameters.")] = Field(default_factory=Lora)
    dpo: Annotated[
        Dpo | None,
        Field(
            description="dpo trains on preference pairs (dataset.format preference). If unset, training is supervised: it "
            "learns the expected answers."
        ),
    ] = None
