"""Facts that are read from a model's own files, without its weights."""

from pathlib import Path
from typing import Any, Final, Literal

Precision = Literal["auto", "float32", "bfloat16"]

DEFAULT_CONTEXT: Final = 2048
"""Tokens of context where the model's configuration does not say."""


def context_length(config: Any) -> int:
    """Return the tokens of prompt and answer that the model was made for. config: transformers' PretrainedConfig."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or DEFAULT_CONTEXT


def token_ids(value: int | list[int] | None) -> frozenset[int]:
    """Return end tokens as a set; configurations write one, several or none."""
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)


def quantization_of(config: Any) -> str | None:
    """Return the method that quantized a checkpoint, such as `bitsandbytes`; None if it is not quantized."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return None
    # transformers replaces the file's mapping by an object once the model is loaded.
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
    return str(getattr(method, "value", method))


def resolve_precision(precision: str, *, on_gpu: bool) -> Literal["float32", "bfloat16"]:
    """Return the dtype of weights for a configured `precision`: `auto` means bfloat16 on a GPU and float32 on a CPU."""
    if precision == "auto":
        return "bfloat16" if on_gpu else "float32"
    return "bfloat16" if precision == "bfloat16" else "float32"


def load_tokenizer(path: str | Path, revision: str | None = None) -> Any:
    """Load the tokenizer of a folder or of a hub repository; code from there is never run. Raises OSError or ValueError."""
    from transformers import AutoTokenizer

    is_local = Path(path).is_absolute() or Path(path).exists()
    return AutoTokenizer.from_pretrained(
        path, revision=revision or "main", trust_remote_code=False, local_files_only=is_local
    )
