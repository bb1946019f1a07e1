"""One sequence in the engine: what is said about its prompt."""

import pytest
import torch

from finetune_inference.engine import PromptScored, Sampling, TokenRequest
from finetune_inference.sampling import Sampler
from finetune_inference.sequence import Sequence


@pytest.mark.parametrize("pieces", [(5,), (2, 3), (4, 1), (1, 3, 1)])
def test_a_prompt_is_scored_once_whatever_pieces_it_is_read_in(pieces: tuple[int, ...]) -> None:
    prompt = [3, 1, 4, 1, 5]
    request = TokenRequest(prompt, None, 0, logprobs=0, score_prompt=True)
    sequence = Sequence(
        1, request, None, Sampler(Sampling(), prompt, 8, 1.0, torch.device("cpu")), frozenset(), list(prompt)
    )
    events = []
    for count in pieces:
        piece = sequence.piece(count)
        events += sequence.take_prompt_logits(piece, torch.zeros(piece.wanted, 8))
    assert [type(event) for event in events] == [PromptScored]
    assert len(events[0].tokens) == len(prompt)
