"""Rows as people have them become what is right, or are refused: the table of `lab.right_rows`, case by case."""

import pytest

from lab.right_rows.case import Case, run
from lab.right_rows.cases import ALL
from lab.right_rows.run import LEAST_CASES

pytestmark = pytest.mark.model


@pytest.mark.parametrize("case", [pytest.param(case, id=f"{case.kind}: {case.name}") for case in ALL])
def test_a_row_has_its_right_value(case: Case) -> None:
    assert run(case).problems == []


def test_the_table_is_complete_and_every_case_has_a_name_of_its_own() -> None:
    assert len(ALL) >= LEAST_CASES
    assert len({(case.kind, case.name) for case in ALL}) == len(ALL)
