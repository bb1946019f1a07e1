"""Held-out rows while training runs: the best adapter is what is committed, and no interruption changes which one it is."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api.artifacts import read_verified
from finetune_api.outcome import Outcome, Result
from finetune_trainer.runtime.interruption import StopSignal
from finetune_trainer.tasks.finetuning_task import run_finetuning
from finetune_trainer.training import FinetuningPipeline
from lab.fixtures.reporters import AtStep, RecordingReporter
from lab.fixtures.tiny_model import LINES, as_jsonl
from lab.fixtures.training_runs import a_training_config, an_attempt

pytestmark = pytest.mark.model

STEPS = 24
COMPARED = ("adapter_model.safetensors", "fingerprint.json", "report.html")


def answered(offset: int) -> str:
    """Four questions, each answered by the line so many lines further on."""
    turns = [(LINES[i], LINES[i + offset]) for i in range(4)]
    return as_jsonl(
        [
            {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
            for question, answer in turns
        ]
    )


def overfitting(model: Path, output: Path, *, attempt: int = 1, **settings: Any) -> Any:
    """A run that learns answers by heart: the loss on other answers to its questions falls at first, and rises later."""
    return a_training_config(
        model,
        output,
        job=an_attempt(attempt),
        dataset={"inline": answered(1)},
        evaluation={"inline": answered(2)},
        evaluationSettings={"evalSteps": 2, **settings},
        lora={"dropout": 0.1},
        hyperparameters={"batchSize": 4, "microBatchSize": 2, "learningRate": 0.03, "maxSteps": STEPS},
        checkpoint={"everySteps": 5},
    )


@pytest.fixture(scope="module")
def straight(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome, RecordingReporter]:
    """An uninterrupted run that stops early: its adapter's folder, its end and its curve."""
    curve = RecordingReporter()
    config = overfitting(tiny_model, tmp_path_factory.mktemp("straight"), earlyStoppingPatience=3)
    pipeline = FinetuningPipeline(config, reporter=curve)
    return pipeline.store.adapter, pipeline.run(), curve


def test_training_stops_early_and_commits_the_adapter_of_the_best_evaluation(
    straight: tuple[Path, Outcome, RecordingReporter],
) -> None:
    folder, outcome, curve = straight
    evaluated = {step: loss for step, loss in curve.eval_losses.items() if step % 2 == 0 and loss is not None}
    best = min(evaluated, key=lambda step: evaluated[step])
    assert curve.eval_losses[1] is None
    assert curve.eval_losses[3] == evaluated[2]
    assert outcome.step == best + 3 * 2 < STEPS
    assert read_verified(folder)[0].step == best
    assert outcome.message == f"Trained {outcome.step} steps on 4 rows. Step {best} was the best on held-out rows."
    # Measured anew on the restored adapter.
    assert outcome.metrics["eval_loss"] == pytest.approx(evaluated[best], abs=1e-6)
    assert evaluated[outcome.step] > evaluated[best] + 0.01


def test_without_patience_all_steps_are_trained_and_the_last_is_evaluated_too(tiny_model: Path, tmp_path: Path) -> None:
    curve = RecordingReporter()
    config = overfitting(tiny_model, tmp_path, evalSteps=7)
    outcome = FinetuningPipeline(config, reporter=curve).run()
    assert outcome.step == STEPS
    losses = [curve.eval_losses[step] for step in (7, 14, 21, STEPS)]
    assert len(set(losses)) == 4
    assert outcome.metrics["eval_loss"] == pytest.approx(min(loss for loss in losses if loss is not None), abs=1e-6)


class StopsAtLook(StopSignal):
    """A request to stop that comes between two looks at it: between any two steps, or within an evaluation."""

    def __init__(self, look: int) -> None:
        super().__init__()
        self._left = look

    @property
    def requested(self) -> bool:
        self._left -= 1
        return self._left < 0


@pytest.mark.parametrize("look", [11, 12, 13, 14, 20, 31, 35])
def test_a_stop_at_any_moment_changes_neither_the_best_step_nor_any_byte(
    straight: tuple[Path, Outcome, RecordingReporter], tiny_model: Path, tmp_path: Path, look: int
) -> None:
    folder, expected, _ = straight
    first = run_finetuning(
        overfitting(tiny_model, tmp_path, earlyStoppingPatience=3), RecordingReporter(), StopsAtLook(look)
    )
    assert (first.result, first.step) == (Result.INTERRUPTED, first.checkpoint_step)
    again = FinetuningPipeline(overfitting(tiny_model, tmp_path, attempt=2, earlyStoppingPatience=3))
    assert_same(again.run(), again.store.adapter, expected, folder)


@pytest.mark.parametrize("step", [7, 9, 14])
def test_a_kill_at_any_step_changes_neither_the_best_step_nor_any_byte(
    straight: tuple[Path, Outcome, RecordingReporter], tiny_model: Path, tmp_path: Path, step: int
) -> None:
    """Nothing is saved when it comes: the next attempt repeats steps and evaluations since the last checkpoint."""
    folder, expected, _ = straight

    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    with pytest.raises(Killed):
        run_finetuning(overfitting(tiny_model, tmp_path, earlyStoppingPatience=3), AtStep(step, kill), StopSignal())
    again = FinetuningPipeline(overfitting(tiny_model, tmp_path, attempt=2, earlyStoppingPatience=3))
    assert again.store.newest_checkpoint() is not None
    assert_same(again.run(), again.store.adapter, expected, folder)


def assert_same(outcome: Outcome, folder: Path, expected: Outcome, expected_folder: Path) -> None:
    assert (outcome.step, outcome.message, outcome.metrics) == (expected.step, expected.message, expected.metrics)
    for name in COMPARED:
        assert (folder / name).read_bytes() == (expected_folder / name).read_bytes(), name


def test_the_page_shows_the_curve_of_held_out_rows(straight: tuple[Path, Outcome, RecordingReporter]) -> None:
    page = (straight[0] / "report.html").read_text()
    assert page.count('stroke="var(--held-out)" stroke-width="2"') == 1
    assert "<th>best step</th>" in page
    assert "exactly" not in page, "other metrics are off unless asked for"


@pytest.mark.parametrize("packed", [True, False])
def test_an_exact_match_is_an_answer_that_greedy_generation_gives(
    packed: bool, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from finetune_trainer.batches import layout

    if not packed:
        monkeypatch.setattr(layout, "supports_packing", lambda _: False)
    config = overfitting(tiny_model, tmp_path, evalSteps=None, metrics=["exact_match"])
    # Rows that are learnt by heart, and others.
    rows = (config.dataset.inline or "") + answered(2)
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"inline": rows})})
    pipeline = FinetuningPipeline(config)
    outcome = pipeline.run()

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), pipeline.store.adapter).eval()
    right = 0
    for line in rows.splitlines():
        question, answer = json.loads(line)["messages"]
        prompt = tokenizer(f"<|im_start|>user\n{question['content']}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        generated = model.generate(input_ids=torch.tensor([prompt]), do_sample=False, max_new_tokens=80)
        right += tokenizer.decode(generated[0][len(prompt) :]) == answer["content"] + "<|im_end|>"
    assert 0 < right < 8
    assert outcome.metrics["exact_match"] == right / 8
    page = (pipeline.store.adapter / "report.html").read_text()
    assert f"<th>share of held-out rows answered exactly</th><td>{right / 8:.4f}</td>" in page


@pytest.mark.parametrize("pairs", [False, True], ids=["rows", "pairs"])
def test_held_out_rows_that_memory_does_not_suffice_for_are_measured_in_halves(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: bool
) -> None:
    import torch
    from transformers.models.llama.modeling_llama import LlamaModel

    rows = [{"prompt": f"{n}?", "chosen": f"Yes, {n}.", "rejected": "No."} for n in range(9)]
    preference: dict[str, Any] = {
        "dataset": {"inline": as_jsonl(rows)},
        "evaluation": {"inline": as_jsonl(rows)},
        "dpo": {},
    }
    changes: dict[str, Any] = preference if pairs else {"evaluation": {"inline": answered(2)}}
    hyperparameters = {"batchSize": 2, "learningRate": 0.01, "maxSteps": 1}
    forward = LlamaModel.forward
    refused: list[int] = []

    def narrow(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = forward(self, *args, **kwargs)
        size = result.last_hidden_state.shape[0] * result.last_hidden_state.shape[1]
        if torch.is_inference_mode_enabled() and narrowed and size > 60:
            refused.append(size)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return result

    monkeypatch.setattr(LlamaModel, "forward", narrow)
    outcomes = []
    for narrowed in (False, True):
        config = a_training_config(
            tiny_model,
            tmp_path / str(narrowed),
            hyperparameters=hyperparameters,
            checkpoint={"everySteps": 5},
            **changes,
        )
        outcomes.append(run_finetuning(config, RecordingReporter(), StopSignal()))
    expected, found = outcomes
    assert found.result is expected.result is Result.SUCCEEDED, found
    assert len(refused) > 1, "memory hardly ran out, so little was shown"
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-5, abs=1e-5)


def test_settings_that_have_nothing_to_work_on_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="evaluationSettings need held-out rows"):
        a_training_config(tiny_model, tmp_path, evaluationSettings={"evalSteps": 2})
    with pytest.raises(ValidationError, match="earlyStoppingPatience counts evaluations, so it needs evalSteps"):
        overfitting(tiny_model, tmp_path, evalSteps=None, earlyStoppingPatience=2)


def test_evaluations_are_spread_over_the_history_for_themselves() -> None:
    from finetune_trainer.evaluation.evaluation import eval_loss_curve
    from finetune_trainer.loop.callbacks import CURVE_POINTS, RECENT_ENTRIES, thin_history

    history: list[dict[str, float]] = []
    for step in range(1, 6001):
        history.append({"step": step, "loss": 1.0})
        if step % 7 == 0:
            history.append({"step": step, "eval_loss": 1.0})
        thin_history(history, 6000, 7)
    steps = [step for step, _ in eval_loss_curve(history)]
    assert CURVE_POINTS / 2 < len(steps) < CURVE_POINTS + RECENT_ENTRIES
    assert steps[:3] == [21, 42, 63]
