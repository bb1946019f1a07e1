"""Forms in which people write rows: which of them a row has, and why, or which is the nearest.

A format says what is learnt (`messages`, `preference`, `prompt-completion`, `text`), a form how it is written: ShareGPT's
conversations are of the format `messages`, Alpaca's instructions of `prompt-completion`.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from finetune_api.v1alpha1 import Columns, DatasetFormat
from finetune_trainer.data.problems import invalid, listed
from finetune_trainer.data.rows import PARTS, Format, Row
from finetune_trainer.errors import TrainingError

logger = logging.getLogger(__name__)

_TOOLS: Final = ("tools", "functions", "system")
_ALIASES: Final = {
    "conversations": ("conversations", "conversation"),
    "system": ("system", "system_prompt"),
}


@dataclass(frozen=True)
class Form:
    """Columns of a row by the part that they play."""

    name: str
    format: Format
    required: tuple[str, ...]
    """Parts without which a row is not of this form."""
    optional: tuple[str, ...] = ()
    """Parts that are read if the row has them."""
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Columns that may hold a part, in the order of preference; by default the one of its name."""

    @property
    def parts(self) -> tuple[str, ...]:
        """All parts."""
        return self.required + self.optional

    def column(self, part: str, columns: Columns | None, row: dict[str, Any]) -> str:
        """Return the column of a part in a row: the one of `dataset.columns`, or else the first alias that the row has."""
        if mapped := getattr(columns, part, None):
            return str(mapped)
        aliases = self.aliases.get(part) or _ALIASES.get(part) or (part,)
        return next((alias for alias in aliases if alias in row), aliases[0])

    def fits(self, row: dict[str, Any], columns: Columns | None) -> bool:
        """Return whether a row has all required columns."""
        return all(self.column(part, columns, row) in row for part in self.required)

    def uses(self, columns: Columns | None) -> bool:
        """Return whether all columns that are mapped play a part."""
        return columns is None or columns.to_dict().keys() <= set(self.parts)


OPENAI_MESSAGES: Final = Form("messages", "messages", ("messages",), _TOOLS)
SHAREGPT: Final = Form("ShareGPT", "messages", ("conversations",), _TOOLS)
ALPACA: Final = Form(
    "Alpaca",
    "prompt-completion",
    ("instruction", "output"),
    ("input", "history", *_TOOLS),
    {"output": ("output", "response"), "input": ("input", "context")},
)
PROMPT_COMPLETION: Final = Form(
    "prompt and completion", "prompt-completion", ("prompt", "completion"), ("label", *_TOOLS)
)
TEXT: Final = Form("text", "text", ("text",))
PREFERENCE: Final = Form(
    "prompt, chosen and rejected",
    "preference",
    ("prompt", "chosen", "rejected"),
    _TOOLS,
    {"prompt": ("prompt", "question")},
)
IMPLICIT_PREFERENCE: Final = Form(
    "chosen and rejected with a common beginning", "preference", ("chosen", "rejected"), _TOOLS
)
OPENAI_PREFERENCE: Final = Form(
    "OpenAI's preferences", "preference", ("input", "preferred_output", "non_preferred_output")
)
ALPACA_PREFERENCE: Final = Form(
    "Alpaca with chosen and rejected",
    "preference",
    ("instruction", "chosen", "rejected"),
    ("input", "history", *_TOOLS),
    {"input": ("input", "context")},
)
SHAREGPT_PREFERENCE: Final = Form(
    "ShareGPT with chosen and rejected", "preference", ("conversations", "chosen", "rejected"), _TOOLS
)

_PAIRS: Final = (OPENAI_PREFERENCE, ALPACA_PREFERENCE, SHAREGPT_PREFERENCE, PREFERENCE, IMPLICIT_PREFERENCE)
_OTHERS: Final = (ALPACA, PROMPT_COMPLETION, TEXT)
SUPERVISED_ORDER: Final = (OPENAI_MESSAGES, *_PAIRS, SHAREGPT, *_OTHERS)
"""Order of detection. Pairs come before forms whose columns they may have as well, so that method.dpo can be named."""
PAIRS_ORDER: Final = (*_PAIRS, OPENAI_MESSAGES, SHAREGPT, *_OTHERS)
"""Order of detection with method.dpo: a dataset of pairs often has its chosen answers once more as messages."""
PRIMARY: Final[dict[Format, Form]] = {
    "messages": OPENAI_MESSAGES,
    "preference": PREFERENCE,
    "prompt-completion": PROMPT_COMPLETION,
    "text": TEXT,
}
"""Form whose columns a message names for a format that was requested and that a row does not have."""

SIMILAR: Final = {
    "messages": ("dialog", "dialogue", "chat", "turns", "conversation_history"),
    "prompt": ("question", "query", "instruction", "input", "problem", "user", "source", "context"),
    "completion": ("answer", "response", "output", "solution", "target", "assistant", "reply", "responses", "answers"),
    "chosen": ("preferred", "accepted", "winner", "better", "positive"),
    "rejected": ("dispreferred", "loser", "worse", "negative", "rejected_response"),
    "text": ("content", "document", "body", "passage"),
}
"""Names under which other datasets have a part, for suggestions; nothing is read by them."""


def detect_form(
    row: Row, columns: Columns | None, row_format: DatasetFormat = "auto", *, pairs: bool = False, name: str = "dataset"
) -> Form:
    """Return the first form that a row has, of the requested format unless that is `auto`, and log it with the reason.

    `pairs`: the method learns from preference pairs. Raises TrainingError (DatasetInvalid) for an unknown form.
    """
    order = PAIRS_ORDER if pairs else SUPERVISED_ORDER
    fitting = [form for form in order if row_format in ("auto", form.format) and form.fits(row.value, columns)]
    if not fitting:
        if row_format == "auto":
            raise _unknown(row, columns, pairs=pairs, name=name)
        return PRIMARY[row_format]
    # Whoever maps a column wants it read, so a form without that part comes last.
    form = next((form for form in fitting if form.uses(columns)), fitting[0])
    found = "+".join(form.column(part, columns, row.value) for part in form.required)
    logger.info(
        "detected format dataset=%s format=%s columns=%s form=%r because=%r",
        name,
        form.format,
        listed(sorted(row.value)),
        form.name,
        f"the first row has {found}" + (", and method.dpo learns from pairs" if pairs else ""),
    )
    return form


def _unknown(row: Row, columns: Columns | None, *, pairs: bool, name: str) -> TrainingError:
    expected = " or ".join("+".join(PRIMARY[one].column(p, columns, {}) for p in parts) for one, parts in PARTS.items())
    return invalid(
        f"{name} {row.where} has the columns {listed(row.value)}; expected {expected}, or ShareGPT's conversations, or "
        f"Alpaca's instruction+output. {nearest(row.value, columns, pairs=pairs)}"
    )


def nearest(value: dict[str, Any], columns: Columns | None, *, pairs: bool = False) -> str:
    """Name the format that a row of unknown form comes nearest to, what it lacks, and what a mapping would leave out."""
    formats: Sequence[Format] = ("preference",) if pairs else ("messages", "prompt-completion", "text", "preference")
    guesses = {one: _guess(PARTS[one], value, columns) for one in formats}
    best = max(formats, key=lambda one: len(guesses[one]) / len(PARTS[one]))
    found, form = guesses[best], PRIMARY[best]
    if not found:
        return "Rename them, or map them with dataset.columns."
    mapping = ", ".join(f"{part}: {column}" for part, column in found.items())
    if missing := [part for part in PARTS[best] if part not in found]:
        return f"The nearest format is {best} ({mapping}), which lacks {_and(missing)}. Add it, or map it with dataset.columns."
    known = {*found.values(), *(form.column(part, columns, value) for part in form.optional)}
    left = [column for column in value if column not in known]
    lost = (
        f" That leaves out {listed(left)}: write it into one of these columns, if it is to be learnt." if left else ""
    )
    return f"The nearest format is {best}: set dataset.format to {best} and dataset.columns to {{{mapping}}}.{lost}"


def _guess(parts: Iterable[str], value: dict[str, Any], columns: Columns | None) -> dict[str, str]:
    """Return a column for each part that has a likely one, each column once."""
    found: dict[str, str] = {}
    for part in parts:
        candidates = (getattr(columns, part, None), part, *SIMILAR[part])
        column = next((c for c in candidates if c and c in value and c not in found.values()), None)
        if column:
            found[part] = column
    return found


def _and(parts: Sequence[str]) -> str:
    return " and ".join(parts)
