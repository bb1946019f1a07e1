"""Texts of a row that the model's chat template leaves out of its rendering.

An answer without its text or its calls would be learnt as silence, so such a row is refused. Everything else is counted.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

from finetune_model.messages import Message
from finetune_model.rendered_texts import dropped_texts
from finetune_trainer.data.messages import is_learnt
from finetune_trainer.data.unused import KeyCounter

_ANSWER: Final = re.compile(r"messages\[(\d+)\]\.(content|tool_calls)")


class LostAnswerError(ValueError):
    """An answer of which the chat template leaves out what is to be learnt; the message is the rest of a sentence about its row."""


def count_unrendered(
    where: str, messages: Sequence[Message], tools: Sequence[Any] | None, renderings: Sequence[str], counter: KeyCounter
) -> None:
    """Count the texts that none of a row's renderings has. Raises LostAnswerError for those of a learnt answer."""
    paths = [path for path, _ in dropped_texts(messages, tools, renderings[0])]
    for rendering in renderings[1:]:
        if not paths:
            return
        missing = {path for path, _ in dropped_texts(messages, tools, rendering)}
        paths = [path for path in paths if path in missing]
    for path in paths:
        lost = _ANSWER.match(path)
        if lost and is_learnt(messages[int(lost[1])]):
            what = "its calls" if lost[2] == "tool_calls" else "its content"
            raise LostAnswerError(
                f"the model's chat template leaves out {path}, so that messages[{lost[1]}] would be learnt without {what}; use a "
                "model whose template writes it, or set the message's weight to 0"
            )
    for path in paths:
        counter.add(where, path)
