"""Training configurations with defaults for everything but the point of a test, and the rows they train on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_model import as_jsonl, chat_rows

from finetune_api.outcome import Outcome, Progress
from finetune_api.training import TrainingConfig


def a_training_config(model: Path, output: Path, /, **changes: Any) -> TrainingConfig:
    """Six steps of the tiny model. `changes` replaces whole sections: `dataset={...}`, `job=None`, `evaluation={...}`."""
    document: dict[str, Any] = {
        "job": {"namespace": "team", "name": "support-tone", "uid": "uid-1", "attempt": 1},
        "model": {"path": str(model), "source": "pvc://models/tiny"},
        "dataset": {"inline": as_jsonl(chat_rows(8))},
        "hyperparameters": {"batchSize": 4, "learningRate": 0.01, "epochs": 3},
        "checkpoint": {"everySteps": 2},
        "output": {"directory": str(output), "adapterName": "support-tone", "claim": "adapters"},
    }
    document.update(changes)
    return TrainingConfig.model_validate({key: value for key, value in document.items() if value is not None})


def an_attempt(number: int) -> dict[str, Any]:
    """The identity of one attempt of the default job."""
    return {"namespace": "team", "name": "support-tone", "uid": "uid-1", "attempt": number}


def write_config(config: TrainingConfig, path: Path) -> Path:
    """The configuration as the operator mounts it."""
    path.write_text(json.dumps(config.to_dict()))
    return path


class AtStep:
    """A reporter that does something once a step is finished."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self._step = step
        self._action = action

    def report(self, progress: Progress) -> None:
        if progress.step == self._step:
            self._action()

    def close(self, outcome: Outcome | None = None) -> None:
        pass
