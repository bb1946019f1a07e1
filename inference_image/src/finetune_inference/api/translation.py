"""Translation of other APIs' requests into a `ChatCompletionRequest`, with errors in the client's own terms."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from finetune_api.validation import FieldError, problems_of
from finetune_inference.api.errors import ApiError, invalid_value, with_reason
from finetune_inference.api.requests import ChatCompletionRequest

Chat = TypeVar("Chat", bound=ChatCompletionRequest)
MAX_SHOWN = 40
"""Most characters of a client's type or role in a message."""


@dataclass
class Conversation:
    """Messages in the order of a chat, with the place of each in the client's request."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    def add(self, place: str, message: dict[str, Any]) -> dict[str, Any]:
        """Append a message that stands at `place` in the client's request."""
        self.messages.append(message)
        self.places.append(place)
        return message


def translate(work: Callable[[], Chat]) -> Chat:
    """Return the chat that a request means. Raises ApiError."""
    try:
        return work()
    except FieldError as error:
        raise invalid_value(str(error), _top(error.field)) from None


def refuse_other_names(data: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Raise FieldError for a chat's field that has another name in the client's API, or that its answers have no place for."""
    if misplaced := sorted(name for name in names if name in data and name not in names.values()):
        raise FieldError(misplaced[0], f"is a field of /v1/chat/completions; use {names[misplaced[0]]} here")
    if data.get("n") not in (None, 1):
        raise FieldError("n", "an answer of this route is one; send several requests, or use /v1/chat/completions")


def translated(
    model: type[Chat], fields: Mapping[str, Any], conversation: Conversation, names: Mapping[str, str]
) -> Chat:
    """Return the chat's request without unset fields. `names` are the client's fields by ours. Raises ApiError."""
    body = {key: value for key, value in fields.items() if value is not None} | {"messages": conversation.messages}
    try:
        return model.model_validate(body)
    except ValidationError as error:
        problems = [with_reason(each, model) for each in problems_of(error, document=body, model=model)]
        place = client_place(problems[0].field, conversation, names)
        text = str(problems[0])
        message = place + text.removeprefix(problems[0].field) if text.startswith(problems[0].field) else text
        raise invalid_value(message, _top(place)) from None


def client_place(place: str, conversation: Conversation, names: Mapping[str, str]) -> str:
    """Return a field of a chat's request as the field of the client's request that it came from."""
    if found := re.match(r"messages\[(\d+)\](.*)", place):
        return conversation.places[int(found[1])] + found[2]
    # The longest name first, because a client's object may stand one level higher than ours.
    for ours in sorted(names, key=len, reverse=True):
        if re.match(rf"{re.escape(ours)}(?!\w)", place):
            return names[ours] + place.removeprefix(ours)
    return place


@contextmanager
def client_names(names: Mapping[str, str]) -> Iterator[None]:
    """Give the field of an ApiError that the block raises the client's name."""
    try:
        yield
    except ApiError as error:
        if error.param is not None and error.param in names:
            error.message = re.sub(rf"\b{error.param}\b", names[error.param], error.message)
            error.param = _top(names[error.param])
        raise


def _top(place: str) -> str | None:
    """Return the top-level field of a place, which is OpenAI's `param`."""
    return re.split(r"[.\[]", place)[0] or None


def unexpected_type(place: str, found: Any, expected: str) -> FieldError:
    """Return the error for a part of a request that is not served."""
    shown = repr(found)[:MAX_SHOWN] if isinstance(found, str) else "missing"
    return FieldError(f"{place}.type", f"is {shown}, expected {expected}")


def text_of(value: Any, place: str, types: tuple[str, ...], *, ignored: frozenset[str] = frozenset()) -> str:
    """Return a text, or the joined texts of parts with these types. Raises FieldError."""
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list):
        raise FieldError(place, f"expected text or a list of {{type: {types[0]}, text}}")
    texts = []
    for index, part in enumerate(value):
        here = f"{place}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(part, dict) or kind not in types:
            raise unexpected_type(here, kind, " or ".join(types))
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise FieldError(f"{here}.text", "expected text")
        refuse_keys(part, {"type", "text", "refusal"} | ignored, here)
        texts.append(text)
    return "\n".join(texts)


def refuse_keys(value: Mapping[str, Any], known: "set[str] | frozenset[str]", place: str) -> None:
    """Raise FieldError for a key with a value that would change the answer and is not served."""
    for key, item in value.items():
        if key not in known and item not in (None, [], {}, ""):
            raise FieldError(f"{place}.{str(key)[:MAX_SHOWN]}", "not supported by this server; leave it out")
