"""Downloads of datasets: `https://`, `s3://` and `hf://` become local files.

A user names the address, and the trainer's network may reach hosts that the user's cannot. Every connection therefore goes
to a checked address, and is bounded in time and bytes.
"""

from pathlib import Path

from finetune_trainer.config import SourceSettings
from finetune_trainer.sources.hub import download_from_hub
from finetune_trainer.sources.s3 import s3_request
from finetune_trainer.sources.web import download

__all__ = ["fetch"]


def fetch(uri: str, folder: Path, settings: SourceSettings, *, name: str) -> list[Path]:
    """Return the files of a dataset's `path`: the local file itself, or downloads in `folder`.

    Raises TrainingError (DatasetNotFound, DatasetInvalid, SpecInvalid); retryable if the server may recover.
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
