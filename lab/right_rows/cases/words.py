"""Words that cases are written with."""

from typing import Any

END = "<|im_end|>"

TRACK: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "track",
        "description": "Find a parcel",
        "parameters": {"type": "object", "properties": {"id": {"type": "string"}}},
    },
}
"""A tool in OpenAI's form."""
TRACKED = '<tool_call>{"name": "track", "arguments": {"id": "42"}}</tool_call>'
"""A call of it as most templates of `templates` write it."""


def user(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def assistant(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def system(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "system", "content": text, **more}


def result(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": text, **more}


def call(arguments: Any, name: str = "track", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def said(sender: str, text: Any, **more: Any) -> dict[str, Any]:
    """A turn of ShareGPT's."""
    return {"from": sender, "value": text, **more}


def turn(role: str, text: str) -> str:
    """A turn as the templates of `templates` write it."""
    return f"<|im_start|>{role}\n{text}{END}\n"


ASK = user("Where is my parcel?")
ANSWER = assistant("It left.")
CHAT = [ASK, ANSWER]
LEARNT = [f"It left.{END}"]
"""What is learnt of `ANSWER`."""
