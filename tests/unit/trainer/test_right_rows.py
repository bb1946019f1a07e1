"""Rows as people have them become what is right, or are refused: the table of `lab.right_rows`, case by case."""

import pytest

from finetune_trainer import data
from lab.fixtures.datasets import prepare
from lab.fixtures.tiny_model import make_tiny_tokenizer
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
