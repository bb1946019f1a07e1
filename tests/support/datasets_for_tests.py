"""Small datasets as their authors write them, read the way the trainer reads them."""

import json
from typing import Any

from finetune_api.training import RowsConfig
from finetune_api.v1alpha1.finetune_job import Columns
from finetune_trainer import data


def prepare(rows: str | list[Any], columns: Columns | None = None, loss_on: str = "completion") -> list[data.Example]:
    """Examples of inline rows."""
    text = rows if isinstance(rows, str) else "\n".join(json.dumps(row) for row in rows)
    return data.read_examples(RowsConfig(inline=text), row_format="auto", columns=columns, loss_on=loss_on)[0]
