"""Texts of a row that the model's chat template leaves out of its rendering.

An answer without its text or its calls would be learnt as silence, so such a row is refused. Everything else is counted.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

from finetune_model.messages import Message
from finetune_model.rendered_texts import dropped_texts
from finetune_model.turns import TurnText
from finetune_trainer.data.messages import is_learnt
from finetune_trainer.data.unused import KeyCounter

_ANSWER: Final = re.compile(r"messages\[(\d+)\]\.(content|tool_calls)")


class LostAnswerError(ValueError):
    """An answer of which the chat template leaves out what is to be learnt; the message is the rest of a sentence about its row."""


def count_unrendered(
    where: str, messages: Sequence[Message], tools: Sequence[Any] | None, rows: Sequence[TurnText], counter: KeyCounter
) -> None:
    """Count the texts that none of a row's renderings has. Raises LostAnswerError for those of a learnt answer."""
    _require_calls(messages, rows)
    renderings = [row.text for row in rows]
    paths = [path for path, _ in dropped_texts(messages, tools, renderings[0])]
    for rendering in renderings[1:]:
        if not paths:
            return
        missing = {path for path, _ in dropped_texts(messages, tools, rendering)}
        paths = [path for path in paths if path in missing]
    for path in paths:
        lost = _ANSWER.match(path)
        if lost and is_learnt(messages[int(lost[1])]):
            raise _lost(path, int(lost[1]), "its calls" if lost[2] == "tool_calls" else "its content")
    for path in paths:
        counter.add(where, path)


def _require_calls(messages: Sequence[Message], rows: Sequence[TurnText]) -> None:
    """Raise LostAnswerError for a learnt call that is not within what is learnt: `user` is a word of most role headers."""
    if not any(message.get("tool_calls") for message in messages):
        return
    learnt = "\0".join(row.text[answer.start : answer.end] for row in rows for answer in row.answers)
    calls = [
        {"role": "assistant", "tool_calls": message.get("tool_calls") if is_learnt(message) else None}
        for message in messages
    ]
    # Where everything is learnt, no range is an answer's.
    if learnt and (missing := dropped_texts(calls, None, learnt)):
        path = missing[0][0]
        index = _ANSWER.match(path)
        raise _lost(path, int(index[1]) if index else 0, "its calls")


def _lost(path: str, index: int, what: str) -> LostAnswerError:
    return LostAnswerError(
        f"the model's chat template leaves out {path}, so that messages[{index}] would be learnt without {what}; use a model "
        "whose template writes it, or set the message's weight to 0"
    )
