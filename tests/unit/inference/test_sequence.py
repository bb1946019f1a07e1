"""Sequences in the engine: what is said about a prompt, and who reads how much of theirs in the next step."""

from typing import Any

import pytest
import torch

from finetune_inference.backends.transformers.engine import planned_counts
from finetune_inference.backends.transformers.running_sequence import RunningSequence
from finetune_inference.backends.transformers.sampling import Sampler
from finetune_inference.engine.interface import PromptScored, Sampling, TokenRequest


def a_sequence(key: int, prompt: list[int], read: int = 0, **wanted: Any) -> RunningSequence:
    request = TokenRequest(prompt, None, 0, **wanted)
    sampler = Sampler(Sampling(), prompt, 8, 1.0, torch.device("cpu"))
    return RunningSequence(key, request, None, sampler, frozenset(), list(prompt), read)


@pytest.mark.parametrize("pieces", [(5,), (2, 3), (4, 1), (1, 3, 1)])
def test_a_prompt_is_scored_once_whatever_pieces_it_is_read_in(pieces: tuple[int, ...]) -> None:
    prompt = [3, 1, 4, 1, 5]
    sequence = a_sequence(1, prompt, logprobs=0, score_prompt=True)
    events = []
    for count in pieces:
        piece = sequence.piece(count)
        events += sequence.take_prompt_logits(piece, torch.zeros(piece.wanted, 8))
    assert [type(event) for event in events] == [PromptScored]
    assert len(events[0].tokens) == len(prompt)


@pytest.mark.parametrize(
    ("unread", "counts"),
    [
        ([1, 1, 1], [1, 1, 1]),
        ([64], [64]),
        ([1, 64, 64, 64], [1, 64, 32, 0]),  # of equals the older one is through first
        ([8000], [96]),
        ([8000, 20, 300, 10], [48, 20, 18, 10]),  # a giant has half, the shortest the rest
        ([8000, 10], [86, 10]),  # and what nobody needs
        ([30, 8000, 20], [30, 46, 20]),
    ],
)
def test_who_reads_how_much(unread: list[int], counts: list[int]) -> None:
    sequences = [a_sequence(key, [5] * 8000, 8000 - count) for key, count in enumerate(unread)]
    assert planned_counts(sequences, 96) == dict(enumerate(counts))
