"""What both engines read from a model's own files, and how much they compute and keep unless a setting says otherwise."""

from typing import Any, Literal

Precision = Literal["auto", "float32", "bfloat16"]

PREFILL_TOKENS = {"cpu": 128, "cuda": 2048}
"""Prompt tokens per step: those who answer wait for them. With 135 million parameters and two threads, 128 take a quarter of a
second and 256 half of one; a long prompt takes a tenth longer for it, and 32 sequences of eight adapters a seventh. It also bounds
the logits of a scored prompt: 2048 x 150,000 floats are 1.2 GB."""
CACHE_SHARE = 4
"""A quarter of the memory that the model leaves is for keys and values, unless a setting says otherwise."""
NOT_NUMBERS = "the model computes values that are not numbers"
DEFAULT_CONTEXT = 2048
"""Context length when the model's config does not say."""


def context_length(config: Any) -> int:
    """Tokens of prompt and answer that the model was made for. config: transformers' PretrainedConfig."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or DEFAULT_CONTEXT


def token_ids(value: int | list[int] | None) -> frozenset[int]:
    """End tokens as configs write them: one, several or none."""
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)


def quantization_of(config: Any) -> str | None:
    """What the weights of a checkpoint are quantized with, such as `bitsandbytes`; None if they are not."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return None
    # transformers replaces what the file says by an object once the model is loaded.
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
    return str(getattr(method, "value", method))


def precision_on(device: str, precision: Precision) -> Literal["float32", "bfloat16"]:
    """The type of the weights. device: torch's name of its type."""
    if precision == "auto":
        return "float32" if device == "cpu" else "bfloat16"
    return precision
