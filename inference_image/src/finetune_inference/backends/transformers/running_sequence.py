"""The state of one running sequence: tokens still to compute, and the events of new ones. Knows no model."""

from dataclasses import dataclass, field

import torch

from finetune_inference.backends.common.lora_weights import LoadedLora
from finetune_inference.backends.transformers.model_runner import Chunk
from finetune_inference.backends.transformers.sampler import Sampler, score_rows
from finetune_inference.engine.interface import Event, PromptScored, ScoredToken, TokenRequest
from finetune_inference.engine.token_events import token_events


@dataclass
class RunningSequence:
    """A request in the engine: in prefill until its prompt is computed, then in decode."""

    key: int
    request: TokenRequest
    lora: LoadedLora | None
    """Adapter version that was current when the request was made; referenced until the sequence ends."""
    sampler: Sampler
    stop_ids: frozenset[int]
    tokens: list[int]
    """Prompt and answer."""
    computed: int = 0
    """Number of tokens whose keys and values are in the cache."""
    scores: list[ScoredToken] = field(default_factory=list)

    @property
    def uncomputed(self) -> int:
        """Number of tokens still to compute; 1 in decode."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Number of tokens of the answer."""
        return len(self.tokens) - len(self.request.prompt)

    def restart(self) -> None:
        """Compute all tokens again, because the cache of this sequence was freed for another one (preemption)."""
        self.computed = 0
        if len(self.scores) < len(self.request.prompt):
            self.scores = []

    def next_chunk(self, count: int) -> Chunk:
        """Return the next `count` tokens, with logits where a token is scored or picked."""
        end = self.computed + count
        scoring = self.request.score_prompt and len(self.scores) < len(self.request.prompt)
        wanted = count if scoring else int(end == len(self.tokens))
        return Chunk(self.key, self.tokens[self.computed : end], self.computed, self.lora, wanted)

    def add_computed(self, chunk: Chunk, logits: torch.Tensor) -> list[Event]:
        """Record a computed chunk, and score the prompt if the request wants that. logits: [chunk.wanted, vocabulary]."""
        self.computed += len(chunk.ids)
        prompt = self.request.prompt
        if not self.request.score_prompt or len(self.scores) >= len(prompt):
            return []
        if not self.scores:
            self.scores.append(ScoredToken(prompt[0]))
        targets = prompt[chunk.start + 1 : chunk.start + 1 + logits.shape[0]]
        self.scores += score_rows(logits[: len(targets)], targets, self.request.logprobs or 0)
        # Complete one token before the end of the prompt: the last token may be a separate chunk, with nothing to score.
        return [PromptScored(self.scores)] if len(self.scores) >= len(prompt) else []

    def add_token(self, token: int, logits: torch.Tensor) -> list[Event]:
        """Append the picked token and return its events. logits: [vocabulary]."""
        self.tokens.append(token)
        top = self.request.logprobs
        return token_events(
            self.request,
            self.stop_ids,
            token,
            self.generated,
            lambda: ScoredToken(token) if top is None else score_rows(logits[None], [token], top)[0],
        )
