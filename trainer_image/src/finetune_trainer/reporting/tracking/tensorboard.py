"""TensorBoard: event files on the output volume."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_api.training import TrainingConfig
from finetune_trainer.reporting.tracking.tracker import Tracker

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def events_folder(config: TrainingConfig, run_id: str) -> Path:
    """Return the folder of event files: beside the adapters of the same name, so that their runs can be compared.

    It is not inside an adapter's folder, which is complete from its first moment, while event files grow.
    """
    return Path(config.output.directory) / config.output.adapter_name / "tensorboard" / run_id


class TensorBoardTracker(Tracker):
    """Writer of event files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Write the figures of a step; see `Tracker`."""
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            # Purge the steps that an interrupted attempt trained after its last checkpoint: they are trained again.
            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, *, succeeded: bool) -> None:
        """Close the event file; see `Tracker`."""
        if self._writer is not None:
            self._writer.close()
