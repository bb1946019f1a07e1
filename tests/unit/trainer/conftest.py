"""Fixtures of the trainer's tests: the tiny model on disk, and one finished run that several tests check."""

import os
from pathlib import Path

import pytest

from finetune_trainer.training import FinetuningPipeline
from lab.fixtures.reporters import RecordingReporter
from lab.fixtures.tiny_model import make_tiny_model, make_tiny_tokenizer
from lab.fixtures.training_runs import FinishedRun, a_training_config

# A model this small gains nothing from a second thread, and loses much to it on a busy machine. Set before torch is loaded,
# and inherited by trainers that tests start as processes.
os.environ["OMP_NUM_THREADS"] = "1"


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
    recorder = RecordingReporter()
    outcome = FinetuningPipeline(config, reporter=recorder).run()
    return FinishedRun(config, outcome, recorder.progress)
