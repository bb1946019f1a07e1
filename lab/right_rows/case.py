"""A case: rows, the settings that they are trained with, and the right value. `run` gives what the trainer makes of them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from finetune_trainer import data
from finetune_trainer.data.report import LostKey, PartReport, remarks
from finetune_trainer.dataset import prepare_dataset, read_examples
from finetune_trainer.errors import TrainingError
from lab.fixtures.tiny_model import make_tiny_tokenizer
from lab.fixtures.training_runs import a_training_config
from lab.right_rows.templates import TEMPLATES

Row = dict[str, Any]


@dataclass(frozen=True)
class Right:
    """The right value of a case, or what the trainer made of it. A part that is None is not compared."""

    learnt: list[str] | None = None
    """Text of the tokens that carry loss, for each row; of a pair, the chosen answer's and then the rejected one's."""
    texts: list[str] | None = None
    """Text of all tokens, for each row."""
    unused: dict[str, int] = field(default_factory=dict)
    """Number of rows by the paths of keys that are reported as not used."""
    unrendered: dict[str, int] = field(default_factory=dict)
    """Number of rows by the paths of texts that are reported as left out by the template."""
    refused: str | None = None
    """Words of the message with which the rows are refused."""
    remarks: tuple[str, ...] = ()
    """Words of remarks in `validate`."""


@dataclass(frozen=True)
class Case:
    """Rows with their settings and their right value."""

    name: str
    kind: str
    rows: list[Row] | str | bytes | Callable[[], bytes]
    right: Right
    template: str = "chatml"
    """Name in `TEMPLATES`."""
    file: str | None = None
    """Name of the file that holds the rows; they are inline without one."""
    pairs: bool = False
    """method.dpo is set."""
    loss_on: str = "completion"
    max_length: int = 512
    dataset: dict[str, Any] = field(default_factory=dict)
    """Further fields of `dataset`, such as format, columns and strict."""


@dataclass(frozen=True)
class Verdict:
    """Comparison of a case's right value with what was found."""

    case: Case
    found: Right

    @property
    def problems(self) -> list[str]:
        """Differences in words; none if the case is right."""
        right, found = self.case.right, self.found
        if right.refused is not None:
            refused = found.refused or ""
            return [] if right.refused in refused else [f"refused with {refused!r}, expected {right.refused!r}"]
        if found.refused is not None:
            return [f"refused: {found.refused}"]
        problems = []
        for part in ("learnt", "texts"):
            if getattr(right, part) is not None and getattr(right, part) != getattr(found, part):
                problems.append(f"{part}: {getattr(found, part)!r}, expected {getattr(right, part)!r}")
        for part in ("unused", "unrendered"):
            if getattr(right, part) != getattr(found, part):
                problems.append(f"{part}: {getattr(found, part)}, expected {getattr(right, part)}")
        for words in right.remarks:
            if not any(words in remark for remark in found.remarks):
                problems.append(f"no remark says {words!r}: {found.remarks}")
        return problems

    @property
    def is_silent(self) -> bool:
        """True for a fault that nobody would see: the rows are accepted, and no remark is made."""
        return bool(self.problems) and self.found.refused is None and not self.found.remarks


def run(case: Case) -> Verdict:
    """Train nothing, but read, render and tokenize the rows of a case as a run would."""
    with TemporaryDirectory() as folder:
        return Verdict(case, _found(case, Path(folder)))


def _found(case: Case, folder: Path) -> Right:
    content = case.rows() if callable(case.rows) else case.rows
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    if case.file:
        path = folder / case.file
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        rows = {"path": str(path)}
    else:
        rows = {"inline": content if isinstance(content, str) else content.decode()}
    config = a_training_config(
        Path("/models/tiny"),
        folder / "out",
        dataset={**rows, **case.dataset},
        hyperparameters={"lossOn": case.loss_on, "maxLength": case.max_length},
        dpo={} if case.pairs else None,
    )
    tokenizer = _tokenizer(case.template)
    try:
        prepared = prepare_dataset(config, read_examples(config), tokenizer, _AnyModel())
    except TrainingError as error:
        return Right(refused=error.message)
    part = prepared.report.training
    return Right(
        learnt=[tokenizer.decode(_learnt(row)) for row in prepared.training.rows],
        texts=[tokenizer.decode(row.input_ids) for row in prepared.training.rows],
        unused=_counts(part, "unused"),
        unrendered=_counts(part, "unrendered"),
        remarks=tuple(remarks(prepared.report)),
    )


def _learnt(row: data.TokenRow) -> Any:
    labels = np.asarray(row.labels)
    return labels[labels != data.IGNORED]


def _counts(part: PartReport, name: str) -> dict[str, int]:
    keys: list[LostKey] = getattr(part, name)
    return {key.path: key.rows for key in keys}


@cache
def _tokenizer(template: str) -> Any:
    tokenizer = make_tiny_tokenizer(with_chat_template=False)
    tokenizer.chat_template = TEMPLATES[template]
    return tokenizer


class _AnyModel:
    """As much of a model's configuration as a dataset needs."""

    max_position_embeddings = 4096

    def get_text_config(self) -> "_AnyModel":
        return self
