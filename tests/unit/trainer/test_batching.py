"""Rows per step, rows per pass, and their order."""

from pathlib import Path

import pytest

from finetune_trainer.batches.batching import Collator, StepSampler, choose_micro_batch_size, supports_loss_logits
from finetune_trainer.data import IGNORED, TokenRow
from lab.fixtures.tiny_model import make_tiny_model


@pytest.mark.parametrize(
    ("length", "batch_size", "wanted", "on_gpu", "expected"),
    [
        (64, 8, None, False, 8),
        (200, 8, None, False, 4),
        (5000, 8, None, False, 1),
        (200, 8, None, True, 8),
        (10, 8, 3, False, 2),  # 3 does not divide 8
        (10, 8, 100, False, 8),
        (10, 7, 6, False, 1),
    ],
)
def test_a_pass_takes_a_divisor_of_the_batch(
    length: int, batch_size: int, wanted: int | None, on_gpu: bool, expected: int
) -> None:
    assert choose_micro_batch_size(length, batch_size, wanted, on_gpu=on_gpu) == expected


def test_an_epoch_has_every_row_once_in_an_order_that_seed_and_epoch_fix() -> None:
    lengths = [n % 7 + 1 for n in range(50)]
    sampler = StepSampler(lengths, batch_size=8, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(50))
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(StepSampler(lengths, batch_size=8, seed=4)) != first


def test_rows_of_a_step_are_sorted_by_rank() -> None:
    ranks = [n % 13 for n in range(64)]
    order = list(StepSampler(ranks, batch_size=8, seed=0))
    for start in range(0, 64, 8):
        step = [ranks[i] for i in order[start : start + 8]]
        assert step == sorted(step)


@pytest.mark.model
def test_logits_are_computed_where_loss_is_and_loss_and_gradients_stay_the_same(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(make_tiny_model(tmp_path / "tiny"))
    assert supports_loss_logits(model)
    rows = [
        TokenRow([5, 6, 7, 8, 9, 10, 11], [IGNORED, IGNORED, IGNORED, 8, 9, IGNORED, 11]),
        TokenRow([12, 13, 14, 15], [IGNORED, IGNORED, 14, 15]),
    ]
    outcomes = []
    for only_loss_logits in (False, True):
        model.zero_grad()
        output = model(**Collator(0, only_loss_logits=only_loss_logits)(rows), num_items_in_batch=torch.tensor(5))
        output.loss.backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        outcomes.append((output.loss.detach(), gradients, output.logits.shape[1]))
    (loss, gradients, positions), (other_loss, other_gradients, other_positions) = outcomes
    assert (positions, other_positions) == (7, 4)
    torch.testing.assert_close(loss, other_loss)
    torch.testing.assert_close(gradients, other_gradients)
