"""The engine of the tests that any engine has to pass, chosen by FINETUNE_SERVER_ENGINE as for a server."""

from finetune_inference.config import Settings

ENGINE = Settings().engine
REFUSED_BY_VLLM = {
    "dora": "does not yet support DoRA",
    "head": "tunes lm_head, and vLLM cannot score prompts with a tuned head",
    "whole-head": "Unsupported modules_to_save",
}
"""Words of the reason by kind of adapter, in the tests' names."""


def refusals() -> dict[str, str]:
    """Return words of the reason by kind of adapter that this engine refuses."""
    return REFUSED_BY_VLLM if ENGINE == "vllm" else {}
