"""`python -m finetune_trainer …` as a person types it."""

import json
import shutil
import textwrap
from pathlib import Path

import pytest
import yaml

from finetune_api.contract import ExitCode
from finetune_api.training import TrainingConfig
from finetune_api.v1alpha1 import DEFAULT_EPOCHS
from finetune_trainer.__main__ import EXAMPLE, main
from finetune_trainer.data.forms import detect_form
from finetune_trainer.data.rows import Row
from finetune_trainer.runtime.interruption import STOP, StopSignal
from lab.fixtures.training_runs import FinishedRun, a_training_config, write_config

pytestmark = pytest.mark.model


@pytest.fixture(autouse=True)
def _no_signal_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands install handlers for their process; this process belongs to pytest."""
    monkeypatch.setattr(StopSignal, "install", lambda _self: None)
    assert not STOP.requested


def test_what_the_help_shows_can_be_copied() -> None:
    blocks = [textwrap.dedent(block.partition("\n")[2]) for block in EXAMPLE.split("\n\n")[:3]]
    smallest, rows, more = blocks
    config = TrainingConfig.model_validate(yaml.safe_load(smallest + "\n" + more))
    defaults = TrainingConfig.model_validate(yaml.safe_load(smallest))
    assert config.lora == defaults.lora
    assert config.hyperparameters == defaults.hyperparameters.model_copy(update={"epochs": DEFAULT_EPOCHS})
    formats = [json.JSONDecoder().raw_decode(line)[0] for line in rows.splitlines()]
    assert [detect_form(Row("line 1", row), None).format for row in formats] == [
        "messages",
        "prompt-completion",
        "text",
        "preference",
    ]


def test_train_says_where_the_adapter_is(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = a_training_config(Path("/not/this/one"), tmp_path / "out", job=None)
    monkeypatch.setenv("MODEL_NAME_OR_PATH", str(tiny_model))
    path = write_config(config, tmp_path / "config.json")
    assert main(["train", str(path), "--run-id", "first"]) == ExitCode.SUCCEEDED
    printed = capsys.readouterr().out
    assert "Trained 6 steps on 8 rows. train_loss=" in printed
    assert f"adapter: {tmp_path}/out/support-tone/first" in printed
    assert (tmp_path / "out/support-tone/first/manifest.json").exists()


def test_train_ends_with_the_exit_code_of_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = a_training_config(Path("/nowhere"), tmp_path, job=None, model={"path": "/nowhere/model"})
    assert main(["train", str(write_config(config, tmp_path / "config.json"))]) == ExitCode.MODEL_INVALID
    assert "ModelNotFound: Model /nowhere/model does not exist" in capsys.readouterr().err


def test_validate_counts_rows_and_finds_the_model_without_loading_it(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(a_training_config(tiny_model, tmp_path / "out"), tmp_path / "config.json")
    assert main(["validate", str(path)]) == ExitCode.SUCCEEDED
    printed = capsys.readouterr().out
    assert "8 training rows, 0 evaluation rows, format messages" in printed
    assert "revision sha256:" in printed
    assert not (tmp_path / "out").exists()


def test_inspect_shows_the_record_of_a_whole_adapter_and_refuses_a_torn_one(
    finished: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(finished.adapter)]) == ExitCode.SUCCEEDED
    printed = capsys.readouterr().out
    assert "job:      uid-1, attempt 1, step 40" in printed
    assert '"train_loss"' in printed
    torn = shutil.copytree(finished.adapter, tmp_path / "torn")
    (torn / "adapter_model.safetensors").write_bytes(b"")
    assert main(["inspect", str(torn)]) != ExitCode.SUCCEEDED
    assert "has 0 bytes; its manifest says" in capsys.readouterr().err
