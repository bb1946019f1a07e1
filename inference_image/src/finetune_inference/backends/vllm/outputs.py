"""From vLLM's outputs to the engine's events."""

import math
from typing import Any

from vllm.outputs import RequestOutput

from finetune_inference.backends.vllm.vllm_sequence import VllmSequence
from finetune_inference.engine.interface import Event, Finished, PromptScored, ScoredToken
from finetune_inference.engine.token_events import token_events


def output_events(sequence: VllmSequence, output: RequestOutput) -> list[Event]:
    """Return the events of one step for a sequence, and update the sequence."""
    request = sequence.request
    events: list[Event] = []
    if request.score_prompt and output.prompt_logprobs:
        scores = [
            ScoredToken(request.prompt[0]),
            *_scored(request.prompt[1:], output.prompt_logprobs, 1, request.logprobs),
        ]
        sequence.broken |= any(math.isnan(score.logprob or 0.0) for score in scores)
        events.append(PromptScored(scores))
    (completion,) = output.outputs
    tokens = list(completion.token_ids)
    if sequence.broken:
        return []
    if not tokens:
        return events
    if request.max_tokens == 0:
        return [*events, Finished("length", 0)]
    scored = (
        [ScoredToken(token) for token in tokens]
        if request.logprobs is None
        else _scored(tokens, completion.logprobs, 0, request.logprobs)
    )
    for token in scored:
        events += _add_token(sequence, token)
    return events


def _add_token(sequence: VllmSequence, token: ScoredToken) -> list[Event]:
    """Count a generated token and return its events."""
    sequence.generated += 1
    return token_events(sequence.request, sequence.stop_ids, token.token_id, sequence.generated, lambda: token)


def _scored(tokens: list[int], scores: Any, first: int, top: int | None) -> list[ScoredToken]:
    """Return tokens with their scores; the first one is at position `first` of vLLM's flat lists.

    At each position vLLM lists the token itself first, then the likeliest ones.
    """
    scored = []
    for position, token in enumerate(tokens, start=first):
        begin = scores.start_indices[position]
        end = min(scores.end_indices[position], begin + 1 + (top or 0))
        likeliest = zip(scores.token_ids[begin + 1 : end], scores.logprobs[begin + 1 : end], strict=True)
        scored.append(ScoredToken(token, scores.logprobs[begin], tuple(likeliest)))
    return scored
