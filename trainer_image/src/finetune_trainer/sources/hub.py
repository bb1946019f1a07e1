"""Dataset repositories of a Hugging Face hub: `hf://ORG/NAME[@REVISION][?config=CONFIG&split=SPLIT]`, never code."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from finetune_api.reasons import Reason
from finetune_api.sources import parse_source
from finetune_trainer.config import SourceSettings
from finetune_trainer.data.files import MAX_DATASET_BYTES, MIB, SUFFIXES, too_large
from finetune_trainer.data.problems import invalid, listed
from finetune_trainer.errors import TrainingError, is_storage_full, one_line
from finetune_trainer.sources.splits import Split, choose_split, splits_of_card, splits_of_files

logger = logging.getLogger(__name__)

CARD: Final = "README.md"
"""Dataset card, whose front matter may declare configs and splits."""
MAX_CARD_BYTES: Final = MIB
"""Most bytes of a card that is read."""


def download_from_hub(uri: str, folder: Path, settings: SourceSettings, *, name: str) -> list[Path]:
    """Download the files of the chosen split, or of the training split, in the order of their names.

    Raises TrainingError (DatasetNotFound, DatasetInvalid); retryable if the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    source = parse_source(uri, ("hf",))
    repository, _, revision = f"{source.name}/{source.path}".partition("@")
    token = settings.token.get_secret_value() if settings.token else None
    shown = f"{name} {uri}"
    try:
        hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
        info = hub.dataset_info(repository, revision=revision or None, files_metadata=True)

        def get(file: str) -> Path:
            return Path(hub.hf_hub_download(repository, file, repo_type="dataset", revision=info.sha, local_dir=folder))

        siblings = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
        card = _read_card(get(CARD), shown) if 0 < siblings.get(CARD, 0) <= MAX_CARD_BYTES else {}
        splits = find_splits(card, list(siblings), shown)
        split = choose_split(splits, source.config, source.split, shown)
        _log_choice(split, splits, shown)
        _check_size(sum(siblings[file] for file in split.files), shown)
        return [get(file) for file in split.files]
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


def find_splits(card: dict[str, Any], files: Sequence[str], shown: str) -> list[Split]:
    """Return the splits that a card declares, or that the names of files stand for. Raises TrainingError without any."""
    splits = splits_of_card(card, files, shown) or splits_of_files(files)
    if not splits:
        raise invalid(f"{shown} has no data files ({', '.join(SUFFIXES)}) among {listed(sorted(files))}")
    return splits


def _check_size(size: int, shown: str) -> None:
    if size > MAX_DATASET_BYTES:
        raise too_large(shown)


def _read_card(path: Path, shown: str) -> dict[str, Any]:
    """Return the front matter of a card; nothing, with a warning, if it is broken: the files' names then decide."""
    from huggingface_hub.repocard import metadata_load

    try:
        return metadata_load(path) or {}
    except Exception as error:  # YAML has errors of its own, and more than one
        logger.warning(
            "the card is not used: its metadata cannot be read dataset=%s problem=%s", shown, one_line(error)
        )
        return {}


def _log_choice(split: Split, splits: Sequence[Split], shown: str) -> None:
    others = [f"{other.config}/{other.name}" for other in splits if other != split]
    logger.info(
        "split chosen dataset=%s config=%s split=%s files=%d others=%s",
        shown,
        split.config,
        split.name,
        len(split.files),
        listed(others),
    )


def _not_found(message: str, *, retryable: bool = False) -> TrainingError:
    return TrainingError(Reason.DATASET_NOT_FOUND, message[:1].upper() + message[1:], retryable=retryable)
