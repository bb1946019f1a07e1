"""Several processes that share each step: the same training as by one, to rounding, and the same bits after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.contract import ExitCode
from finetune_api.outcome import Outcome
from finetune_trainer.runtime.distributed import cut_evenly
from lab.fixtures.tiny_model import as_jsonl, chat_rows
from lab.fixtures.training_runs import a_training_config, an_attempt, write_config

PAIRS = [{"prompt": f"Question {i}?", "chosen": "Yes, of course. " * (i + 1), "rejected": "No."} for i in range(9)]
CASES: dict[str, dict[str, Any]] = {
    # Nine rows in steps of four: the last step of an epoch has one, fewer than there are processes.
    "rows": {
        "dataset": {"inline": as_jsonl(chat_rows(9))},
        "evaluation": {"inline": as_jsonl(chat_rows(12)[9:])},
        "evaluationSettings": {"evalSteps": 2, "metrics": ["exact_match", "token_f1"]},
    },
    "dropout": {"dataset": {"inline": as_jsonl(chat_rows(9))}, "lora": {"dropout": 0.2}},
    "pairs": {
        "dataset": {"inline": as_jsonl(PAIRS), "format": "preference"},
        "evaluation": {"inline": as_jsonl(PAIRS[:3])},
        "dpo": {"beta": 0.5},
    },
}
STEPS: dict[str, Any] = {
    "hyperparameters": {"batchSize": 4, "learningRate": 0.01, "maxSteps": 7, "precision": "float32"}
}


@given(st.lists(st.integers(1, 500), max_size=40), st.integers(1, 6))
def test_rows_are_cut_into_parts_that_are_all_of_them_in_order(tokens: list[int], parts: int) -> None:
    cut = cut_evenly(tokens, parts)
    assert len(cut) == parts
    assert [row for start, end in cut for row in range(start, end)] == list(range(len(tokens)))
    assert all(start < end for start, end in cut) or len(tokens) < parts


def test_parts_have_about_as_many_tokens() -> None:
    assert cut_evenly([600, 100, 100, 100, 200, 100], 2) == [(0, 1), (1, 6)]
    assert cut_evenly([100] * 6, 3) == [(0, 2), (2, 4), (4, 6)]


@pytest.mark.model
@pytest.mark.parametrize("case", ["rows", "pairs"])
def test_two_processes_train_as_one_does(tiny_model: Path, tmp_path: Path, case: str) -> None:
    one = run(configuration(tiny_model, tmp_path / "one", case), tmp_path)
    two = run(configuration(tiny_model, tmp_path / "two", case, processes=2), tmp_path)
    assert len(losses(one)) == 7
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert two.metrics == pytest.approx(one.metrics, rel=1e-4, abs=1e-5)
    assert cosine(one, two) >= 0.9999
    assert two.trained_tokens == one.trained_tokens


@pytest.mark.model
def test_torchrun_starts_the_same_training(tiny_model: Path, tmp_path: Path) -> None:
    own = run(configuration(tiny_model, tmp_path / "own", "dropout", processes=2), tmp_path)
    file = write_config(configuration(tiny_model, tmp_path / "torchrun", "dropout"), tmp_path / "config.json")
    command = [
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "finetune_trainer",
        "train",
        str(file),
    ]
    done = subprocess.run(
        [sys.executable, "-m", *command], env=environment(), capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert f"adapter: {tmp_path / 'torchrun'}" in done.stdout
    [adapter] = (tmp_path / "torchrun").glob("support-tone/*/adapter_model.safetensors")
    assert adapter.read_bytes() == weights(own)


@pytest.mark.model
def test_a_run_that_is_stopped_and_one_that_is_killed_end_with_the_same_bits(tiny_model: Path, tmp_path: Path) -> None:
    longer = {
        "hyperparameters": {**STEPS["hyperparameters"], "maxSteps": 60},
        "checkpoint": {"everySteps": 4, "keep": 2},
    }
    whole = run(configuration(tiny_model, tmp_path / "whole", "dropout", processes=2, **longer), tmp_path)
    for attempt, number in enumerate((signal.SIGTERM, signal.SIGKILL), start=1):
        config = configuration(
            tiny_model, tmp_path / "again", "dropout", processes=2, job=an_attempt(attempt), **longer
        )
        process = start(config, tmp_path)
        step = wait_for_checkpoint(tmp_path / "again", process, after=4 if attempt == 1 else 20)
        others = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(number)
        code = process.wait(120)
        assert step < 60
        if number is signal.SIGTERM:
            assert code == ExitCode.INTERRUPTED
            assert outcome_of(tmp_path).checkpoint_step
        else:
            assert code == -signal.SIGKILL
        assert len(others) == 1
        wait_until_gone(others[0])
    again = run(
        configuration(tiny_model, tmp_path / "again", "dropout", processes=2, job=an_attempt(3), **longer), tmp_path
    )
    assert weights(again) == weights(whole)


@pytest.mark.model
def test_what_all_processes_run_into_is_told_once(tiny_model: Path, tmp_path: Path) -> None:
    config = a_training_config(tiny_model, tmp_path / "out", dataset={"inline": '{"text": 7}\n'}, processes=2)
    process = start(config, tmp_path)
    assert process.wait(120) == ExitCode.DATASET_INVALID
    assert outcome_of(tmp_path).reason == "DatasetInvalid"


def configuration(model: Path, output: Path, case: str, **changes: Any) -> Any:
    return a_training_config(model, output, **{**STEPS, "tracking": {"tensorboard": {}}, **CASES[case], **changes})


def environment(**own: str) -> dict[str, str]:
    return {**os.environ, **own}


def start(config: Any, folder: Path) -> subprocess.Popen[bytes]:
    """The trainer as its pod starts it, without a broker."""
    file = write_config(config, folder / "config.json")
    own = {"FINETUNE_CONFIG_PATH": str(file), "FINETUNE_TERMINATION_LOG": str(folder / "termination-log")}
    return subprocess.Popen([sys.executable, "-m", "finetune_trainer", "work"], env=environment(**own))


def outcome_of(folder: Path) -> Outcome:
    return Outcome.model_validate_json((folder / "termination-log").read_text())


class Ran(Outcome):
    folder: Path


def run(config: Any, folder: Path) -> Ran:
    process = start(config, folder)
    assert process.wait(250) == 0, outcome_of(folder).message
    outcome = outcome_of(folder)
    assert outcome.adapter
    path = Path(config.output.directory) / outcome.adapter.path
    record = json.loads((path / "run.json").read_text())
    assert record["environment"].get("processes") == config.processes
    return Ran(**outcome.model_dump(), folder=path)


def losses(ran: Ran) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(ran.folder.parent / "tensorboard" / ran.folder.name))
    events.Reload()
    return [scalar.value for scalar in events.Scalars("train/loss")]


def weights(ran: Ran) -> bytes:
    return (ran.folder / "adapter_model.safetensors").read_bytes()


def cosine(one: Ran, other: Ran) -> float:
    import torch
    from safetensors.torch import load

    a, b = (
        torch.cat([tensor.flatten() for _, tensor in sorted(load(weights(ran)).items())]).double()
        for ran in (one, other)
    )
    return float(a @ b / (a.norm() * b.norm()))


def wait_for_checkpoint(output: Path, process: subprocess.Popen[bytes], *, after: int) -> int:
    """For a checkpoint of a later step than `after`: two minutes are for importing torch on a busy machine."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        steps = [int(path.name.removeprefix("step-")) for path in output.glob(".jobs/*/checkpoints/step-*")]
        if max(steps, default=0) > after:
            return max(steps)
        time.sleep(0.005)
    raise AssertionError(f"no checkpoint after step {after}; exit code {process.poll()}")


def wait_until_gone(pid: str) -> None:
    """The other process of a killed run: the kernel ends it with the first one. A zombie has no command line."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if not Path(f"/proc/{pid}/cmdline").read_bytes():
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} of a killed run is still there")
