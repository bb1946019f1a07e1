"""Dataset repositories of a Hugging Face hub: `hf://ORG/NAME[@REVISION]`, data files only, never code."""

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from finetune_api.reasons import Reason
from finetune_trainer.config import SourceSettings
from finetune_trainer.data.files import COMPRESSIONS, MAX_DATASET_BYTES, SUFFIXES, too_large
from finetune_trainer.data.problems import invalid, listed
from finetune_trainer.errors import TrainingError, is_storage_full

NO_ROWS: Final = ("dataset_infos.json", "dataset_info.json", "config.json")
"""JSON files that describe a dataset and hold no rows."""
TRAIN: Final = re.compile(r"(^|(?<!pre)[/_.-])train([/_.-]|$)")
"""Pattern of paths with the training split, for example data/train-00000-of-00002.parquet."""
SHARD: Final = re.compile(r"[/_-]\d+(-of-\d+(-[0-9a-f]{16})?)?(?=\.[^/]*$)")
"""Shard number of a split, before the suffixes: -00000-of-00002 (older ones with a hash), -0, _0 or /0000."""


def download_from_hub(uri: str, folder: Path, settings: SourceSettings, *, name: str) -> list[Path]:
    """Download the files of the training split, in the order of their names.

    Raises TrainingError (DatasetNotFound, DatasetInvalid); retryable if the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    repository, _, revision = uri.removeprefix("hf://").partition("@")
    token = settings.token.get_secret_value() if settings.token else None
    shown = f"{name} {uri}"
    try:
        hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
        info = hub.dataset_info(repository, revision=revision or None, files_metadata=True)
        files = training_files([sibling.rfilename for sibling in info.siblings or ()], shown)
        _check_size(info.siblings or (), files, shown)
        return [
            Path(hub.hf_hub_download(repository, file, repo_type="dataset", revision=info.sha, local_dir=folder))
            for file in files
        ]
    except GatedRepoError:
        raise _not_found(
            f"{shown} is gated; accept its terms, and set dataset.secretRef to a token that may read it"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise _not_found(f"{shown} does not exist, or this token may not see it; check dataset.secretRef") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        retryable = status >= 500 or status == 429
        raise _not_found(f"{shown} cannot be downloaded: the hub answered HTTP {status}", retryable=retryable) from None
    except Exception as error:  # the HTTP library of the hub's client has errors of its own, which are no OSError
        if isinstance(error, TrainingError | MemoryError) or is_storage_full(error):
            raise
        # Only the type, because the text may quote the token.
        raise _not_found(f"{shown}: the hub cannot be reached: {type(error).__name__}", retryable=True) from None


def training_files(files: Sequence[str], shown: str) -> list[str]:
    """Return the files of a repository's training split. Raises TrainingError (DatasetInvalid) if it is ambiguous."""
    data = sorted(file for file in files if _is_data(PurePosixPath(file)))
    training = [file for file in data if TRAIN.search(file)] or data
    # Shards of one split differ only in their number; train_sft and train_gen are two splits.
    splits = {SHARD.sub("*", file) for file in training}
    if len(splits) == 1 and (len(data) == 1 or TRAIN.search(training[0])):
        return training
    if not data:
        raise invalid(f"{shown} has no data files ({', '.join(SUFFIXES)}) among {listed(sorted(files))}")
    raise invalid(
        f"{shown} has several files and no single training split: {listed(data)}; put the training rows into one file"
    )


def _is_data(path: PurePosixPath) -> bool:
    suffix = PurePosixPath(path.stem).suffix if path.suffix.lower() in COMPRESSIONS else path.suffix
    return suffix.lower() in SUFFIXES and path.name not in NO_ROWS


def _check_size(siblings: Sequence[Any], files: Sequence[str], shown: str) -> None:
    if sum(sibling.size or 0 for sibling in siblings if sibling.rfilename in files) > MAX_DATASET_BYTES:
        raise too_large(shown)


def _not_found(message: str, *, retryable: bool = False) -> TrainingError:
    return TrainingError(Reason.DATASET_NOT_FOUND, message[:1].upper() + message[1:], retryable=retryable)
