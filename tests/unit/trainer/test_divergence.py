"""The watchdog ends what cannot be mended, and leaves alone what is merely noisy."""

import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_api.outcome import Result
from finetune_api.reasons import Reason
from finetune_trainer.errors import TrainingError
from finetune_trainer.runtime.interruption import StopSignal
from finetune_trainer.tasks.finetuning_task import run_finetuning
from lab.fixtures.reporters import AtStep, RecordingReporter
from lab.fixtures.training_runs import FinishedRun, a_training_config, an_attempt

pytestmark = pytest.mark.model


def watched(losses: Iterable[float]) -> int | None:
    """The step at which a run with these losses is ended; None if it is not."""
    from finetune_trainer.loop.divergence import DivergenceCallback

    watchdog = DivergenceCallback()
    state = SimpleNamespace(global_step=0, stateful_callbacks={})
    for loss in losses:
        state.global_step += 1
        try:
            watchdog.on_log(None, state, None, {"loss": loss, "grad_norm": 1.0})
        except TrainingError as error:
            assert error.reason is Reason.LOSS_DIVERGED
            return state.global_step
    return None


@pytest.mark.parametrize(
    ("losses", "ended_at"),
    [
        pytest.param([2.0, float("nan")], 2, id="not a number"),
        pytest.param([2.0, float("inf")], 2, id="infinite"),
        pytest.param([2.0] * 10 + [9.0] * 30, 30, id="jumps and stays"),
        pytest.param([2.0] * 10 + [2.0 + 0.1 * i for i in range(100)], 41, id="climbs past 3.0 and on"),
        pytest.param([2.0] * 10 + [9.0] * 19 + [2.9] + [9.0] * 19, None, id="spikes and recovers"),
        pytest.param([2.0] * 10 + [2.9] * 500, None, id="gets worse, not far"),
        pytest.param([0.01] * 10 + [0.5] * 500, None, id="noise of a loss that started near zero"),
        pytest.param([11.0] * 10 + [16.0] * 500, None, id="a large start and not half as much more"),
        pytest.param([9.0] + [2.0] * 9 + [4.0] * 20, 30, id="one odd step at the start"),
    ],
)
def test_a_loss_that_stays_far_above_its_start_ends_the_run(losses: list[float], ended_at: int | None) -> None:
    assert watched(losses) == ended_at


@pytest.mark.parametrize("seed", range(20))
def test_a_noisy_run_is_left_alone(seed: int) -> None:
    """Losses of single rows that scatter by a factor of three either way, falling or not."""
    rng = random.Random(seed)  # noqa: S311
    for decay in (0.0, 0.001):
        assert watched(3.0 * 2.718 ** (rng.gauss(0, 0.6) - decay * step) for step in range(5000)) is None


def diverging(model: Path, output: Path, attempt: int = 1) -> Any:
    return a_training_config(
        model,
        output,
        job=an_attempt(attempt),
        # The rate climbs slowly: it is right at first, and much too high later.
        hyperparameters={"batchSize": 4, "learningRate": 1.0, "maxSteps": 600, "warmupRatio": 0.5},
        checkpoint={"everySteps": 5},
    )


@pytest.fixture
def learned(finished: FinishedRun, tiny_model: Path, tmp_path: Path) -> Path:
    """A model that knows the rows: one with random weights has no way left to get worse."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = Path(shutil.copytree(tiny_model, tmp_path / "learned"))
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), finished.adapter)
    tuned.merge_and_unload().save_pretrained(folder)
    return folder


def test_too_high_a_learning_rate_ends_with_its_reason_at_the_same_step_after_an_interruption(
    learned: Path, tmp_path: Path
) -> None:
    straight = run_finetuning(diverging(learned, tmp_path / "straight"), RecordingReporter(), StopSignal())
    assert (straight.result, straight.reason, straight.retryable) == (Result.FAILED, Reason.LOSS_DIVERGED, False)
    assert "for the last 20 steps" in straight.message
    assert "Lower hyperparameters.learningRate" in straight.message
    assert straight.step < 100
    assert not (tmp_path / "straight/support-tone/uid-1").exists()

    stop = StopSignal()
    first = run_finetuning(diverging(learned, tmp_path / "broken"), AtStep(straight.step - 8, stop.request), stop)
    assert first.result is Result.INTERRUPTED
    again = run_finetuning(diverging(learned, tmp_path / "broken", 2), RecordingReporter(), StopSignal())
    assert (again.reason, again.message) == (Reason.LOSS_DIVERGED, straight.message)
