"""Small datasets as their authors write them, read the way the trainer reads them."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from finetune_api.training import RowsConfig
from finetune_api.v1alpha1.finetune_job import Columns
from finetune_trainer import data
from finetune_trainer.data.token_rows import TokenRowsBuilder


def prepare(rows: str | list[Any], columns: Columns | None = None, loss_on: str = "completion") -> list[data.Example]:
    """Examples of inline rows."""
    text = rows if isinstance(rows, str) else "\n".join(json.dumps(row) for row in rows)
    return data.read_examples(RowsConfig(inline=text), row_format="auto", columns=columns, loss_on=loss_on)[0]


def tokenized(rows: Iterable[data.TokenRow]) -> data.Tokenized:
    """Rows that somebody made as the trainer keeps them."""
    builder = TokenRowsBuilder()
    for row in rows:
        builder.add(np.asarray(row.input_ids, np.int32), np.asarray(row.labels) != data.IGNORED)
    return data.Tokenized(builder.build(), truncated=0, dropped=0)
