"""Checks of the output volume before a run writes to it: permission, and free space."""

import os
import shutil
from pathlib import Path

from finetune_api.reasons import Reason
from finetune_api.training import TrainingConfig
from finetune_trainer.errors import TrainingError


def check_output(config: TrainingConfig) -> None:
    """Raise TrainingError (SpecInvalid, StorageFull) if the output directory cannot be written."""
    parent = existing_parent(Path(config.output.directory))
    if not parent.is_dir():
        raise TrainingError(
            Reason.SPEC_INVALID, f"output.directory {config.output.directory}: {parent} is a file, expected a folder"
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise TrainingError(
            Reason.STORAGE_FULL,
            f"output.directory {config.output.directory} cannot be written by uid {os.getuid()}, or its volume is "
            "read-only; make it writable",
            # A file system also turns read-only after errors; another node may still see it intact.
            retryable=True,
        )


def free_disk(folder: Path) -> int:
    """Return the free bytes of the volume that holds, or will hold, `folder`."""
    return shutil.disk_usage(existing_parent(folder)).free


def existing_parent(folder: Path) -> Path:
    """Return the folder, or its nearest existing parent."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
