"""From rows to examples: detect the format, check every row, split off held-out rows."""

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_api.training import RowsConfig
from finetune_api.v1alpha1 import Columns, DatasetFormat
from finetune_trainer.data.messages import is_learnt, joined_parts, problem_of_messages, problem_of_text
from finetune_trainer.data.problems import Problems, invalid, kind, listed
from finetune_trainer.data.reading import label_of, read_rows
from finetune_trainer.data.rows import PARTS, Example, Format, Row

logger = logging.getLogger(__name__)


def read_examples(
    config: RowsConfig,
    *,
    row_format: DatasetFormat,
    columns: Columns | None,
    loss_on: str,
    name: str = "dataset",
    files: Sequence[Path] = (),
) -> tuple[list[Example], Format]:
    """Return all rows as examples, and their format; with `row_format` auto the first row decides it.

    `files` are the files of a downloaded dataset.

    Raises TrainingError (DatasetNotFound, DatasetInvalid) that names the wrong rows.
    """
    problems = Problems(name)
    chosen = None if row_format == "auto" else row_format
    examples = []
    for row in read_rows(config, problems, files):
        if chosen is None:
            chosen = detect_format(row, columns, name=name)
        problem = problem_of(row, chosen, columns, loss_on)
        if problem:
            problems.add(f"{row.where}: {problem}")
        else:
            examples.append(_to_example(row, chosen, columns))
    problems.raise_any()
    if not examples or chosen is None:
        raise invalid(f"{label_of(config, name)} is empty; expected at least one row")
    return examples, chosen


def detect_format(row: Row, columns: Columns | None, *, name: str = "dataset") -> Format:
    """Return the first format whose columns the row has, and log it, because nobody named it."""
    for candidate, parts in PARTS.items():
        if all(_column(columns, part) in row.value for part in parts):
            logger.info("detected format dataset=%s format=%s columns=%s", name, candidate, listed(sorted(row.value)))
            return candidate
    expected = " or ".join("+".join(_column(columns, part) for part in parts) for parts in PARTS.values())
    raise invalid(
        f"{name} {row.where} has the columns {listed(row.value)}; expected {expected}. "
        "Rename them, or map them with dataset.columns."
    )


def problem_of(row: Row, row_format: Format, columns: Columns | None, loss_on: str) -> str | None:
    """Describe what is wrong with a row, as the rest of a sentence about it; None if it is right."""
    names = {part: _column(columns, part) for part in PARTS[row_format]}
    if missing := [name for name in names.values() if name not in row.value]:
        return f"column {missing[0]} is missing, found {listed(row.value)}"
    values = {part: row.value[name] for part, name in names.items()}
    if row_format == "messages":
        return _problem_of_chat(row.value, names["messages"], loss_on)
    if row_format == "preference":
        return _problem_of_pair(values, names)
    for part, value in values.items():
        if problem := problem_of_text(value, names[part], may_be_blank=part == "prompt"):
            return problem
    return None


def require_format(row_format: Format, *, pairs: bool, name: str = "dataset") -> None:
    """Raise TrainingError (DatasetInvalid) for preference pairs without DPO, and for other rows with it."""
    if row_format == "preference" and not pairs:
        raise invalid(
            f"{name} holds preference pairs (prompt, chosen, rejected), and supervised training learns one wanted answer a "
            "row. Set method.dpo to learn from pairs; or to learn the chosen answers, set dataset.format to "
            "prompt-completion and dataset.columns.completion to chosen"
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


def _column(columns: Columns | None, part: str) -> str:
    return (getattr(columns, part) if columns else None) or part


def _problem_of_chat(value: dict[str, Any], column: str, loss_on: str) -> str | None:
    messages, tools = value[column], value.get("tools")
    if problem := problem_of_messages(messages, column):
        return problem
    if tools is not None and not isinstance(tools, list):
        return f"tools is {kind(tools)}, expected a list of functions"
    if loss_on == "completion" and not any(is_learnt(message) for message in messages):
        return f"{column} has no assistant message to learn from; add one, or set hyperparameters.lossOn to all"
    return None


def _problem_of_pair(values: dict[str, Any], names: dict[str, str]) -> str | None:
    as_chat = isinstance(values["prompt"], list)
    for part, value in values.items():
        problem = (
            problem_of_messages(value, names[part])
            if as_chat
            else problem_of_text(value, names[part], may_be_blank=part == "prompt")
        )
        if problem:
            return problem
        if as_chat and part != "prompt" and value[-1]["role"] != "assistant":
            return f"{names[part]} ends with a message of role {value[-1]['role']}, expected assistant"
    if values["chosen"] == values["rejected"]:
        return f"{names['chosen']} and {names['rejected']} are equal, expected two different answers"
    return None


def _to_example(row: Row, row_format: Format, columns: Columns | None) -> Example:
    values = {part: joined_parts(row.value[_column(columns, part)]) for part in PARTS[row_format]}
    if row_format == "messages":
        return Example(where=row.where, messages=values["messages"], tools=row.value.get("tools"))
    return Example(where=row.where, **values)
