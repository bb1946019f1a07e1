"""Figures for TensorBoard, MLflow and Weights & Biases: the real libraries, on files, and what happens without them."""

import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from finetune_api.artifacts import read_verified
from finetune_api.contract import ALLOW_PRIVATE_SOURCES_ENV
from finetune_api.outcome import Outcome, Progress, Result
from finetune_api.reasons import Reason
from finetune_api.training import TrainingConfig
from finetune_trainer.errors import TrainingError
from finetune_trainer.reporting.progress import Reporters
from finetune_trainer.reporting.tracking.checks import check_trackers
from finetune_trainer.reporting.tracking.reporter import TrackingReporter, tracking_reporters
from finetune_trainer.reporting.tracking.tracker import parameters_of
from finetune_trainer.runtime.interruption import StopSignal
from finetune_trainer.tasks.finetuning_task import run_finetuning
from lab.fixtures.reporters import AtStep
from lab.fixtures.training_runs import a_training_config, an_attempt

SUCCESS = Outcome(result=Result.SUCCEEDED, reason=Reason.TRAINED, step=3, metrics={"train_loss": 0.5})


def a_step(step: int) -> Progress:
    return Progress(step=step, total_steps=3, loss=1.5 / step, timestamp=0)


def run(config: TrainingConfig, *, stop_at: int | None = None) -> Outcome:
    stop = StopSignal()
    interrupter = [AtStep(stop_at, stop.request)] if stop_at else []
    reporter = Reporters([*tracking_reporters(config, "uid-1"), *interrupter])
    outcome = run_finetuning(config, reporter, stop)
    reporter.close(outcome)
    return outcome


@pytest.mark.model
def test_two_attempts_of_a_job_are_one_run_of_each_tracker(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # What is looked at is all that was sent, however busy the machine.
    monkeypatch.setattr("finetune_trainer.reporting.tracking.reporter.CLOSE_TIMEOUT", 120)
    output = tmp_path / "out"
    store = f"file://{tmp_path}/mlruns"
    tracking = {"tensorboard": {}, "mlflow": {"uri": store, "experiment": "tone"}, "wandb": {"project": "tone"}}
    evaluation: dict[str, Any] = {
        "dataset": {"path": str(_rows(tmp_path)), "evaluationFraction": 0.25},
        "evaluationSettings": {"evalSteps": 2},
        "hyperparameters": {"batchSize": 2, "learningRate": 0.01, "maxSteps": 6},
    }
    first = a_training_config(tiny_model, output, tracking=tracking, job=an_attempt(1), **evaluation)
    assert run(first, stop_at=3).result is Result.INTERRUPTED
    second = a_training_config(tiny_model, output, tracking=tracking, job=an_attempt(2), **evaluation)
    outcome = run(second)
    assert outcome.result is Result.SUCCEEDED, outcome.message

    _look_at_tensorboard(output / "support-tone" / "tensorboard" / "uid-1", outcome)
    _look_at_mlflow(store, outcome)
    _look_at_wandb(tmp_path / "wandb")
    assert outcome.adapter
    manifest, _ = read_verified(output / outcome.adapter.path)
    assert not [file.path for file in manifest.files if "tfevents" in file.path]


def _rows(folder: Path) -> Path:
    from lab.fixtures.tiny_model import as_jsonl, chat_rows

    path = folder / "rows.jsonl"
    path.write_text(as_jsonl(chat_rows(16)))
    return path


def _look_at_tensorboard(folder: Path, outcome: Outcome) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    assert [scalar.step for scalar in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [scalar.step for scalar in events.Scalars("eval/loss")] == [2, 4, 6]
    [final] = events.Scalars("final/train_loss")
    assert final.value == pytest.approx(outcome.metrics["train_loss"])
    assert {"train/learning_rate", "train/tokens_per_second", "train/peak_memory_bytes"} <= set(
        events.Tags()["scalars"]
    )


def _look_at_mlflow(store: str, outcome: Outcome) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("tone")
    assert experiment
    [found] = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("support-tone", "FINISHED")
    assert [m.step for m in client.get_metric_history(found.info.run_id, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert found.data.metrics["final/eval_loss"] == pytest.approx(outcome.metrics["eval_loss"])
    assert found.data.params["hyperparameters.batchSize"] == "2"


def _look_at_wandb(folder: Path) -> None:
    """Offline, two attempts are two files of one run, which `wandb sync` puts together."""
    first, second = (path.read_bytes() for path in sorted(folder.glob("offline-run-*/run-uid-1.wandb")))
    assert b"train/loss" in first
    assert b"final/train_loss" not in first
    assert b"eval/loss" in second
    assert b"final/train_loss" in second


def test_a_tracker_that_fails_or_hangs_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> Any:
        raise ConnectionError("no such server")

    release = threading.Event()

    def hang() -> Any:
        release.wait(30)
        raise ConnectionError("gone")

    started = time.monotonic()
    refused, hanging = TrackingReporter("refused", refuse), TrackingReporter("hanging", hang)
    for step in range(1, 4):
        refused.report(a_step(step))
        hanging.report(a_step(step))
    assert time.monotonic() - started < 1
    with caplog.at_level(logging.WARNING, "finetune_trainer"):
        refused.close(SUCCESS)
        release.set()
        hanging.close(SUCCESS)
    assert [message for message in caplog.messages if "refused" in message] == [
        "refused takes no figures: ConnectionError: no such server"
    ]


def test_a_server_that_nobody_listens_at_costs_seconds_at_the_end_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    url = "http://127.0.0.1:9"
    tracking = {"mlflow": {"uri": url}, "wandb": {"baseUrl": url}}
    reporters = tracking_reporters(a_training_config(tmp_path, tmp_path, tracking=tracking), "uid-1")
    started = time.monotonic()
    for reporter in reporters:
        reporter.report(a_step(1))
    assert time.monotonic() - started < 1
    for reporter in reporters:
        reporter.close(SUCCESS)
    assert time.monotonic() - started < 45


@pytest.mark.parametrize(
    ("tracker", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow-skinny"), ("wandb", "wandb")]
)
def test_a_library_that_is_missing_is_named_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str, package: str
) -> None:
    config = a_training_config(
        tmp_path, tmp_path, tracking={tracker: {"uri": "file:///x"} if tracker == "mlflow" else {}}
    )
    check_trackers(config)
    monkeypatch.setitem(sys.modules, tracker, None)  # type: ignore[arg-type] # how Python says that there is no such module
    outcome = run_finetuning(config, Reporters([]), StopSignal())
    assert outcome.reason is Reason.SPEC_INVALID
    assert f"tracking.{tracker} needs the Python package {package}, which is not installed;" in outcome.message


def test_figures_go_where_datasets_may_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = a_training_config(tmp_path, tmp_path, tracking={"mlflow": {"uri": "http://127.0.0.1:5000/mlflow"}})
    with pytest.raises(
        TrainingError, match=r"tracking\.mlflow\.uri: 127\.0\.0\.1 has the address 127\.0\.0\.1, which is not"
    ):
        check_trackers(config)
    monkeypatch.setenv(ALLOW_PRIVATE_SOURCES_ENV, "true")
    check_trackers(config)


@pytest.mark.parametrize(
    "uri", ["http://user:password@mlflow:5000", "http://mlflow/?token=1", "sqlite:///x", "mlflow:5000"]
)
def test_an_address_with_a_secret_in_it_is_none(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ValueError, match=r"tracking\.mlflow\.uri"):
        a_training_config(tmp_path, tmp_path, tracking={"mlflow": {"uri": uri}})


def test_a_run_is_described_without_its_rows(tmp_path: Path) -> None:
    parameters = parameters_of(a_training_config(Path("tiny"), tmp_path, dpo={"beta": 0.2}))
    assert parameters["hyperparameters.learningRate"] == 0.01
    assert parameters["dpo.beta"] == 0.2
    assert "reset your password" not in str(parameters)
