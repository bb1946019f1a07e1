"""From logits to tokens."""

import pytest

from finetune_inference.engine.interface import Sampling
from finetune_model.model_files import token_ids

torch = pytest.importorskip("torch")

from finetune_inference.backends.common.sampling import keep_top_p  # noqa: E402
from finetune_inference.backends.transformers.sampler import Sampler, score_rows  # noqa: E402

pytestmark = pytest.mark.model

LOGITS = [2.0, 1.0, 0.0, -1.0]


def a_sampler(sampling: Sampling, *, prompt: tuple[int, ...] = (0,), repetition_penalty: float = 1.0) -> Sampler:
    return Sampler(sampling, list(prompt), len(LOGITS), repetition_penalty, torch.device("cpu"))


def picks(sampler: Sampler, count: int) -> list[int]:
    return [sampler.pick(torch.tensor(LOGITS)) for _ in range(count)]


def test_temperature_zero_takes_the_likeliest_token() -> None:
    assert picks(a_sampler(Sampling(temperature=0)), 3) == [0, 0, 0]


def test_tokens_come_as_often_as_they_are_likely() -> None:
    counts = torch.bincount(torch.tensor(picks(a_sampler(Sampling(seed=1)), 4000)), minlength=4) / 4000
    assert counts.tolist() == pytest.approx(torch.tensor(LOGITS).softmax(0).tolist(), abs=0.03)


def test_a_high_temperature_evens_out_and_a_low_one_sharpens() -> None:
    hot = picks(a_sampler(Sampling(temperature=2, seed=1)), 1000).count(0)
    cold = picks(a_sampler(Sampling(temperature=0.3, seed=1)), 1000).count(0)
    assert hot < 560 < 900 < cold


@pytest.mark.parametrize(("top_p", "kept"), [(0.0, 1), (0.5, 1), (0.7, 2), (0.9, 3), (0.97, 4), (1.0, 4)])
def test_top_p_keeps_the_smallest_set_that_holds_it(top_p: float, kept: int) -> None:
    # 0.64, 0.24, 0.09, 0.03
    probabilities = torch.tensor(LOGITS).softmax(0)
    assert int((keep_top_p(probabilities, top_p) > 0).sum()) == kept


def test_penalties_count_generated_tokens_and_not_the_prompt() -> None:
    assert picks(a_sampler(Sampling(temperature=0, frequency_penalty=0.4), prompt=(0, 0, 0, 0)), 6) == [
        0,
        0,
        0,
        1,
        0,
        1,
    ]
    assert picks(a_sampler(Sampling(temperature=0, presence_penalty=1.5)), 3) == [0, 1, 0]


def test_the_repetition_penalty_of_a_model_is_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.tensor([0.5, 0.4, -0.3, -0.35])
    sampler = Sampler(Sampling(temperature=0), [0, 2], 4, 1.3, torch.device("cpu"))
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([[0, 2]]), logits[None].clone())[0]
    assert sampler._adjust(logits).tolist() == pytest.approx(expected.tolist())


def test_scores_are_the_log_softmax_of_each_row() -> None:
    rows = torch.tensor([LOGITS, LOGITS[::-1]])
    scored = score_rows(rows, [1, 3], top=2)
    expected = rows.log_softmax(-1)
    assert [token.logprob for token in scored] == pytest.approx([float(expected[0, 1]), float(expected[1, 3])])
    assert [[token for token, _ in each.top] for each in scored] == [[0, 1], [3, 2]]


def test_end_tokens_are_read_however_a_config_writes_them() -> None:
    assert [token_ids(value) for value in (None, 3, [3, 4])] == [frozenset(), {3}, {3, 4}]
