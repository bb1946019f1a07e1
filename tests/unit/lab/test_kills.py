"""A few kills of each sort; `make kill-test-trainer` does a hundred."""

import signal
from pathlib import Path

import pytest

from lab.fixtures.tiny_model import make_tiny_model
from lab.kill.kill_campaign import SAVE_INTERVAL, Campaign, run_campaign
from lab.kill.kill_plan import Moment, make_plan

pytestmark = pytest.mark.model


@pytest.mark.timeout(900)  # half a minute, or minutes beside programs that leave it no core
def test_whenever_a_training_is_killed_it_ends_with_the_adapter_of_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    campaign = Campaign(make_tiny_model(tmp_path / "model"), tmp_path)
    runs = run_campaign(campaign, 6, seed=2, cold=1, report=lambda _number, _run: None)
    assert sum(len(run.kills) for run in runs) == 6
    for run in runs:
        assert run.is_identical, f"seed 2: {run.kills}"
        assert run.leftovers == []
        assert run.most_repeated(signal.SIGTERM) == 0
        assert run.most_repeated(signal.SIGKILL) <= SAVE_INTERVAL


def test_a_plan_has_kills_of_all_sorts_and_is_the_same_for_the_same_seed() -> None:
    plan = make_plan(100, 500, 40, seed=4, cold=10)
    assert plan == make_plan(100, 500, 40, seed=4, cold=10)
    assert plan != make_plan(100, 500, 40, seed=5, cold=10)
    assert {kill.signal for kill in plan} == {signal.SIGTERM, signal.SIGKILL}
    assert {kill.moment for kill in plan} == set(Moment)
    assert sum(kill.is_cold for kill in plan) == 10
