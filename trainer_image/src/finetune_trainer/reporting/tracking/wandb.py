"""Weights & Biases: a run on its server."""

import tempfile
from collections.abc import Mapping

from finetune_api.training import TrainingConfig
from finetune_api.v1alpha1 import WandbTracking
from finetune_trainer.reporting.tracking.tracker import REQUEST_TIMEOUT, Tracker, parameters_of, run_name


class WandbTracker(Tracker):
    """A run of Weights & Biases; the API key comes from its own environment variable."""

    def __init__(self, settings: WandbTracking, config: TrainingConfig, run_id: str) -> None:
        import wandb

        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            name=run_name(config),
            id=run_id,
            resume="allow",
            config=parameters_of(config),
            dir=tempfile.gettempdir(),
            settings=wandb.Settings(
                **({"base_url": settings.base_url} if settings.base_url else {}),
                init_timeout=REQUEST_TIMEOUT,
                finish_timeout=REQUEST_TIMEOUT,
                silent=True,
                # Send figures only: nothing about the machine, its files or its output.
                console="off",
                disable_code=True,
                x_disable_machine_info=True,
            ),
        )

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Send the figures of a step; see `Tracker`."""
        self._run.log(dict(figures), step=step)

    def finish(self, *, succeeded: bool) -> None:
        """Finish the run; see `Tracker`."""
        self._run.finish(exit_code=0 if succeeded else 1)
