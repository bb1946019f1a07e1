"""Fixtures of the trainer's tests: the tiny model on disk, and one finished run that several tests look at."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from finetune_api.outcome import Outcome, Progress
from finetune_api.training import TrainingConfig
from finetune_trainer.reporting.progress import Reporter
from finetune_trainer.training import FinetuningPipeline
from lab.fixtures.tiny_model import make_tiny_model, make_tiny_tokenizer
from lab.fixtures.training_runs import a_training_config

# A model this small gains nothing from a second thread, and loses much to it on a busy machine. Set before torch is loaded,
# and inherited by trainers that tests start as processes.
os.environ["OMP_NUM_THREADS"] = "1"


@dataclass
class FinishedRun:
    config: TrainingConfig
    outcome: Outcome
    progress: list[Progress]

    @property
    def adapter(self) -> Path:
        assert self.outcome.adapter is not None
        return Path(self.config.output.directory) / self.outcome.adapter.path


class Recorder:
    """A reporter that keeps what it was told."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []

    def report(self, progress: Progress) -> None:
        self.progress.append(progress)

    def close(self, outcome: Outcome | None = None) -> None:
        pass


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tokenizer():
    return make_tiny_tokenizer()


@pytest.fixture(scope="session")
def plain_tokenizer():
    return make_tiny_tokenizer(with_chat_template=False)


@pytest.fixture(scope="session")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A run of 40 steps with held-out rows; tests must not write into its output."""
    config = a_training_config(
        tiny_model,
        tmp_path_factory.mktemp("adapters"),
        hyperparameters={"batchSize": 4, "learningRate": 0.01, "maxSteps": 40},
        evaluation={
            "inline": '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Bye"}]}'
        },
    )
    recorder: Reporter = Recorder()
    outcome = FinetuningPipeline(config, reporter=recorder).run()
    return FinishedRun(config, outcome, recorder.progress)
