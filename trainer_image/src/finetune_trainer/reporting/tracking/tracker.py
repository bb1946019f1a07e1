"""Interface of a tracker, and the values that every tracker records of a run."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Final

from finetune_api.outcome import Progress
from finetune_api.training import TrainingConfig

REQUEST_TIMEOUT: Final = 10
"""Seconds that a request to a tracker may take."""


class Tracker(ABC):
    """An open run of a tracker. Every method may fail or be slow."""

    @abstractmethod
    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Record the figures of a step."""

    @abstractmethod
    def finish(self, *, succeeded: bool) -> None:
        """Send the remaining figures; a later attempt may resume a run that did not succeed."""


def figures_of(progress: Progress) -> dict[str, float]:
    """Return the figures of a step, by the names of transformers' callbacks."""
    figures: dict[str, float | None] = {
        "train/loss": progress.loss,
        "train/learning_rate": progress.learning_rate,
        "train/epoch": progress.epoch,
        "train/tokens_per_second": progress.tokens_per_second,
        "train/peak_memory_bytes": progress.peak_memory_bytes,
    }
    if progress.evaluation_step == progress.step:
        figures |= {f"eval/{name.removeprefix('eval_')}": value for name, value in progress.evaluation.items()}
    return {name: value for name, value in figures.items() if value is not None}


def parameters_of(config: TrainingConfig) -> dict[str, Any]:
    """Return the settings of a run, flat: without rows, and without anything that differs between attempts."""
    document = config.to_dict()
    settings: dict[str, Any] = {n: document[n] for n in ("hyperparameters", "lora", "dpo") if n in document}
    origins = {
        "model": config.model.source or config.model.path,
        "dataset": ", ".join(rows.source or rows.path or "inline" for rows in config.dataset.sources or ())
        or config.dataset.source
        or config.dataset.path,
    }
    return {**_flat(settings), **{name: value for name, value in origins.items() if value}}


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def run_name(config: TrainingConfig) -> str:
    """Return the name of a run: that of its job, or of its adapter."""
    return config.job.name if config.job else config.output.adapter_name
