"""From logits to the next token. A `Sampler` has one sequence's history, so that its tokens depend on no other sequence."""

import torch
from torch import nn

from finetune_inference.engine.interface import Constraint, Sampling, ScoredToken

GREEDY_BELOW = 1e-5
"""Temperatures below this mean greedy: dividing by them would overflow."""


class Sampler:
    """Picks the tokens of one sequence."""

    def __init__(
        self,
        sampling: Sampling,
        prompt: list[int],
        vocabulary_size: int,
        repetition_penalty: float,
        device: torch.device,
        constraint: Constraint | None = None,
    ) -> None:
        self._sampling = sampling
        self._constraint = constraint
        self._repetition_penalty = repetition_penalty
        self._generator = _generator(sampling, device)
        self._bias = _bias(sampling.logit_bias, vocabulary_size, device)
        self._counts: torch.Tensor | None = None
        """[vocabulary] how often each token was generated; None if nothing asks for it."""
        self._seen: torch.Tensor | None = None
        """[vocabulary] tokens in prompt or answer; None if nothing asks for it."""
        if sampling.frequency_penalty or sampling.presence_penalty:
            self._counts = torch.zeros(vocabulary_size, device=device)
        if repetition_penalty != 1.0:
            self._seen = torch.zeros(vocabulary_size, dtype=torch.bool, device=device)
            self._seen[torch.tensor(prompt, device=device)] = True

    @property
    def is_argmax(self) -> bool:
        """The likeliest token is all there is to it, whatever came before."""
        special = (self._counts, self._seen, self._bias, self._constraint)
        return self._sampling.temperature < GREEDY_BELOW and all(each is None for each in special)

    def pick(self, logits: torch.Tensor) -> int:
        """The next token. logits: [vocabulary], float32."""
        token = self._choose(self._adjust(logits))
        if self._counts is not None:
            self._counts[token] += 1
        if self._seen is not None:
            self._seen[token] = True
        return token

    def _adjust(self, logits: torch.Tensor) -> torch.Tensor:
        """[vocabulary] logits after bias, penalties and constraint; the input is left as it is."""
        sampling = self._sampling
        if self._seen is not None:
            # The model's generation config asks for it (Keskar et al. 2019); transformers' generate applies it too.
            scaled = torch.where(logits < 0, logits * self._repetition_penalty, logits / self._repetition_penalty)
            logits = torch.where(self._seen, scaled, logits)
        if self._counts is not None:
            logits = logits - sampling.frequency_penalty * self._counts
            logits = logits - sampling.presence_penalty * (self._counts > 0)
        if self._bias is not None:
            logits = logits + self._bias
        if self._constraint is not None:
            logits = logits.masked_fill(forbidden(self._constraint.allowed, logits), -torch.inf)
        return logits

    def _choose(self, logits: torch.Tensor) -> int:
        sampling = self._sampling
        if sampling.temperature < GREEDY_BELOW:
            return int(logits.argmax())
        # From the largest down, so that a division by a low temperature cannot overflow.
        probabilities = torch.softmax((logits - logits.max()) / sampling.temperature, dim=-1)
        if sampling.top_p < 1.0:
            probabilities = keep_top_p(probabilities, sampling.top_p)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def keep_top_p(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """[vocabulary] with zeros outside of the smallest set of likeliest tokens that holds top_p; not renormalized."""
    ordered, indices = probabilities.sort(descending=True)
    # A token stays if those before it do not hold top_p yet; so the first one always does.
    outside = ordered.cumsum(-1) - ordered >= top_p
    outside[0] = False
    return probabilities.index_fill(0, indices[outside], 0.0)


def score(log_probabilities: torch.Tensor, token: int, top: int) -> ScoredToken:
    """A token with its log-probability and the `top` likeliest ones. log_probabilities: [vocabulary], float32."""
    values, indices = log_probabilities.topk(min(top, log_probabilities.shape[-1]))
    return ScoredToken(
        token, float(log_probabilities[token]), tuple(zip(indices.tolist(), values.tolist(), strict=True))
    )


def score_rows(logits: torch.Tensor, tokens: list[int], top: int) -> list[ScoredToken]:
    """Scores of `tokens`, each under its own row. logits: [len(tokens), vocabulary], any float type."""
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    chosen = log_probabilities.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    values, indices = log_probabilities.topk(min(top, logits.shape[-1]), dim=-1)
    alternatives = [
        tuple(zip(ids, scores, strict=True)) for ids, scores in zip(indices.tolist(), values.tolist(), strict=True)
    ]
    return [ScoredToken(t, p, a) for t, p, a in zip(tokens, chosen, alternatives, strict=True)]


def _generator(sampling: Sampling, device: torch.device) -> torch.Generator | None:
    """A source of randomness of the sequence's own, so that a seed means the same under any load."""
    if sampling.temperature < GREEDY_BELOW:
        return None
    generator = torch.Generator(device)
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator


def forbidden(allowed: bytes, logits: torch.Tensor) -> torch.Tensor:
    """[vocabulary] True where a token has no bit, or one that is not set (see `engine.Constraint`)."""
    packed = torch.frombuffer(bytearray(allowed), dtype=torch.uint8).to(logits.device)
    bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=logits.device)) & 1
    known = bits.flatten()[: logits.shape[0]] == 0
    return nn.functional.pad(known, (0, logits.shape[0] - known.shape[0]), value=True)


def _bias(biases: dict[int, float], vocabulary_size: int, device: torch.device) -> torch.Tensor | None:
    """[vocabulary] what is added to each logit; None if nothing is."""
    if not biases:
        return None
    bias = torch.zeros(vocabulary_size, device=device)
    bias[torch.tensor(list(biases), device=device)] = torch.tensor(list(biases.values()), device=device)
    return bias
