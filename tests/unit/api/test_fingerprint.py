"""What replaying a fingerprint may conclude."""

import pytest

from finetune_api.fingerprint import Fingerprint, Observation, Probe, Verdict, judge

TUNED = [-0.1, -0.2, -0.3]
BASE = [-4.0, -5.0, -6.0]


def a_fingerprint(tuned: list[float] = TUNED, base: list[float] = BASE) -> Fingerprint:
    return Fingerprint(probes=[Probe(token_ids=[1, 2, 3, 4], prompt_tokens=1, tuned=tuned, base=base)])


def shifted(values: list[float], by: float) -> list[float]:
    return [v + by for v in values]


@pytest.mark.parametrize(
    ("observation", "verdict"),
    [
        (Observation(tuned=TUNED, base=BASE), Verdict.MATCHED),
        (Observation(tuned=shifted(TUNED, 0.05), base=shifted(BASE, 0.05)), Verdict.MATCHED),
        (Observation(tuned=BASE, base=BASE), Verdict.NO_EFFECT),
        (Observation(tuned=shifted(BASE, 0.01), base=BASE), Verdict.NO_EFFECT),
        (Observation(tuned=[-9.0, -9.0, -9.0], base=BASE), Verdict.INCOMPATIBLE),
        (Observation(tuned=shifted(TUNED, 2.4), base=BASE), Verdict.INCOMPATIBLE),
        (Observation(tuned=shifted(TUNED, -0.5), base=BASE), Verdict.INCOMPATIBLE),
        (Observation(tuned=shifted(BASE, 0.5), base=BASE), Verdict.INCOMPATIBLE),
        (Observation(tuned=TUNED, base=shifted(BASE, 0.5)), Verdict.INCOMPATIBLE),
    ],
)
def test_the_verdict_follows_the_distances(observation: Observation, verdict: Verdict) -> None:
    assert judge(a_fingerprint(), [observation])[0] is verdict


def test_training_that_changed_nothing_is_never_a_match() -> None:
    fingerprint = a_fingerprint(tuned=BASE)
    assert judge(fingerprint, [Observation(tuned=BASE, base=BASE)])[0] is Verdict.NO_EFFECT


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_never_match(value: float) -> None:
    verdict, _ = judge(a_fingerprint(), [Observation(tuned=[value, *TUNED[1:]], base=BASE)])
    assert verdict is Verdict.INCOMPATIBLE


def test_an_observation_of_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        judge(a_fingerprint(), [Observation(tuned=TUNED[:2], base=BASE)])
    with pytest.raises(ValueError, match="zip"):
        judge(a_fingerprint(), [])
