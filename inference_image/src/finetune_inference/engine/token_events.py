"""The rules that end an answer, for every engine."""

from collections.abc import Callable

from finetune_inference.engine.interface import Event, Finished, Generated, Refused, ScoredToken, TokenRequest


def token_events(
    request: TokenRequest, stop_ids: frozenset[int], token_id: int, generated: int, score: Callable[[], ScoredToken]
) -> list[Event]:
    """Return the events of one generated token: the token itself, the end of the sequence, or both.

    `stop_ids` are the end tokens of request and model together. `generated` is the number of generated tokens, this one
    included. `score` is called only for a token that is reported, because it may cost a softmax over the vocabulary.
    """
    if token_id in stop_ids:
        return [Finished("stop", generated, token_id)]
    constraint = request.constraint
    if constraint:
        try:
            constraint.consume(token_id)
        except ValueError as error:
            return [Refused(str(error))]
    event = Generated(score())
    if constraint and constraint.complete:
        return [event, Finished("stop", generated)]
    if generated >= request.max_tokens:
        return [event, Finished("length", generated)]
    return [event]
