"""From rows to examples: detect the form, check every row, split off held-out rows."""

import logging
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from finetune_api.training import RowsConfig
from finetune_api.v1alpha1 import Columns, DatasetFormat
from finetune_model.messages import MessageError
from finetune_trainer.data.forms import detect_form
from finetune_trainer.data.preference import without_repeated_prompts
from finetune_trainer.data.problems import Problems, invalid
from finetune_trainer.data.readers import read_row
from finetune_trainer.data.reading import label_of, read_rows
from finetune_trainer.data.rows import Example, Format
from finetune_trainer.data.unused import KeyCounter, in_words

logger = logging.getLogger(__name__)


def read_examples(
    config: RowsConfig,
    *,
    row_format: DatasetFormat,
    columns: Columns | None,
    loss_on: str,
    name: str = "dataset",
    files: Sequence[Path] = (),
    pairs: bool = False,
    unused: KeyCounter | None = None,
    strict: bool = False,
) -> tuple[list[Example], Format]:
    """Return all rows as examples, and their format; the first row decides the form, within `row_format` unless that is auto.

    `files` are the files of a downloaded dataset. `pairs`: the method learns from preference pairs. Keys of rows that say
    nothing to the training are counted in `unused`; with `strict` they are an error.

    Raises TrainingError (DatasetNotFound, DatasetInvalid) that names the wrong rows.
    """
    problems, unused = Problems(name), unused or KeyCounter()
    form = None
    examples = []
    absent = columns.to_dict() if columns else {}
    for row in read_rows(config, problems, files):
        form = form or detect_form(row, columns, row_format, pairs=pairs, name=name)
        absent = {part: column for part, column in absent.items() if column not in row.value}
        try:
            examples.append(read_row(row, form, columns, loss_on, partial(unused.add, row.where)))
        except MessageError as error:
            problems.add(f"{row.where}: {error}")
    problems.raise_any()
    if not examples or form is None:
        raise invalid(f"{label_of(config, name)} is empty; expected at least one row")
    for part, column in absent.items():
        unused.add_setting(f"dataset.columns.{part}", f"no row has {column}")
    if strict and (found := unused.counts()):
        raise invalid(
            f"{name} has keys that are not used, and dataset.strict is true: {in_words(found)}. Remove them, map them with "
            "dataset.columns, or set dataset.strict to false"
        )
    return without_repeated_prompts(examples, name) if form.format == "preference" else examples, form.format


def require_format(row_format: Format, *, pairs: bool, name: str = "dataset") -> None:
    """Raise TrainingError (DatasetInvalid) for preference pairs without DPO, and for other rows with it."""
    if row_format == "preference" and not pairs:
        raise invalid(
            f"{name} holds preference pairs (prompt, chosen, rejected), and supervised training learns one wanted answer a "
            "row. Set method.dpo to learn from pairs; or to learn the chosen answers, set dataset.format to "
            "prompt-completion and dataset.columns.completion to chosen; if chosen holds whole conversations, set "
            "dataset.format to messages and dataset.columns.messages to chosen"
        )
    if row_format != "preference" and pairs:
        raise invalid(
            f"{name} holds rows of format {row_format}, but method.dpo learns from preference pairs (prompt, chosen, "
            "rejected). Add the rejected answers, or remove method.dpo"
        )


def split_rows(examples: Sequence[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Split off held-out examples at random by the seed; both parts keep the order of the file."""
    count = max(1, round(len(examples) * fraction))
    if count >= len(examples):
        raise invalid(
            f"dataset has {len(examples)} row(s), of which evaluation.fraction={fraction} holds out {count}: none is left "
            "to train on. Add rows or remove evaluation."
        )
    held_out = set(random.Random(f"evaluation-{seed}").sample(range(len(examples)), count))  # noqa: S311
    return (
        [example for i, example in enumerate(examples) if i not in held_out],
        [example for i, example in enumerate(examples) if i in held_out],
    )
