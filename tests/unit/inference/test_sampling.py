"""From logits to tokens."""

import pytest

from finetune_inference.engine.interface import Sampling, TokenRequest
from finetune_model.model_files import token_ids

torch = pytest.importorskip("torch")

from finetune_inference.backends.common.sampling import (  # noqa: E402
    forbid_end_tokens,
    keep_candidates,
    keep_top_p,
)
from finetune_inference.backends.transformers.sampler import Sampler, score_rows  # noqa: E402

pytestmark = pytest.mark.model

LOGITS = [2.0, 1.0, 0.0, -1.0]


def a_sampler(sampling: Sampling, *, prompt: tuple[int, ...] = (0,), repetition_penalty: float = 1.0) -> Sampler:
    request = TokenRequest(list(prompt), None, 100, sampling=sampling)
    return Sampler(request, frozenset(), len(LOGITS), repetition_penalty, torch.device("cpu"))


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
    sampler = a_sampler(Sampling(temperature=0), prompt=(0, 2), repetition_penalty=1.3)
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


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 7, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 0.4, 1.0])
@pytest.mark.parametrize("repetition_penalty", [None, 1.0, 1.4, 0.7])
def test_candidates_have_the_probabilities_of_transformers(
    temperature: float, top_k: int, top_p: float, min_p: float, repetition_penalty: float | None
) -> None:
    """The real processors, in the order in which `generate` applies them; the model's own penalty is 1.2."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    prompt = [3, 1, 4, 1, 5]
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(top_k)) * 3
    theirs = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(repetition_penalty or 1.2)])
    theirs.append(TemperatureLogitsWarper(temperature))
    if top_k:
        theirs.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        theirs.append(TopPLogitsWarper(top_p))
    if min_p:
        theirs.append(MinPLogitsWarper(min_p))
    expected = theirs(torch.tensor([prompt]), logits.clone())[0].softmax(-1)
    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
    )
    sampler = Sampler(TokenRequest(prompt, None, 9, sampling=sampling), frozenset(), 50, 1.2, torch.device("cpu"))
    adjusted = sampler._adjust(logits[0].clone())
    ours = keep_candidates(torch.softmax((adjusted - adjusted.max()) / temperature, dim=-1), sampling)
    assert (ours / ours.sum()).tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_no_end_token_is_picked_before_the_fewest_tokens() -> None:
    request = TokenRequest([3], None, 9, sampling=Sampling(temperature=0), min_tokens=2)
    sampler = Sampler(request, frozenset([0, 1]), len(LOGITS), 1.0, torch.device("cpu"))
    assert not sampler.is_argmax
    assert picks(sampler, 3) == [2, 2, 0]
    assert sampler.is_argmax


def test_a_constraint_that_allows_only_an_end_token_comes_before_the_fewest_tokens() -> None:
    logits = torch.tensor([-torch.inf, 1.0, -torch.inf])
    assert forbid_end_tokens(logits, torch.tensor([1])).tolist() == logits.tolist()
    assert forbid_end_tokens(logits, torch.tensor([2])).tolist() == logits.tolist()
