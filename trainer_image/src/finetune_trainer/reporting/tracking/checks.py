"""Checks of the configured trackers before a run: their libraries, and the addresses of their servers."""

import importlib
import socket
from typing import Final
from urllib.parse import urlsplit

from finetune_api.reasons import Reason
from finetune_api.training import TrainingConfig
from finetune_api.v1alpha1 import Tracking
from finetune_trainer.config import SourceSettings
from finetune_trainer.errors import TrainingError
from finetune_trainer.sources.addresses import is_public

PACKAGES: Final = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny", "wandb": "wandb"}
"""Package by tracker, whose name is also the module's; all of them are the extra `tracking` of finetune-trainer."""


def check_trackers(config: TrainingConfig) -> None:
    """Raise TrainingError (SpecInvalid) if a library is not installed, or a server's address is not allowed."""
    tracking = config.tracking or Tracking()
    for name, package in PACKAGES.items():
        if getattr(tracking, name) is None:
            continue
        try:
            # Imported before training, because the first import takes seconds.
            importlib.import_module(name)
        except ImportError:
            raise TrainingError(
                Reason.SPEC_INVALID,
                f"tracking.{name} needs the Python package {package}, which is not installed; remove tracking.{name}, or use "
                "a trainer image with the extra finetune-trainer[tracking]",
            ) from None
    if tracking.mlflow and not tracking.mlflow.uri.startswith("file:"):
        _check_address("tracking.mlflow.uri", tracking.mlflow.uri)
    if tracking.wandb and tracking.wandb.base_url:
        _check_address("tracking.wandb.baseUrl", tracking.wandb.base_url)


def _check_address(field: str, url: str) -> None:
    """Apply the rule for downloads: the address must be public. An unknown host only costs figures, so it passes."""
    host = urlsplit(url).hostname or ""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return
    if not SourceSettings().allow_private and (refused := [address for address in found if not is_public(address)]):
        raise TrainingError(
            Reason.SPEC_INVALID,
            f"{field}: {host} has the address {refused[0]}, which is not public; use a public server, or ask the administrator "
            "to set workloads.allowPrivateSources of the chart (FINETUNE_ALLOW_PRIVATE_SOURCES of the trainer)",
        )
