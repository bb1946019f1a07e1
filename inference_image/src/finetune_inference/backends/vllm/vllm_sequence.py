"""The state of one running sequence, shared by the engine, its logits processors and its outputs."""

from dataclasses import dataclass

from finetune_inference.engine.interface import TokenRequest


@dataclass(eq=False)
class VllmSequence:
    """A request in vLLM."""

    request: TokenRequest
    stop_ids: frozenset[int]
    generated: int = 0
    """Number of tokens of the answer, the end token included."""
    broken: bool = False
    """True once its logits were not finite."""
