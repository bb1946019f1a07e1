"""`finetune run`, whole: the real operator, trainer, server and probe on a tiny model."""

import json
import signal
from pathlib import Path

import pytest

from lab.fixtures.tiny_model import as_jsonl, chat_rows
from support.cli.finetune_command import Command, a_job, write_manifest

pytestmark = pytest.mark.model

LONG = {"epochs": 100, "batchSize": 4, "learningRate": 0.001}
"""200 steps: some seconds, in which a test can stop it."""


def test_a_job_is_trained_served_verified_and_asked_and_then_served_again_without_training(command: Command) -> None:
    job = a_job(
        serve={},
        hyperparameters={"epochs": 20, "batchSize": 4, "learningRate": 0.01},
        evaluation={"inline": as_jsonl(chat_rows(2))},
    )
    write_manifest(command.manifest, job)
    code, output = command.run("--ask=How do I reset my password?", "--score=2")
    assert code == 0, output
    assert "FingerprintMatched: The answers match the tuned model" in output
    assert "Held-out rows answered exactly right" in output
    assert command.condition("AdapterVerified")["status"] == "True"
    source = command.status["adapter"]["uri"].removeprefix("pvc://")
    assert (command.work / "claims" / source / "report.html").exists()
    pods = set((command.work / "pods").iterdir())

    code, output = command.run()
    assert code == 0, output
    assert "served and verified again" in output
    (server,) = set((command.work / "pods").iterdir()) - pods
    assert "-server-" in server.name

    write_manifest(command.manifest, a_job(serve={}, hyperparameters={"epochs": 3}))
    code, output = command.run()
    assert code == 2
    assert "spec.hyperparameters.epochs (20" in output


def test_a_run_that_is_interrupted_and_then_killed_is_resumed_from_its_checkpoints(command: Command) -> None:
    write_manifest(command.manifest, a_job(hyperparameters=LONG, checkpoint={"everySteps": 20}))
    first = command.start()
    command.wait_for("steps", lambda: command.status.get("progress", {}).get("step", 0) > 20)
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=100)
    assert first.returncode == 130, output
    assert "the same command resumes" in output
    assert command.status["lastFailure"]["reason"] == "Interrupted"
    stopped_at = command.status["checkpoints"][-1]["step"]

    second = command.start()
    command.wait_for("the second attempt", lambda: command.status.get("attempt") == 2)
    command.wait_for("its steps", lambda: command.status["progress"]["step"] > stopped_at)
    second.kill()
    second.wait()

    code, output = command.run()
    assert code == 0, output
    assert command.status["phase"] == "Succeeded"
    assert command.status["attempt"] == 3
    assert command.status.get("failedAttempts", 0) == 0
    record = json.loads(_adapter(command).joinpath("run.json").read_text())
    assert "200" in json.dumps(record)


def test_a_job_that_fails_ends_with_its_reason_and_starts_anew_once_it_is_mended(command: Command) -> None:
    write_manifest(command.manifest, a_job(dataset={"inline": '{"prompt": "a"}'}))
    code, output = command.run()
    assert code == 1
    assert "Failed: DatasetInvalid: " in output
    write_manifest(command.manifest, a_job())
    code, output = command.run()
    assert code == 0, output
    assert "ended with DatasetInvalid; it starts anew" in output


def test_a_model_that_is_not_there_is_refused_before_anything_starts(command: Command) -> None:
    write_manifest(command.manifest, a_job())
    command.arguments = []
    code, output = command.run()
    assert code == 2
    assert "--model FOLDER" in output
    assert not (command.work / "pods").exists()


def test_a_work_directory_that_cannot_be_written_is_refused_in_words(command: Command) -> None:
    write_manifest(command.manifest, a_job())
    command.work = command.manifest / "work"
    code, output = command.run()
    assert code == 2
    assert f"--work-dir {command.work} cannot be written (Not a directory)" in output


def _adapter(command: Command) -> Path:
    source: str = command.status["adapter"]["uri"].removeprefix("pvc://")
    return command.work / "claims" / source
