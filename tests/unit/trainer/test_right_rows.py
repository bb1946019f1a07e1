"""Rows as people have them become what is right, or are refused: the table of `lab.right_rows`, case by case."""

from pathlib import Path

import pytest

from finetune_trainer import data
from finetune_trainer.data.unused import CountedKey
from finetune_trainer.dataset import read_examples
from lab.fixtures.datasets import prepare
from lab.fixtures.tiny_model import as_jsonl, make_tiny_tokenizer
from lab.fixtures.training_runs import a_training_config
from lab.right_rows.case import Case, run
from lab.right_rows.cases import ALL
from lab.right_rows.cases.words import CHAT
from lab.right_rows.run import LEAST_CASES

pytestmark = pytest.mark.model


@pytest.mark.parametrize("case", [pytest.param(case, id=f"{case.kind}: {case.name}") for case in ALL])
def test_a_row_has_its_right_value(case: Case) -> None:
    assert run(case).problems == []


def test_the_table_is_complete_and_every_case_has_a_name_of_its_own() -> None:
    assert len(ALL) >= LEAST_CASES
    assert len({(case.kind, case.name) for case in ALL}) == len(ALL)


def test_a_row_that_is_repeated_is_learnt_as_often() -> None:
    chat, tokenizer = prepare([{"messages": CHAT}])[0], make_tiny_tokenizer()
    once = data.tokenize([chat], tokenizer, max_length=99, loss_on="completion").rows[0]
    rows = data.tokenize([chat] * 3, tokenizer, max_length=99, loss_on="completion").rows
    assert [row.input_ids.tolist() for row in rows] == [once.input_ids.tolist()] * 3


def test_keys_of_several_sources_are_counted_together(tmp_path: Path) -> None:
    sources = []
    for name, rows in (
        ("a", [{"text": "A", "id": 1}, {"text": "B", "id": 2}]),
        ("b", [{"text": "C", "id": 3, "url": "x"}]),
    ):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(as_jsonl(rows))
        sources.append({"path": str(path), "weight": 2})
    config = a_training_config(Path("/m"), tmp_path, dataset={"sources": sources})
    assert read_examples(config).unused == (
        CountedKey("id", 3, "sources[0] line 1"),
        CountedKey("url", 1, "sources[1] line 1"),
    )
