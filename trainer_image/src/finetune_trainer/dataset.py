"""Dataset of a run: `data` applied to a TrainingConfig, for training and for `validate` alike."""

import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from finetune_api.reasons import Reason
from finetune_api.training import RowsConfig, TrainingConfig
from finetune_api.v1alpha1 import DatasetFormat
from finetune_trainer import data
from finetune_trainer.config import SourceSettings
from finetune_trainer.data.report import DatasetReport, build_report, remarks
from finetune_trainer.errors import TrainingError, on_scratch
from finetune_trainer.sources import fetch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CACHE_FOLDER: Final = ".cache/tokens"
"""Folder of the output volume with tokenized datasets, shared by all jobs that write there."""
DOWNLOADED: Final = "downloaded.json"
"""List of the files in a download folder; written once all of them are complete."""


@dataclass(frozen=True)
class Examples:
    """Rows that were read and passed all checks."""

    training: list[data.Example]
    evaluation: list[data.Example]
    row_format: data.Format
    digest: str
    """Digest of the training rows, before any were held out."""
    evaluation_digest: str | None
    """Digest of the evaluation rows, if they are a dataset of their own."""


@dataclass(frozen=True)
class PreparedDataset:
    """Token ids and labels, with a report about them."""

    training: data.Tokenized
    evaluation: data.Tokenized | None
    max_length: int
    report: DatasetReport


def token_cache(config: TrainingConfig) -> data.TokenCache:
    """Return the cache on the run's output volume."""
    return data.TokenCache(Path(config.output.directory) / CACHE_FOLDER)


def read_examples(config: TrainingConfig, settings: SourceSettings | None = None) -> Examples:
    """Read and check all rows, downloading them if necessary; needs neither model nor torch.

    Raises TrainingError (DatasetNotFound, DatasetInvalid, SpecInvalid).
    """
    dataset = config.dataset
    settings = settings or SourceSettings()
    training, row_format, digest = _read_part(config, dataset, dataset.format, settings, "dataset")
    data.require_format(row_format, pairs=config.dpo is not None)
    evaluation: list[data.Example] = []
    evaluation_digest = None
    if config.evaluation:
        evaluation, _, evaluation_digest = _read_part(config, config.evaluation, row_format, settings, "evaluation")
    elif dataset.evaluation_fraction:
        training, evaluation = data.split_rows(training, dataset.evaluation_fraction, config.hyperparameters.seed)
    return Examples(training, evaluation, row_format, digest, evaluation_digest)


def _read_part(
    config: TrainingConfig, rows: RowsConfig, row_format: DatasetFormat, settings: SourceSettings, name: str
) -> tuple[list[data.Example], data.Format, str]:
    with _download_folder(settings, name) as folder:
        files = _fetch_files(rows.path, folder, settings, name) if rows.path else []
        digest = data.digest_rows(rows, files, name)
        examples, found = data.read_examples(
            rows,
            row_format=row_format,
            columns=config.dataset.columns,
            loss_on=config.hyperparameters.loss_on,
            name=name,
            files=files,
        )
        # Cached tokens and the adapter's record refer to this digest, so it must be that of the rows that were parsed.
        if data.digest_rows(rows, files, name) != digest:
            raise TrainingError(
                Reason.DATASET_INVALID, f"{name} changed while it was read; leave it unchanged", retryable=True
            )
        return examples, found, digest


@contextlib.contextmanager
def _download_folder(settings: SourceSettings, name: str) -> Iterator[Path]:
    """Provide a folder for downloads: a temporary one, or one that another process may have downloaded into."""
    if settings.downloads is None:
        with tempfile.TemporaryDirectory(prefix="finetune-rows-") as folder:
            yield Path(folder)
        return
    kept = settings.downloads / name
    kept.mkdir(parents=True, exist_ok=True)
    yield kept
    if not settings.keep_downloads:
        shutil.rmtree(kept, ignore_errors=True)


def _fetch_files(path: str, folder: Path, settings: SourceSettings, name: str) -> list[Path]:
    listing = folder / DOWNLOADED
    if listing.is_file():
        return [folder / file for file in json.loads(listing.read_text())]
    with on_scratch(f"{name} {path}"):
        files = fetch(path, folder, settings, name=name)
    if settings.keep_downloads and "://" in path:
        listing.write_text(json.dumps([str(file.relative_to(folder)) for file in files]))
    return files


def prepare_dataset(
    config: TrainingConfig,
    examples: Examples,
    tokenizer: "PreTrainedTokenizerBase",
    model_config: "PretrainedConfig",
    *,
    cache: data.TokenCache | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> PreparedDataset:
    """Tokenize examples, or load their tokens from the cache, and build the dataset report.

    `check_stop` is called between batches and may raise. Raises TrainingError (DatasetInvalid).
    """
    # The two answers of a preference pair differ, so only they can carry loss.
    loss_on = "completion" if examples.row_format == "preference" else config.hyperparameters.loss_on
    max_length = min(config.hyperparameters.max_length, model_length(model_config) or config.hyperparameters.max_length)
    part = partial(
        _tokenize_part,
        config,
        examples,
        tokenizer,
        max_length=max_length,
        loss_on=loss_on,
        cache=cache,
        check_stop=check_stop,
    )
    training = part(examples.training, name="dataset")
    evaluation = part(examples.evaluation, name="evaluation") if examples.evaluation else None
    report = build_report(
        training,
        evaluation,
        digest=examples.digest,
        row_format=examples.row_format,
        max_length=max_length,
        loss_on=loss_on,
    )
    return PreparedDataset(training, evaluation, max_length, report)


def _tokenize_part(
    config: TrainingConfig,
    examples: Examples,
    tokenizer: "PreTrainedTokenizerBase",
    part: list[data.Example],
    *,
    name: str,
    max_length: int,
    loss_on: str,
    cache: data.TokenCache | None,
    check_stop: Callable[[], None],
) -> data.Tokenized:
    """Tokenize training or evaluation examples; pairs as two rows each."""
    pairs = examples.row_format == "preference"
    rows = data.answers_as_examples(part) if pairs else part
    key = ""
    # Few characters are tokenized faster than the cache is read.
    if cache and data.characters(rows) >= data.MIN_CHARACTERS:
        key = data.cache_key(tokenizer, name=name, maxLength=max_length, **_cache_inputs(config, examples))
    tokenized = cache.load(key) if cache and key else None
    if not tokenized:
        tokenized = data.tokenize(
            rows, tokenizer, max_length=max_length, loss_on=loss_on, name=name, check_stop=check_stop
        )
        if cache and key:
            cache.store(key, tokenized)
    return data.require_whole_pairs(tokenized, max_length, name) if pairs else tokenized


def _cache_inputs(config: TrainingConfig, examples: Examples) -> dict[str, Any]:
    """Return the settings that determine the examples of a part and their loss."""
    fraction = config.dataset.evaluation_fraction
    return {
        "dataset": examples.digest,
        "evaluation": examples.evaluation_digest,
        "format": config.dataset.format,
        "columns": config.dataset.columns.to_dict() if config.dataset.columns else None,
        "split": [fraction, config.hyperparameters.seed] if fraction else None,
        "lossOn": config.hyperparameters.loss_on,
    }


def model_length(model_config: "PretrainedConfig") -> int | None:
    """Return the number of tokens that the model has positions for; None if its configuration has none."""
    length: int | None = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    return length


def log_report(report: DatasetReport) -> None:
    """Log a summary of the report, and a warning for each probable mistake."""
    training = report.training
    logger.info(
        "dataset ready rows=%d evaluation_rows=%d format=%s tokens=%d loss_tokens=%d longest=%d max_length=%d "
        "truncated=%d dropped=%d duplicates=%d overlap=%d digest=%s",
        training.rows,
        report.evaluation.rows if report.evaluation else 0,
        report.format,
        training.tokens,
        training.loss_tokens,
        training.lengths.longest,
        report.max_length,
        training.truncated.rows,
        training.dropped.rows,
        training.duplicate_rows,
        report.overlap,
        report.digest[:19],
    )
    for remark in remarks(report):
        logger.warning("dataset: %s", remark)
