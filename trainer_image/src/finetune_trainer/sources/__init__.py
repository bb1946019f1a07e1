"""Bringing rows here that are somewhere else: `https://`, `s3://` and `hf://` become files in a folder of ours.

A user names the address, and the trainer's network may reach what the user's does not. So every connection goes to an
address that was checked, takes bounded time and brings bounded bytes.
"""

from pathlib import Path

from finetune_trainer.config import SourceSettings
from finetune_trainer.sources.hub import download_from_hub
from finetune_trainer.sources.s3 import s3_request
from finetune_trainer.sources.web import download

__all__ = ["fetch"]


def fetch(uri: str, folder: Path, settings: SourceSettings, *, name: str) -> list[Path]:
    """Files of a dataset's `path`: itself if it is one, else what was downloaded into `folder`.

    Raises TrainingError (DatasetNotFound, DatasetInvalid, SpecInvalid); retryable if the other end may recover.
    """
    scheme = uri.partition("://")[0] if "://" in uri else ""
    if scheme == "hf":
        return download_from_hub(uri, folder, settings, name=name)
    if scheme == "https":
        headers = {"Authorization": f"Bearer {settings.token.get_secret_value()}"} if settings.token else {}
        return [download(uri, headers, folder, settings, name=f"{name} {uri}")]
    if scheme == "s3":
        url, headers = s3_request(uri, settings)
        return [download(url, headers, folder, settings, name=f"{name} {uri}")]
    return [Path(uri)]
