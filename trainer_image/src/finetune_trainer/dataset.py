"""Dataset of a run: `data` applied to a TrainingConfig, for training and for `validate` alike."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from finetune_api.training import TrainingConfig
from finetune_model.token_ids import embedding_rows, tokens_without_embedding
from finetune_trainer import data
from finetune_trainer.config import SourceSettings
from finetune_trainer.data.problems import invalid
from finetune_trainer.data.report import DatasetReport, SourceReport, build_report, remarks
from finetune_trainer.data.unused import CountedKey, in_words
from finetune_trainer.model.chat_template import chat_settings
from finetune_trainer.sources.parts import SourceUse, distinct, read_mixture, read_part

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CACHE_FOLDER: Final = ".cache/tokens"
"""Folder of the output volume with tokenized datasets, shared by all jobs that write there."""


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
    left_out: int = 0
    """Rows of the dataset that limits and weights left out."""
    sources: tuple[SourceUse, ...] = ()
    """Use of each source, with `dataset.sources`."""
    unused: tuple[CountedKey, ...] = ()
    """Keys of the training rows that say nothing to the training."""
    evaluation_unused: tuple[CountedKey, ...] = ()
    """The same of an evaluation dataset of its own."""


@dataclass(frozen=True)
class PreparedDataset:
    """Token ids and labels, with a report about them."""

    training: data.Tokenized
    evaluation: data.Tokenized | None
    max_length: int
    report: DatasetReport

    @property
    def end_tokens(self) -> list[int]:
        """Ids of the tokens that end the learnt answers of the training rows."""
        return [end.id for end in self.training.turns.ends]


def token_cache(config: TrainingConfig) -> data.TokenCache:
    """Return the cache on the run's output volume."""
    return data.TokenCache(Path(config.output.directory) / CACHE_FOLDER)


def read_examples(config: TrainingConfig, settings: SourceSettings | None = None) -> Examples:
    """Read and check all rows, downloading them if necessary; needs neither model nor torch.

    Raises TrainingError (DatasetNotFound, DatasetInvalid, SpecInvalid).
    """
    dataset = config.dataset
    settings = settings or SourceSettings()
    mixture = read_mixture(config, settings)
    training, row_format = mixture.examples, mixture.row_format
    data.require_format(row_format, pairs=config.dpo is not None)
    evaluation: list[data.Example] = []
    evaluation_digest = None
    evaluation_unused: tuple[CountedKey, ...] = ()
    if config.evaluation:
        part = read_part(config, config.evaluation, "evaluation", settings, row_format=row_format)
        evaluation, evaluation_digest, evaluation_unused = part.examples, part.digest, part.unused
    elif dataset.evaluation_fraction:
        training, evaluation = _hold_out(training, dataset.evaluation_fraction, config.hyperparameters.seed)
    return Examples(
        training,
        evaluation,
        row_format,
        mixture.digest,
        evaluation_digest,
        mixture.left_out,
        mixture.uses,
        mixture.unused,
        evaluation_unused,
    )


def _hold_out(
    examples: list[data.Example], fraction: float, seed: int
) -> tuple[list[data.Example], list[data.Example]]:
    """Hold out rows with all of their copies, because a copy left for training would be known in the evaluation."""
    _, evaluation = data.split_rows(distinct(examples), fraction, seed)
    held_out = {id(example) for example in evaluation}
    return [example for example in examples if id(example) not in held_out], evaluation


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
        embeddings=embedding_rows(model_config),
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
        copies=_copies(examples),
        left_out=examples.left_out,
        sources=[SourceReport(**asdict(use)) for use in examples.sources],
        template=_template_name(config),
        unused=(examples.unused, examples.evaluation_unused),
    )
    return PreparedDataset(training, evaluation, max_length, report)


def _copies(examples: Examples) -> int:
    """Count the rows, or pairs, that repeat one because of its source's weight."""
    return len(examples.training) - len(distinct(examples.training))


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
    embeddings: int | None,
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
            rows,
            tokenizer,
            max_length=max_length,
            loss_on=loss_on,
            name=name,
            settings=chat_settings(config.chat),
            pairs=pairs,
            check_stop=check_stop,
        )
        if cache and key:
            cache.store(key, tokenized)
    if embeddings is not None:
        _check_embeddings(tokenized.rows, embeddings, tokenizer, name)
    if config.dataset.strict and tokenized.unrendered:
        raise invalid(
            f"{_template_name(config)} leaves out texts of {name}, and dataset.strict is "
            f"true: {in_words(tokenized.unrendered)}. Remove them, or set dataset.strict to false"
        )
    return data.require_whole_pairs(tokenized, part, max_length, name) if pairs else tokenized


def _template_name(config: TrainingConfig) -> str:
    if config.chat and config.chat.template:
        return "chat.template"
    return f"the chat template of {config.model.source or config.model.path}"


def _check_embeddings(rows: data.TokenRows, embeddings: int, tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
    """Raise TrainingError (DatasetInvalid) if rows have tokens for which the model has no embedding."""
    places = np.flatnonzero(rows.input_ids >= embeddings)
    unknown = tokens_without_embedding(np.unique(rows.input_ids[places]).tolist(), embeddings, tokenizer)
    if unknown is None:
        return
    count = len(np.unique(np.searchsorted(rows.offsets, places, side="right")))
    raise invalid(
        f"{name}: {count} of {len(rows)} rows have the token {unknown}, but the model has embeddings for {embeddings} tokens. "
        "Remove the token from the rows or the chat template, or use a model whose embeddings were extended for its tokenizer"
    )


def _cache_inputs(config: TrainingConfig, examples: Examples) -> dict[str, Any]:
    """Return the settings that determine the examples of a part and their loss."""
    fraction = config.dataset.evaluation_fraction
    selection = _selection(config)
    return {
        **({"selection": selection} if selection else {}),
        "dataset": examples.digest,
        "evaluation": examples.evaluation_digest,
        "format": config.dataset.format,
        "columns": config.dataset.columns.to_dict() if config.dataset.columns else None,
        "split": [fraction, config.hyperparameters.seed] if fraction else None,
        "lossOn": config.hyperparameters.loss_on,
        # The template is a part of the tokenizer.
        "chat": config.chat.to_dict() if config.chat else None,
    }


def _selection(config: TrainingConfig) -> Any:
    """Return the settings that determine which rows are used how often; None for all of one source."""
    dataset = config.dataset
    if dataset.sources is None and dataset.max_rows is None:
        return None
    sources = [source.model_dump(mode="json", exclude={"inline", "path"}) for source in dataset.sources or ()]
    return [sources, dataset.max_rows, dataset.shuffle, config.hyperparameters.seed]


def model_length(model_config: "PretrainedConfig") -> int | None:
    """Return the number of tokens that the model has positions for; None if its configuration has none."""
    length: int | None = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    return length


def log_report(report: DatasetReport) -> None:
    """Log a summary of the report, and a warning for each probable mistake."""
    training = report.training
    logger.info(
        "dataset ready rows=%d evaluation_rows=%d format=%s tokens=%d loss_tokens=%d longest=%d max_length=%d "
        "truncated=%d dropped=%d left_out=%d duplicates=%d overlap=%d digest=%s",
        training.rows,
        report.evaluation.rows if report.evaluation else 0,
        report.format,
        training.tokens,
        training.loss_tokens,
        training.lengths.longest,
        report.max_length,
        training.truncated.rows,
        training.dropped.rows,
        report.left_out,
        training.duplicate_rows,
        report.overlap,
        report.digest[:19],
    )
    for use in report.sources:
        logger.info(
            "source used source=%s rows=%d weight=%g used=%d left_out=%d digest=%s",
            use.source,
            use.rows,
            use.weight,
            use.used,
            use.left_out,
            use.digest[:19],
        )
    for remark in remarks(report):
        logger.warning("dataset: %s", remark)
