"""Turns a GGUF file into an ordinary Hugging Face checkpoint; run by `model.py` with an interpreter that has torch.

    python convert_model.py FOLDER-OF-THE-GGUF-FILE GGUF-FILE-NAME TARGET-FOLDER

A separate program because the cluster tool itself must run before any package is installed.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path


def convert(source: Path, gguf_file: str, target: Path) -> None:
    """Write config, tokenizer with its chat template, and bf16 safetensors."""
    import gguf  # type: ignore[import-not-found]  # beside this program, in no environment
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # transformers parses the file for the configuration, the tokenizer and the weights, and makes the map of names for each
    # module again: half of the time.
    gguf.GGUFReader = functools.cache(gguf.GGUFReader)
    gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf_file)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf_file, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    # The weights are plain numbers now. transformers still takes the model for a quantized one and would refuse to save.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    model.quantization_method = None
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
