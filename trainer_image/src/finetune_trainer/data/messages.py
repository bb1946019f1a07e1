"""Chat messages in OpenAI's form: check them, and tell which of them carry loss."""

from typing import Any

from finetune_model.chat import has_unpaired_surrogate
from finetune_trainer.data.problems import kind
from finetune_trainer.data.rows import ROLES, Message


def is_learnt(message: Message) -> bool:
    """Return whether a message carries loss: an assistant's does, unless its weight is 0 (OpenAI's format)."""
    return message["role"] == "assistant" and message.get("weight") != 0


def problem_of_messages(value: Any, column: str) -> str | None:
    """Describe what is wrong with a list of messages, as a sentence about its column; None if it is right."""
    if not isinstance(value, list) or not value:
        return f"{column} is {kind(value)}, expected a list of {{role, content}}"
    for index, message in enumerate(value):
        if problem := _problem_of_message(message, f"{column}[{index}]"):
            return problem
    return None


def problem_of_text(value: Any, column: str, *, may_be_blank: bool = False) -> str | None:
    """Describe what is wrong with a text, as a sentence about its column; None if it is right."""
    if not isinstance(value, str):
        return f"{column} is {kind(value)}, expected text"
    if not value.strip() and not may_be_blank:
        return f"{column} is empty, expected text"
    if has_unpaired_surrogate(value):
        return f"{column} has an unpaired UTF-16 surrogate, as in text cut inside an emoji; expected Unicode"
    return None


def joined_parts(value: Any) -> Any:
    """Join the text parts of each message: OpenAI's form allows a list of parts, which not all templates know."""
    if not isinstance(value, list):
        return value
    return [
        {**message, "content": "".join(part["text"] for part in message["content"])}
        if isinstance(message.get("content"), list)
        else message
        for message in value
    ]


def _problem_of_message(message: Any, place: str) -> str | None:
    if not isinstance(message, dict):
        return f"{place} is {kind(message)}, expected {{role, content}}"
    if "role" not in message:
        return f"{place} has no role, expected one of {', '.join(ROLES)}"
    if message["role"] not in ROLES:
        shown = repr(message["role"])[:40] if isinstance(message["role"], str) else kind(message["role"])
        return f"{place}.role is {shown}, expected one of {', '.join(ROLES)}"
    weight = message.get("weight")
    if isinstance(weight, bool) or weight not in (None, 0, 1):
        shown = repr(weight) if isinstance(weight, int | float) else kind(weight)
        return f"{place}.weight is {shown}, expected 0 or 1"
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        return f"{place}.tool_calls is {kind(calls)}, expected a list"
    return _problem_of_content(message, place)


def _problem_of_content(message: Message, place: str) -> str | None:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return None
    # An empty answer would teach the model to stay silent; an empty question or instruction is harmless.
    may_be_blank = not is_learnt(message) or bool(message.get("tool_calls"))
    if not isinstance(content, list) or not content:
        return problem_of_text(content, f"{place}.content", may_be_blank=may_be_blank)
    for index, part in enumerate(content):
        where = f"{place}.content[{index}]"
        if not isinstance(part, dict) or part.get("type") != "text":
            return f"{where} is {_kind_of_part(part)}, expected {{type: text, text}}"
        if problem := problem_of_text(part.get("text"), f"{where}.text", may_be_blank=True):
            return problem
    return None


def _kind_of_part(part: Any) -> str:
    named = part.get("type") if isinstance(part, dict) else None
    return f"a part of type {named[:40]!r}" if isinstance(named, str) else kind(part)
