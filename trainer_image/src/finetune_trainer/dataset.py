"""The dataset of a run: `data` applied to a TrainingConfig, alike for training and for `validate`."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune_api.training import TrainingConfig
from finetune_trainer import data
from finetune_trainer.data.report import DatasetReport, build_report, remarks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examples:
    """Rows that were read and found to be right."""

    training: list[data.Example]
    evaluation: list[data.Example]
    row_format: data.Format
    digest: str


@dataclass(frozen=True)
class PreparedDataset:
    """Token ids and labels, and what they are like."""

    training: data.Tokenized
    evaluation: data.Tokenized | None
    max_length: int
    report: DatasetReport


def read_examples(config: TrainingConfig) -> Examples:
    """Read and check all rows; needs neither model nor torch. Raises TrainingError (DatasetNotFound, DatasetInvalid)."""
    dataset = config.dataset
    loss_on = config.hyperparameters.loss_on
    training, row_format = data.read_examples(
        dataset, row_format=dataset.format, columns=dataset.columns, loss_on=loss_on
    )
    data.require_single_answers(row_format)
    evaluation: list[data.Example] = []
    if config.evaluation:
        evaluation, _ = data.read_examples(
            config.evaluation, row_format=row_format, columns=dataset.columns, loss_on=loss_on, name="evaluation"
        )
    elif dataset.evaluation_fraction:
        training, evaluation = data.split_rows(training, dataset.evaluation_fraction, config.hyperparameters.seed)
    return Examples(training, evaluation, row_format, data.digest_rows(dataset))


def prepare_dataset(
    config: TrainingConfig,
    examples: Examples,
    tokenizer: Any,
    model_config: Any,
    *,
    cache: data.TokenCache | None = None,
    between: Callable[[], None] = lambda: None,
) -> PreparedDataset:
    """Tokenise examples, or take them from the cache, and measure them.

    `between` is called now and then and may raise. Raises TrainingError (DatasetInvalid).
    """
    loss_on = config.hyperparameters.loss_on
    max_length = min(config.hyperparameters.max_length, model_length(model_config) or config.hyperparameters.max_length)

    def tokenized(part: list[data.Example], name: str) -> data.Tokenized:
        worthwhile = cache and data.characters(part) >= data.MIN_CHARACTERS
        key = data.cache_key(tokenizer, name=name, maxLength=max_length, **_inputs(config)) if worthwhile else ""
        if cache and key and (found := cache.load(key)):
            return found
        fresh = data.tokenize(part, tokenizer, max_length=max_length, loss_on=loss_on, name=name, between=between)
        if cache and key:
            cache.store(key, fresh)
        return fresh

    training = tokenized(examples.training, "dataset")
    evaluation = tokenized(examples.evaluation, "evaluation") if examples.evaluation else None
    report = build_report(
        training,
        evaluation,
        digest=examples.digest,
        row_format=examples.row_format,
        max_length=max_length,
        loss_on=loss_on,
    )
    return PreparedDataset(training, evaluation, max_length, report)


def _inputs(config: TrainingConfig) -> dict[str, Any]:
    """What decides which examples there are and what of them is learnt."""
    fraction = config.dataset.evaluation_fraction
    return {
        "dataset": data.digest_rows(config.dataset),
        "evaluation": data.digest_rows(config.evaluation) if config.evaluation else None,
        "format": config.dataset.format,
        "columns": config.dataset.columns.to_dict() if config.dataset.columns else None,
        "split": [fraction, config.hyperparameters.seed] if fraction else None,
        "lossOn": config.hyperparameters.loss_on,
    }


def model_length(model_config: Any) -> int | None:
    """Tokens that the model has positions for; None if it does not say."""
    length: int | None = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    return length


def log_report(report: DatasetReport) -> None:
    """The report in short, and a warning for each thing that is probably not meant to be so."""
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
