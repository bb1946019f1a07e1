"""The rules that end an answer, in the order in which they count."""

from typing import Any, Self

import pytest

from finetune_inference.engine.interface import Event, Finished, Generated, Refused, ScoredToken, TokenRequest
from finetune_inference.engine.token_events import token_events

END, BAD = 9, 13


class UpTo:
    """Allows a number of tokens, of which none is BAD."""

    allowed = b"\xff"

    def __init__(self, tokens: int) -> None:
        self.left = tokens

    @property
    def complete(self) -> bool:
        return self.left == 0

    def consume(self, token: int) -> None:
        if token == BAD:
            raise ValueError("a bad token")
        self.left -= 1

    def copy(self) -> Self:
        return type(self)(self.left)


def shown(token: int) -> Generated:
    return Generated(ScoredToken(token))


@pytest.mark.parametrize(
    ("token", "generated", "allowed", "events"),
    [
        (5, 1, None, [shown(5)]),
        (5, 3, None, [shown(5), Finished("length", 3)]),
        (END, 2, None, [Finished("stop", 2, END)]),
        (END, 3, None, [Finished("stop", 3, END)]),
        (5, 1, 2, [shown(5)]),
        (5, 1, 1, [shown(5), Finished("stop", 1)]),
        (5, 3, 1, [shown(5), Finished("stop", 3)]),
        (BAD, 3, 1, [Refused("a bad token")]),
        (END, 1, 1, [Finished("stop", 1, END)]),
    ],
)
def test_a_token_ends_an_answer_by_the_first_rule_that_applies(
    token: int, generated: int, allowed: int | None, events: list[Event]
) -> None:
    constraint = None if allowed is None else UpTo(allowed)
    request = TokenRequest([1], None, 3, constraint=constraint)
    assert token_events(request, frozenset([END]), token, generated, lambda: ScoredToken(token)) == events


@pytest.mark.parametrize("token", [END, BAD])
def test_a_token_that_is_not_reported_is_not_scored(token: int) -> None:
    def score() -> Any:
        pytest.fail("scoring takes a softmax over the vocabulary")

    token_events(TokenRequest([1], None, 3, constraint=UpTo(2)), frozenset([END]), token, 1, score)
