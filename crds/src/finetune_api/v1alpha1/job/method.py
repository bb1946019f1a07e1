"""How a FinetuneJob trains: LoRA and its variants, DPO, and the adapter it continues from."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from finetune_api.base import CEL, SpecModel
from finetune_api.v1alpha1.common import (
    SERVICE_NAME_PATTERN,
    AdapterSource,
)

Quantization = Literal["none", "nf4"]


class ContinueFrom(SpecModel):
    """An earlier adapter that training starts from: exactly one of `finetuneJob` and `source`."""

    model_config = ConfigDict(
        json_schema_extra={
            CEL: [
                {
                    "rule": "has(self.finetuneJob) != has(self.source)",
                    "message": "set exactly one of finetuneJob and source",
                }
            ]
        }
    )

    finetune_job: Annotated[
        str | None,
        Field(
            description="finetuneJob is the name of a FinetuneJob of this namespace; training waits until its adapter is "
            "published.",
            min_length=1,
            max_length=50,
            pattern=SERVICE_NAME_PATTERN,
        ),
    ] = None
    source: Annotated[
        AdapterSource | None, Field(description="source of the adapter: pvc://CLAIM/PATH of its folder.")
    ] = None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.finetune_job is None) == (self.source is None):
            raise ValueError("set exactly one of finetuneJob and source")
        return self


class Lora(SpecModel):
    """LoRA (Hu et al. 2021, arXiv 2106.09685): the frozen weights get a trainable product of two thin matrices."""

    model_config = ConfigDict(
        json_schema_extra={
            CEL: [
                {
                    "rule": "!(has(self.useDora) && self.useDora && has(self.quantization) && self.quantization != 'none')",
                    "message": "useDora needs whole weights in each step; leave quantization at none, or useDora unset",
                }
            ]
        }
    )

    rank: Annotated[int, Field(description="rank of the update matrices.", ge=1, le=256)] = 8
    alpha: Annotated[
        float,
        Field(description="alpha scales the update by alpha / rank; twice the rank is a common choice.", gt=0, le=4096),
    ] = 16
    dropout: Annotated[float, Field(description="dropout on the adapter's input.", ge=0, lt=1)] = 0.0
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
            description="useDora learns a magnitude for each output beside the direction (DoRA, arXiv 2402.09353): often "
            "better at low ranks, and slower to train."
        ),
    ] = False
    target_modules: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]],
        Field(
            description="targetModules are the module names that get an adapter, for example q_proj; all-linear means "
            "every linear layer but the head.",
            min_length=1,
            max_length=64,
            json_schema_extra={"default": ["all-linear"]},
        ),
    ] = Field(default_factory=lambda: ["all-linear"])
    quantization: Annotated[
        Quantization,
        Field(
            description="quantization of the frozen linear layers while training runs: nf4 (QLoRA, arXiv 2305.14314) takes about a "
            "quarter of the memory of bfloat16, and somewhat longer. The adapter is for the model as it is, and proven there."
        ),
    ] = "none"

    @model_validator(mode="after")
    def _dora_needs_whole_weights(self) -> Self:
        if self.use_dora and self.quantization != "none":
            raise ValueError("useDora needs whole weights in each step; leave quantization at none, or useDora unset")
        return self


class Dpo(SpecModel):
    """DPO (Rafailov et al. 2023, arXiv 2305.18290): learning from pairs of a better and a worse answer."""

    beta: Annotated[
        float,
        Field(
            description="beta of the implicit reward; the larger, the closer the model stays to where it started.",
            gt=0,
            le=10,
        ),
    ] = 0.1


class Method(SpecModel):
    """How the model is tuned: which weights, and on what objective."""

    lora: Annotated[Lora, Field(description="lora hyperparameters.")] = Field(default_factory=Lora)
    dpo: Annotated[
        Dpo | None,
        Field(
            description="dpo learns from preference pairs (dataset.format preference); unset, the wanted answers are learnt "
            "(supervised)."
        ),
    ] = None
