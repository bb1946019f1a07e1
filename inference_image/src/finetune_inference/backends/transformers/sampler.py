"""From logits to the next token."""

import torch

from finetune_inference.backends.common.sampling import (
    GREEDY_BELOW,
    forbid_end_tokens,
    forbidden_tokens,
    keep_candidates,
)
from finetune_inference.engine.interface import Sampling, ScoredToken, TokenRequest


class Sampler:
    """Sampler of one sequence. It holds that sequence's history alone, so that no other sequence changes its tokens."""

    def __init__(
        self,
        request: TokenRequest,
        stop_ids: frozenset[int],
        vocabulary_size: int,
        repetition_penalty: float,
        device: torch.device,
    ) -> None:
        """Start a sequence. `repetition_penalty` is the model's own, for a request without one."""
        self._sampling = sampling = request.sampling
        self._constraint = request.constraint
        own = sampling.repetition_penalty
        self._repetition_penalty = repetition_penalty if own is None else own
        self._missing = request.min_tokens if stop_ids else 0
        """Number of tokens to pick before an end token may follow."""
        self._ends = torch.tensor(sorted(stop_ids), device=device) if self._missing else None
        self._generator = _generator(sampling, device)
        self._bias = _bias(sampling.logit_bias, vocabulary_size, device)
        self._counts: torch.Tensor | None = None
        """[vocabulary] number of times each token was generated; None without frequency and presence penalty."""
        self._seen: torch.Tensor | None = None
        """[vocabulary] tokens of prompt and answer; None without repetition penalty."""
        if sampling.frequency_penalty or sampling.presence_penalty:
            self._counts = torch.zeros(vocabulary_size, device=device)
        if self._repetition_penalty != 1.0:
            self._seen = torch.zeros(vocabulary_size, dtype=torch.bool, device=device)
            self._seen[torch.tensor(request.prompt, device=device)] = True

    @property
    def is_argmax(self) -> bool:
        """True if the next token is always the one with the largest logit."""
        special = (self._counts, self._seen, self._bias, self._constraint, self._ends)
        return self._sampling.temperature < GREEDY_BELOW and all(each is None for each in special)

    def pick(self, logits: torch.Tensor) -> int:
        """Pick the next token and update the history. logits: [vocabulary], float32."""
        token = self._choose(self._adjust(logits))
        if self._counts is not None:
            self._counts[token] += 1
        if self._seen is not None:
            self._seen[token] = True
        if self._ends is not None:
            self._missing -= 1
            self._ends = self._ends if self._missing else None
        return token

    def _adjust(self, logits: torch.Tensor) -> torch.Tensor:
        """Return [vocabulary] logits after penalties, bias and constraint; the input stays unchanged."""
        sampling = self._sampling
        if self._seen is not None:
            # Keskar et al. 2019, as in transformers' generate.
            scaled = torch.where(logits < 0, logits * self._repetition_penalty, logits / self._repetition_penalty)
            logits = torch.where(self._seen, scaled, logits)
        if self._counts is not None:
            logits = logits - sampling.frequency_penalty * self._counts
            logits = logits - sampling.presence_penalty * (self._counts > 0)
        if self._bias is not None:
            logits = logits + self._bias
        if self._constraint is not None:
            logits = logits.masked_fill(forbidden_tokens(self._constraint.allowed, logits), -torch.inf)
        if self._ends is not None:
            logits = forbid_end_tokens(logits, self._ends)
        return logits

    def _choose(self, logits: torch.Tensor) -> int:
        sampling = self._sampling
        if sampling.temperature < GREEDY_BELOW:
            return int(logits.argmax())
        # Relative to the maximum, so that the division by a low temperature cannot overflow.
        probabilities = torch.softmax((logits - logits.max()) / sampling.temperature, dim=-1)
        probabilities = keep_candidates(probabilities, sampling)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def score_rows(logits: torch.Tensor, tokens: list[int], top: int) -> list[ScoredToken]:
    """Score each of `tokens` under its own row. logits: [len(tokens), vocabulary], any float type."""
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    chosen = log_probabilities.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    values, indices = log_probabilities.topk(min(top, logits.shape[-1]), dim=-1)
    alternatives = [
        tuple(zip(ids, scores, strict=True)) for ids, scores in zip(indices.tolist(), values.tolist(), strict=True)
    ]
    return [ScoredToken(t, p, a) for t, p, a in zip(tokens, chosen, alternatives, strict=True)]


def _generator(sampling: Sampling, device: torch.device) -> torch.Generator | None:
    """Make a random generator for one sequence, so that a seed gives the same tokens under any load."""
    if sampling.temperature < GREEDY_BELOW:
        return None
    generator = torch.Generator(device)
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator


def _bias(biases: dict[int, float], vocabulary_size: int, device: torch.device) -> torch.Tensor | None:
    """Return [vocabulary] the bias of each logit; None if there is none."""
    if not biases:
        return None
    bias = torch.zeros(vocabulary_size, device=device)
    bias[torch.tensor(list(biases), device=device)] = torch.tensor(list(biases.values()), device=device)
    return bias
