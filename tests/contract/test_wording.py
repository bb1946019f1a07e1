"""Docstrings open with a verb or a noun, and say things by their terms: the rules that ruff's D401 cannot check.

D401 sees functions only. Constants, fields, classes and modules are checked here, with the openings and metaphors that made
sentences hard to read. `docs/glossary.md` has the terms.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for folder in ("crds", "model", "operator", "trainer_image", "inference_image", "client")
    for path in (REPOSITORY / folder).glob("src/**/*.py")
)
OPENINGS = re.compile(r"(What|Whom|Whose|Which|Of|Whether)\b")
METAPHORS = {
    r"\blet in\b": "open the readiness gate",
    r"\bin vain\b": "say what was waited for and did not happen",
    r"\bmade? do with\b": "recover from",
    r"\b(is|are|be|was|were) believed\b": "verified",
    r"\b(is|are) to be had\b": "available",
    r"\bmute\b": "without a message",
    r"\bputs? \w+ to the proof\b": "verify",
    r"\bare none that\b|\bis none that\b": "cannot",
}
"""Phrases that stand for a term, and what to write instead."""


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of every string that stands alone: docstrings, and the sentences under constants and fields."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_docstrings_begin_with_a_verb_or_a_noun_and_use_the_terms(path: Path) -> None:
    wrong = []
    for line, text in docstrings(path.read_text()):
        if OPENINGS.match(text):
            wrong.append(f"line {line} opens with {text.split()[0]}: {text.splitlines()[0]}")
        wrong += [
            f"line {line}: {found[0]!r}; write {better!r}"
            for phrase, better in METAPHORS.items()
            if (found := re.search(phrase, text))
        ]
    assert wrong == []
