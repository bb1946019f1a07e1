"""All cases, by the kind of fault that they guard against. Add a list to `ALL`; names are unique within a kind."""

from lab.right_rows.case import Case
from lab.right_rows.cases import files, foreign, keys, loss, pairs, prompts, tools, unrendered

ALL: list[Case] = [
    *keys.CASES,
    *loss.CASES,
    *tools.CASES,
    *unrendered.CASES,
    *foreign.CASES,
    *prompts.CASES,
    *pairs.CASES,
    *files.CASES,
]
