"""One sequence in work: what it still has to read, and what each new token means for it. Knows no model."""

from dataclasses import dataclass, field

import torch

from finetune_inference.backends.transformers.lora_batch import LoadedLora
from finetune_inference.backends.transformers.model_runner import Chunk
from finetune_inference.backends.transformers.sampling import Sampler, score_rows
from finetune_inference.engine.interface import (
    Event,
    Finished,
    Generated,
    PromptScored,
    Refused,
    ScoredToken,
    TokenRequest,
)


@dataclass
class RunningSequence:
    """A request on its way through the engine."""

    key: int
    request: TokenRequest
    lora: LoadedLora | None
    """The version that was current when the request was made; held until the sequence ends."""
    sampler: Sampler
    stop_ids: frozenset[int]
    tokens: list[int]
    """Prompt and answer."""
    read: int = 0
    """Tokens that the model has seen."""
    scores: list[ScoredToken] = field(default_factory=list)

    @property
    def unread(self) -> int:
        """Tokens that the model has not seen; 1 while an answer is being generated."""
        return len(self.tokens) - self.read

    @property
    def generated(self) -> int:
        """Tokens of the answer."""
        return len(self.tokens) - len(self.request.prompt)

    def restart(self) -> None:
        """Take note that the model forgot the sequence, to make room for another one: it has to read everything again."""
        self.read = 0
        if len(self.scores) < len(self.request.prompt):
            self.scores = []

    def piece(self, count: int) -> Chunk:
        """The next `count` tokens, with logits where something is to be scored or picked."""
        end = self.read + count
        scoring = self.request.score_prompt and len(self.scores) < len(self.request.prompt)
        wanted = count if scoring else int(end == len(self.tokens))
        return Chunk(self.key, self.tokens[self.read : end], self.read, self.lora, wanted)

    def take_prompt_logits(self, piece: Chunk, logits: torch.Tensor) -> list[Event]:
        """Note that a piece was read, and score the prompt if that was asked for. logits: [piece.wanted, vocabulary]."""
        self.read += len(piece.ids)
        prompt = self.request.prompt
        if not self.request.score_prompt or len(self.scores) >= len(prompt):
            return []
        if not self.scores:
            self.scores.append(ScoredToken(prompt[0]))
        targets = prompt[piece.start + 1 : piece.start + 1 + logits.shape[0]]
        self.scores += score_rows(logits[: len(targets)], targets, self.request.logprobs or 0)
        # Complete one token before the prompt is read: that one may be a piece of its own, which has nothing more to score.
        return [PromptScored(self.scores)] if len(self.scores) >= len(prompt) else []

    def take_token(self, token: int, logits: torch.Tensor) -> list[Event]:
        """Note the token that was picked and say what it means. logits: [vocabulary]."""
        self.tokens.append(token)
        if token in self.stop_ids:
            return [Finished("stop", self.generated)]
        constraint = self.request.constraint
        if constraint:
            try:
                constraint.take(token)
            except ValueError as error:
                return [Refused(str(error))]
        top = self.request.logprobs
        scored = ScoredToken(token) if top is None else score_rows(logits[None], [token], top)[0]
        if constraint and constraint.complete:
            return [Generated(scored), Finished("stop", self.generated)]
        finished = self.generated >= self.request.max_tokens
        return [Generated(scored), *([Finished("length", self.generated)] if finished else [])]
