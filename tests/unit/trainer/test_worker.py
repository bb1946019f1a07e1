"""The pod's command: exactly one run with, without or despite a broker, and an Outcome whatever happens."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.artifacts import read_verified
from finetune_api.contract import ExitCode, queue_name
from finetune_api.outcome import Outcome, Result
from finetune_api.reasons import Reason
from finetune_api.training import TrainingConfig
from finetune_trainer.config import TrainerSettings
from finetune_trainer.tasks import finetuning_task, worker
from finetune_trainer.training import FinetuningPipeline
from lab.fixtures.training_runs import a_training_config, an_attempt, write_config

pytestmark = pytest.mark.model

LONG = {"batchSize": 4, "learningRate": 0.001, "maxSteps": 150}
"""Enough steps to be interrupted in, whatever the machine."""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainerSettings:
    """Settings of a pod, in the environment as the task reads them again."""
    monkeypatch.setenv("FINETUNE_CONFIG_PATH", str(tmp_path / "config.json"))
    monkeypatch.setenv("FINETUNE_TERMINATION_LOG", str(tmp_path / "termination-log"))
    monkeypatch.setenv("FINETUNE_PROGRESS_INTERVAL", "0.05")
    return TrainerSettings()


@pytest.fixture(autouse=True)
def _signal_handlers() -> Iterator[None]:
    """`work` installs handlers, and Celery is quieted; both are this process's."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A real Redis on a free port, as the worker's broker."""
    program = shutil.which("redis-server")
    if not program:
        pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
    port = free_port()
    process = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
    )
    wait_until(lambda: answers(port), "redis answers")
    monkeypatch.setenv("FINETUNE_BROKER_URL", f"redis://127.0.0.1:{port}/0")
    yield process
    process.kill()
    process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s until {what}"
        time.sleep(0.02)


def outcome_of(settings: TrainerSettings) -> Outcome:
    return Outcome.model_validate_json(settings.termination_log.read_text())


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The run ids of all pipelines that are started from now on."""
    runs: list[str] = []
    original = FinetuningPipeline.run

    def counted(self: FinetuningPipeline) -> Outcome:
        runs.append(self.run_id)
        return original(self)

    monkeypatch.setattr(FinetuningPipeline, "run", counted)
    return runs


@pytest.mark.parametrize("broker", ["none", "refused", "deaf"])
def test_a_pod_without_a_reachable_broker_trains_once_all_the_same(
    settings: TrainerSettings, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broker: str
) -> None:
    write_config(a_training_config(tiny_model, tmp_path / "out"), settings.config_path)
    runs = count_runs(monkeypatch)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        port = {"none": None, "refused": free_port(), "deaf": deaf.getsockname()[1]}[broker]
        if port:
            monkeypatch.setenv("FINETUNE_BROKER_URL", f"redis://127.0.0.1:{port}/0")
            monkeypatch.setenv("FINETUNE_BROKER_TIMEOUT", "1")
        assert worker.work(TrainerSettings()) is ExitCode.SUCCEEDED
    assert runs == ["uid-1"]
    outcome = outcome_of(settings)
    assert outcome.result is Result.SUCCEEDED
    assert outcome.adapter is not None
    assert read_verified(tmp_path / "out" / outcome.adapter.path)[1] == outcome.adapter.digest


def test_with_a_broker_the_run_is_a_celery_task_whose_state_anyone_can_read(
    redis: subprocess.Popen[bytes],
    settings: TrainerSettings,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from finetune_trainer.tasks.celery_app import create_app

    settings = TrainerSettings()
    write_config(a_training_config(tiny_model, tmp_path / "out"), settings.config_path)
    runs = count_runs(monkeypatch)
    app = create_app(str(settings.broker_url))
    # A message that a killed predecessor of the same attempt left behind.
    app.send_task("finetune_trainer.tasks.finetuning_task", args=["uid-1", 1], queue=queue_name("uid-1", 1))
    assert worker.work(settings) is ExitCode.SUCCEEDED
    assert runs == ["uid-1"]
    meta = app.backend.get_task_meta("uid-1-1")
    assert meta["status"] == "SUCCESS"
    assert Outcome.model_validate(meta["result"]) == outcome_of(settings)


def test_a_task_that_raises_is_reported_with_its_cause(
    redis: subprocess.Popen[bytes],
    settings: TrainerSettings,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(finetuning_task, "_pod_reporter", broken)
    settings = TrainerSettings()
    write_config(a_training_config(tiny_model, tmp_path / "out"), settings.config_path)
    assert worker.work(settings) is ExitCode.BUG
    assert outcome_of(settings).message == "KeyError: 'surprise'"


def test_a_message_that_never_arrives_is_not_waited_for(
    redis: subprocess.Popen[bytes],
    settings: TrainerSettings,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FINETUNE_MESSAGE_TIMEOUT", "0.5")
    monkeypatch.setattr(worker, "_send", lambda *_: True)
    write_config(a_training_config(tiny_model, tmp_path / "out"), settings.config_path)
    runs = count_runs(monkeypatch)
    assert worker.work(TrainerSettings()) is ExitCode.SUCCEEDED
    assert runs == ["uid-1"]


def test_a_redis_that_is_killed_in_mid_training_changes_nothing(
    redis: subprocess.Popen[bytes],
    settings: TrainerSettings,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from finetune_trainer.tasks.celery_app import create_app

    settings = TrainerSettings()
    config = a_training_config(tiny_model, tmp_path / "out", hyperparameters=LONG, checkpoint={"everySteps": 50})
    write_config(config, settings.config_path)
    runs = count_runs(monkeypatch)
    progress: list[dict[str, Any]] = []

    def kill_when_training() -> None:
        backend = create_app(str(settings.broker_url)).backend
        wait_until(
            lambda: backend.get_task_meta("uid-1-1", cache=False)["status"] == "PROGRESS", "training is reported"
        )
        progress.append(backend.get_task_meta("uid-1-1", cache=False)["result"])
        redis.kill()

    killer = threading.Thread(target=kill_when_training)
    killer.start()
    assert worker.work(settings) is ExitCode.SUCCEEDED
    killer.join()
    assert runs == ["uid-1"]
    assert progress[0]["step"] < 150
    outcome = outcome_of(settings)
    assert outcome.step == 150
    assert [p.name for p in (tmp_path / "out/support-tone").iterdir()] == ["uid-1"]


def test_a_configuration_that_cannot_be_read_is_an_outcome_too(settings: TrainerSettings) -> None:
    settings.config_path.write_text("{}")
    assert worker.work(settings) is ExitCode.CONFIG_INVALID
    outcome = outcome_of(settings)
    assert (outcome.result, outcome.reason, outcome.retryable) == (Result.FAILED, Reason.SPEC_INVALID, False)
    assert "model: required, but missing" in outcome.message


def test_a_bug_is_reported_in_one_line_and_worth_another_attempt(
    settings: TrainerSettings, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: FinetuningPipeline, *_: Any) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(FinetuningPipeline, "add_lora", broken)
    write_config(a_training_config(tiny_model, tmp_path / "out"), settings.config_path)
    assert worker.work(settings) is ExitCode.BUG
    outcome = outcome_of(settings)
    assert (outcome.reason, outcome.retryable) == (Reason.TRAINER_CRASHED, True)
    assert outcome.message == "KeyError: 'surprise'"


def test_sigterm_and_sigkill_cost_time_but_never_the_result(
    settings: TrainerSettings, tiny_model: Path, tmp_path: Path
) -> None:
    """Attempt 1 is evicted, attempt 2 is killed outright, attempt 3 ends with the bytes of a run that nobody disturbed."""
    straight = a_training_config(tiny_model, tmp_path / "straight", hyperparameters=LONG, checkpoint={"everySteps": 20})
    FinetuningPipeline(straight).run()

    def start(attempt: int) -> subprocess.Popen[bytes]:
        config = a_training_config(
            tiny_model,
            tmp_path / "out",
            job=an_attempt(attempt),
            hyperparameters=LONG,
            checkpoint={"everySteps": 20},
        )
        write_config(config, settings.config_path)
        # A variable that is set and empty means: no broker.
        environment = {**os.environ, "FINETUNE_BROKER_URL": ""}
        return subprocess.Popen([sys.executable, "-m", "finetune_trainer", "work"], env=environment)

    def checkpoints() -> list[int]:
        return sorted(int(p.name[5:]) for p in (tmp_path / "out/.jobs/uid-1/checkpoints").glob("step-*"))

    first = start(1)
    wait_until(lambda: bool(checkpoints()), "the first attempt has a checkpoint")
    first.terminate()
    assert first.wait(60) == ExitCode.INTERRUPTED
    interrupted = outcome_of(settings)
    assert (interrupted.result, interrupted.reason, interrupted.retryable) == (
        Result.INTERRUPTED,
        Reason.INTERRUPTED,
        True,
    )
    assert interrupted.checkpoint_step == interrupted.step == checkpoints()[-1]

    reached = checkpoints()[-1]
    second = start(2)
    wait_until(lambda: checkpoints()[-1] > reached, "the second attempt has gone further")
    second.kill()
    second.wait(60)
    assert not (tmp_path / "out/support-tone/uid-1").exists()

    last = a_training_config(
        tiny_model, tmp_path / "out", job=an_attempt(3), hyperparameters=LONG, checkpoint={"everySteps": 20}
    )
    assert FinetuningPipeline(last).run().result is Result.SUCCEEDED
    adapters = [tmp_path / folder / "support-tone/uid-1/adapter_model.safetensors" for folder in ("straight", "out")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_an_attempt_that_wakes_up_late_commits_nothing_and_says_so(
    settings: TrainerSettings, tiny_model: Path, tmp_path: Path
) -> None:
    """Attempt 1 sleeps, as on a node that lost its network; attempt 2 finishes the job; then attempt 1 goes on."""

    def config(attempt: int) -> TrainingConfig:
        changes = {"hyperparameters": LONG, "checkpoint": {"everySteps": 5}, "job": an_attempt(attempt)}
        return a_training_config(tiny_model, tmp_path / "out", **changes)

    def files() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}

    write_config(config(1), settings.config_path)
    sleeper = subprocess.Popen(
        [sys.executable, "-m", "finetune_trainer", "work"], env={**os.environ, "FINETUNE_BROKER_URL": ""}
    )
    try:
        checkpoints = tmp_path / "out/.jobs/uid-1/checkpoints"
        wait_until(lambda: any(checkpoints.glob("step-*")), "the first attempt has a checkpoint")
        sleeper.send_signal(signal.SIGSTOP)
        assert FinetuningPipeline(config(2)).run().result is Result.SUCCEEDED
        finished = files()
        sleeper.send_signal(signal.SIGCONT)
        assert sleeper.wait(60) == ExitCode.FENCED
    finally:
        sleeper.kill()
    assert files() == finished
    assert not checkpoints.exists()
    outcome = outcome_of(settings)
    assert (outcome.result, outcome.reason) == (Result.INTERRUPTED, Reason.FENCED)
