"""A tiny model, and the command that runs jobs of it."""

import signal
from pathlib import Path

import pytest

from lab.fixtures.tiny_model import make_tiny_model
from support.cli.finetune_command import Command


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def command(tmp_path: Path, tiny_model: Path, request: pytest.FixtureRequest) -> Command:
    made = Command(tmp_path / "job.yaml", tmp_path / "work", [f"--model={tiny_model}"])

    def end_all() -> None:
        for process in made.started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(90)

    request.addfinalizer(end_all)
    return made
