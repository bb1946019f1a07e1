"""Parts of a conversation that a chat template leaves out although the answer depends on them.

Templates decide by themselves what they write. They may drop reasoning of earlier answers and even earlier turns, and that is their
design; but a model that does not see the functions, a call, its result or the system text would answer another conversation.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finetune_model.chat import ChatTemplateError

Render = Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]] | None], str]
"""Rendering of messages and tools by the template that rendered the request. Raises ChatTemplateError."""


def first_left_out(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, rendered: str, render: Render
) -> tuple[str, str] | None:
    """Return the request's field and what of it `rendered` lacks; None if nothing is left out."""
    if tools and (
        any(tool["function"]["name"] not in rendered for tool in tools) or _is_same(rendered, render, messages, None)
    ):
        return "tools", "the functions; leave out tools, or serve an adapter whose template shows them"
    position = 0
    for message in messages:
        if message["role"] in ("system", "tool") and (text := message["content"].strip()):
            found = rendered.find(text, position)
            if found < 0 and not _is_quoted(text, rendered):
                return "messages", f"the text of a message of role {message['role']}; put it in a message of role user"
            position = max(position, found)
    names = [call["function"]["name"] for message in messages for call in message.get("tool_calls") or ()]
    without = [{key: value for key, value in message.items() if key != "tool_calls"} for message in messages]
    if names and (any(name not in rendered for name in names) or _is_same(rendered, render, without, tools)):
        return "messages", "a call of a function; leave out the call and its result"
    return None


def _is_same(
    rendered: str, render: Render, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
) -> bool:
    """Return whether less is rendered as the same text. A name alone may be found elsewhere: `user` is in most role headers."""
    try:
        return render(messages, tools) == rendered
    except ChatTemplateError:
        return False


def _is_quoted(text: str, rendered: str) -> bool:
    """Return whether a text is rendered anywhere, as it is, as JSON or Python quote it, or with other white space."""
    quoted = (text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1], repr(text)[1:-1])
    return any(form in rendered for form in quoted) or "".join(text.split()) in "".join(rendered.split())
