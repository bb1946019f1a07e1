"""A run that continues from an earlier adapter: it starts where that one ended, or says why it cannot."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune_api.artifacts import read_verified
from finetune_api.outcome import Outcome, Result
from finetune_api.reasons import Reason
from finetune_trainer.errors import TrainingError
from finetune_trainer.preflight.checks import run_preflight
from finetune_trainer.runtime.interruption import StopSignal
from finetune_trainer.tasks.finetuning_task import run_finetuning
from finetune_trainer.training import FinetuningPipeline
from lab.fixtures.reporters import AtStep, RecordingReporter
from lab.fixtures.tiny_model import LINES, as_jsonl, make_tiny_model
from lab.fixtures.training_runs import FinishedRun, a_training_config

pytestmark = pytest.mark.model

SOURCE = "pvc://adapters/support-tone/uid-0"
PAIRS = as_jsonl([{"prompt": LINES[i], "chosen": LINES[i + 1], "rejected": LINES[i + 5]} for i in range(4)])
OBJECTIVES: dict[str, dict[str, Any]] = {
    "supervised": {},
    "dpo": {
        "dpo": {"beta": 0.1},
        "dataset": {"inline": PAIRS},
        "evaluation": {"inline": PAIRS},
        "evaluationSettings": {"evalSteps": 2},
    },
}
SIX_STEPS = {"batchSize": 4, "microBatchSize": 2, "learningRate": 0.005, "maxSteps": 6}


def continuing(finished: FinishedRun, output: Path, /, **changes: Any) -> Any:
    """The finished run's configuration, from its adapter on."""
    document = {
        "evaluation": finished.config.to_dict()["evaluation"],
        "initialAdapter": {"path": str(finished.adapter), "source": SOURCE},
    }
    return a_training_config(Path(finished.config.model.path), output, **document | changes)


def run(config: Any) -> tuple[FinetuningPipeline, Outcome, list[float]]:
    """The pipeline, its outcome and the loss of each step."""
    reporter = RecordingReporter()
    pipeline = FinetuningPipeline(config, reporter=reporter)
    outcome = pipeline.run()
    return pipeline, outcome, [*reporter.losses.values()]


def test_it_starts_with_the_loss_that_the_first_run_ended_with_and_says_where_from(
    finished: FinishedRun, tmp_path: Path
) -> None:
    still = {"batchSize": 4, "learningRate": 1e-9, "maxSteps": 2}
    pipeline, outcome, losses = run(continuing(finished, tmp_path, hyperparameters=still))
    assert outcome.metrics["eval_loss"] == pytest.approx(finished.outcome.metrics["eval_loss"], abs=1e-4)
    untrained, trained = finished.progress[0].loss, finished.progress[-1].loss
    assert losses[0] < trained + 0.2 * (untrained - trained)

    digest = finished.outcome.adapter.digest
    folder = pipeline.store.adapter
    assert read_verified(folder)[0].initial_adapter == digest
    record = json.loads((folder / "run.json").read_text())
    assert record["config"]["initialAdapter"] == {"path": str(finished.adapter), "source": SOURCE, "digest": digest}
    assert f"{SOURCE} ({digest[:19]})" in (folder / "README.md").read_text()


def test_the_reference_of_pairs_is_the_adapter_that_it_starts_from(finished: FinishedRun, tmp_path: Path) -> None:
    _, outcome, losses = run(continuing(finished, tmp_path, hyperparameters=SIX_STEPS, **OBJECTIVES["dpo"]))
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < losses[0] - 0.01
    assert outcome.metrics["reward_margin"] > 0


@pytest.mark.parametrize("lora", [{"useDora": True}, {"dropout": 0.1}, {"targetModules": ["embed_tokens", "q_proj"]}])
def test_the_reference_is_the_adapter_in_every_kind_of_lora(tiny_model: Path, tmp_path: Path, lora: Any) -> None:
    config = a_training_config(tiny_model, tmp_path / "first", lora=lora, hyperparameters=SIX_STEPS)
    first = FinetuningPipeline(config)
    first.run()
    if "dropout" in lora:
        lora = {}
    second = {"initialAdapter": {"path": str(first.store.adapter)}, "lora": lora, "hyperparameters": SIX_STEPS}
    _, _, losses = run(a_training_config(tiny_model, tmp_path / "second", **second, **OBJECTIVES["dpo"]))
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_interrupted_run_goes_on_from_its_checkpoint_to_the_same_adapter(
    finished: FinishedRun, tmp_path: Path, objective: str
) -> None:
    changes = {"hyperparameters": SIX_STEPS, **OBJECTIVES[objective]}
    straight = FinetuningPipeline(continuing(finished, tmp_path / "straight", **changes))
    straight.run()
    stop = StopSignal()
    config = continuing(finished, tmp_path / "broken", **changes)
    first = run_finetuning(config, AtStep(3, stop.request), stop)
    assert (first.result, first.step) == (Result.INTERRUPTED, 3)
    again = FinetuningPipeline(config.model_copy(update={"job": config.job.model_copy(update={"attempt": 2})}))
    again.run()
    for name in ("adapter_model.safetensors", "fingerprint.json", "README.md"):
        assert (again.store.adapter / name).read_bytes() == (straight.store.adapter / name).read_bytes(), name


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"lora": {"rank": 4}}, Reason.SPEC_INVALID, f"method.lora.rank: the adapter at {SOURCE} has 8, this run requests 4"),
        ({"lora": {"alpha": 8}}, Reason.SPEC_INVALID, "method.lora.alpha: "),
        ({"lora": {"useRslora": True}}, Reason.SPEC_INVALID, "has false, this run requests true"),
        ({"lora": {"useDora": True}}, Reason.SPEC_INVALID, "method.lora.useDora: "),
        (
            {"lora": {"targetModules": ["q_proj", "v_proj"]}},
            Reason.SPEC_INVALID,
            "has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, this run requests q_proj, v_proj (they differ at "
            "model.layers.0.mlp.down_proj)",
        ),
        ({"initialAdapter": {"digest": f"sha256:{'0' * 64}"}}, Reason.ADAPTER_INCOMPATIBLE, "it was replaced"),
        ({"initialAdapter": {"path": "/nowhere"}}, Reason.ADAPTER_NOT_FOUND, f"no whole adapter at {SOURCE}: /nowhere is"),
    ],
)  # fmt: skip
def test_what_it_cannot_continue_from_is_told_by_validate_and_by_the_trainer(
    finished: FinishedRun, tmp_path: Path, changes: dict[str, Any], reason: Reason, words: str
) -> None:
    initial = {"path": str(finished.adapter), "source": SOURCE, **changes.get("initialAdapter", {})}
    refused(continuing(finished, tmp_path, **changes | {"initialAdapter": initial}), reason, words)


def test_an_adapter_of_another_model_is_refused(finished: FinishedRun, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", seed=1)
    config = continuing(finished, tmp_path / "out", model={"path": str(other)})
    refused(config, Reason.ADAPTER_INCOMPATIBLE, "is for base model pvc://models/tiny of revision sha256:")


def test_an_adapter_that_was_changed_is_refused(finished: FinishedRun, tmp_path: Path) -> None:
    copy = shutil.copytree(finished.adapter, tmp_path / "copy")
    with (copy / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    config = continuing(finished, tmp_path / "out", initialAdapter={"path": str(copy)})
    refused(config, Reason.ADAPTER_NOT_FOUND, "adapter_model.safetensors has sha256")


def refused(config: Any, reason: Reason, words: str) -> None:
    (failure,) = run_preflight(config).failures
    with pytest.raises(TrainingError) as caught:
        FinetuningPipeline(config).run()
    for error in (failure, caught.value):
        assert (error.reason, error.retryable) == (reason, False)
        assert words in error.message
