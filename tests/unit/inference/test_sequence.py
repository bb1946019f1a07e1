"""Sequences in the engine: scored prompts, and the sizes of the chunks of the next step."""

from typing import Any

import pytest
import torch

from finetune_inference.backends.transformers.engine import chunk_sizes
from finetune_inference.backends.transformers.running_sequence import RunningSequence
from finetune_inference.backends.transformers.sampler import Sampler
from finetune_inference.engine.interface import PromptScored, TokenRequest


def a_sequence(key: int, prompt: list[int], computed: int = 0, **wanted: Any) -> RunningSequence:
    request = TokenRequest(prompt, None, 0, **wanted)
    sampler = Sampler(request, frozenset(), 8, 1.0, torch.device("cpu"))
    return RunningSequence(key, request, None, sampler, frozenset(), list(prompt), computed)


@pytest.mark.parametrize("counts", [(5,), (2, 3), (4, 1), (1, 3, 1)])
def test_a_prompt_is_scored_once_in_any_chunks(counts: tuple[int, ...]) -> None:
    prompt = [3, 1, 4, 1, 5]
    sequence = a_sequence(1, prompt, logprobs=0, score_prompt=True)
    events = []
    for count in counts:
        chunk = sequence.next_chunk(count)
        events += sequence.add_computed(chunk, torch.zeros(chunk.wanted, 8))
    assert [type(event) for event in events] == [PromptScored]
    assert len(events[0].tokens) == len(prompt)


@pytest.mark.parametrize(
    ("uncomputed", "sizes"),
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
def test_the_prompts_share_the_budget_of_a_step(uncomputed: list[int], sizes: list[int]) -> None:
    sequences = [a_sequence(key, [5] * 8000, 8000 - count) for key, count in enumerate(uncomputed)]
    assert chunk_sizes(sequences, 96) == dict(enumerate(sizes))
