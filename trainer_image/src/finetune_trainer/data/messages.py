"""Messages of a training row: which of them carry loss, and conversations in foreign forms.

The common form is `finetune_model.messages`. Here ShareGPT's turns and transcripts become OpenAI's messages first.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

from finetune_model.messages import Message, MessageError, checked_text, kind, parse_json, shown

SHAREGPT_ROLES: Final = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
}
"""Roles by ShareGPT's `from`."""
_SPEAKER: Final = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def is_learnt(message: Message, loss_on: str = "completion") -> bool:
    """Return whether a message carries loss: an assistant's, or with lossOn `all` every one, unless its weight is 0."""
    return message.get("weight") != 0 and (loss_on == "all" or message["role"] == "assistant")


def check_learnt(messages: Sequence[Message], column: str, loss_on: str) -> None:
    """Raise MessageError if nothing is learnt, or an empty answer, which would teach the model to stay silent."""
    if not any(is_learnt(message, loss_on) for message in messages):
        who, remedy = (
            ("message", "") if loss_on == "all" else ("assistant message", ", or set hyperparameters.lossOn to all")
        )
        raise MessageError(column, f"has no {who} to learn from; add one{remedy}")
    for index, message in enumerate(messages):
        if is_learnt(message) and not message["content"].strip() and not message.get("tool_calls"):
            raise MessageError(f"{column}[{index}].content", "is empty, expected text")


def is_beginning(beginning: Sequence[Message], messages: Sequence[Message]) -> bool:
    """Return whether messages begin with others, whatever their weights."""
    return without_weights(messages[: len(beginning)]) == without_weights(beginning)


def without_weights(messages: Sequence[Message]) -> list[Message]:
    """Return messages as a template gets them."""
    return [{key: value for key, value in message.items() if key != "weight"} for message in messages]


def check_text(value: Any, column: str, *, may_be_blank: bool = False) -> str:
    """Return a text of a row. Raises MessageError."""
    if isinstance(value, str) and not value.strip() and not may_be_blank:
        raise MessageError(column, "is empty, expected text")
    return checked_text(value, column)


def as_list(value: Any, column: str) -> Any:
    """Return a conversation as a list: CSV has the JSON text of one, and a single answer may stand without a list."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        return parse_json(value, column)
    return [value] if isinstance(value, dict) else value


def is_chat(value: Any) -> bool:
    """Return whether a part is a conversation, or the JSON text of one, and not a text that is learnt as it is."""
    if isinstance(value, str):
        if not re.match(r"\s*\[\s*\{", value):
            return False
        try:
            value = parse_json(value, "")
        except MessageError:
            return False
        return all(isinstance(turn, dict) and turn.keys() & {"role", "from"} for turn in value)
    return isinstance(value, list | dict)


def is_sharegpt(value: Any) -> bool:
    """Return whether a conversation is written as ShareGPT's `{from, value}`."""
    return isinstance(value, list) and any(
        isinstance(turn, dict) and "from" in turn and "role" not in turn for turn in value
    )


def from_sharegpt(turns: list[Any], column: str) -> list[Any]:
    """Return ShareGPT's turns as OpenAI's messages; other keys of a turn stay. Raises MessageError."""
    return [_message(turn, f"{column}[{index}]") for index, turn in enumerate(turns)]


def _message(turn: Any, place: str) -> Any:
    if not isinstance(turn, dict):
        raise MessageError(place, f"is {kind(turn)}, expected {{from, value}}")
    speaker = turn.get("from")
    role = SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise MessageError(f"{place}.from", f"is {shown(speaker)}, expected one of {', '.join(SHAREGPT_ROLES)}")
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    value = turn.get("value")
    if speaker == "function_call":
        calls = parse_json(value, f"{place}.value") if isinstance(value, str) else value
        return {**rest, "role": role, "tool_calls": calls if isinstance(calls, list) else [calls]}
    # Only an answer that is learnt must not be blank, which is checked later, when weights are known.
    return {**rest, "role": role, "content": check_text(value, f"{place}.value", may_be_blank=True)}


def from_transcript(text: str) -> list[Message] | None:
    """Return the messages of a text that writes a conversation as `Human:` and `Assistant:`; None for another text."""
    before, *parts = _SPEAKER.split(text)
    if before.strip() or "Assistant" not in parts[::2] or parts[0] != "Human":
        return None
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": words.strip()}
        for speaker, words in zip(parts[::2], parts[1::2], strict=True)
    ]
