"""The engine that the tests of any engine run with: FINETUNE_SERVER_ENGINE says which, as it does for a server."""

from finetune_inference.config import Settings

ENGINE = Settings().engine
REFUSED_BY_VLLM = {
    "dora": "does not yet support DoRA",
    "head": "tunes lm_head, and vLLM cannot score prompts with that",
    "whole-head": "Unsupported modules_to_save",
}
"""Kinds of adapters, by the names that tests give them, and words of the reason."""


def refusals() -> dict[str, str]:
    """Kinds of adapters that this engine refuses, and words of its reason."""
    return REFUSED_BY_VLLM if ENGINE == "vllm" else {}
