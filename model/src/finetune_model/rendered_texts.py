"""Texts of a conversation, and those of them that a rendering by a chat template lacks.

A template decides by itself which messages and keys it writes; it may leave out tools, calls, reasoning or a system text
without an error. So the rendering is compared with the conversation. Both are in the form of `messages.normalize`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def texts_of(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of everything that a rendering should say.

    These are contents, reasoning, names, calls with the keys and values of their arguments, and of tools the names,
    descriptions, parameters and permitted values. Ids of calls, and the result's name of a tool that was called, are not: they
    only connect messages.
    """
    called = {call["function"]["name"] for message in messages for call in message.get("tool_calls") or ()}
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        if message.get("reasoning_content"):
            yield f"{path}.reasoning_content", message["reasoning_content"]
        if message.get("content"):
            thought, content = _thought_and_content(message)
            if thought:
                yield f"{path}.reasoning_content", thought
            yield f"{path}.content", content
        if message.get("name") and message["name"] not in called:
            yield f"{path}.name", message["name"]
        for number, call in enumerate(message.get("tool_calls") or ()):
            place = f"{path}.tool_calls[{number}].function"
            yield f"{place}.name", call["function"]["name"]
            yield from _leaves(call["function"]["arguments"], f"{place}.arguments")
    for index, tool in enumerate(tools or ()):
        function = tool["function"]
        place = f"tools[{index}].function"
        yield f"{place}.name", function["name"]
        if function.get("description"):
            yield f"{place}.description", function["description"]
        for key, value in function.items():
            if key not in ("name", "description"):
                yield from _schema_texts(value, f"{place}.{key}")


def dropped_texts(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, rendered: str
) -> list[tuple[str, str]]:
    """Return the paths and texts that `rendered` lacks. Each place of it counts for one text only.

    White space may differ, because templates trim. Arguments may be JSON, Python or a form of the template's own.
    """
    texts = [(path, text) for path, text in texts_of(messages, tools) if text.strip()]
    if _all_in_order(texts, rendered):
        return []
    missing = []
    # The longest first, so that a name is not found inside a question that mentions it; of equal texts the content, which is
    # what an answer must not lack.
    for path, text in sorted(texts, key=lambda item: (-len(item[1].strip()), not item[0].endswith(".content"))):
        place = _find(text.strip(), rendered, whole_word=not path.endswith(_SENTENCES))
        if place is not None:
            rendered = rendered[: place[0]] + "\0" + rendered[place[1] :]
        elif not path.endswith(_SENTENCES) or not _is_in_spaced(text, rendered):
            missing.append((path, text))
    order = {path: number for number, (path, _) in enumerate(texts)}
    return sorted(missing, key=lambda item: order[item[0]])


_THOUGHT = re.compile(r"\s*<(think|thinking|thought|reasoning)>(.*?)</\1>(.*)", re.DOTALL)
_SENTENCES = ("content", "description")
"""Last keys of paths whose texts may stand beside any character; all others are words."""


def _thought_and_content(message: Mapping[str, Any]) -> tuple[str, str]:
    """Return what an answer says in its content before and after the end of a thought; templates treat both apart."""
    content = message["content"]
    found = _THOUGHT.match(content) if message["role"] == "assistant" else None
    return (found[2], found[3]) if found else ("", content)


def _all_in_order(texts: Sequence[tuple[str, str]], rendered: str) -> bool:
    """Return whether all texts are contents that follow each other in the rendering: most conversations, at the least cost."""
    end = 0
    for path, text in texts:
        if not path.endswith(_SENTENCES):
            return False
        start = rendered.find(text.strip(), end)
        if start < 0:
            return False
        end = start + len(text.strip())
    return True


def _find(text: str, rendered: str, *, whole_word: bool) -> tuple[int, int] | None:
    """Return the place of a text as it is, or as JSON or Python quote it."""
    for form in dict.fromkeys(
        (text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1], repr(text)[1:-1])
    ):
        if whole_word:
            if found := re.search(rf"(?<!\w){re.escape(form)}(?!\w)", rendered):
                return found.span()
        elif (start := rendered.find(form)) >= 0:
            return start, start + len(form)
    return None


def _is_in_spaced(text: str, rendered: str) -> bool:
    return "".join(text.split()) in "".join(rendered.split())


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield keys and values of arguments; true, false and null are no texts, and each template has its own names for them."""
    if isinstance(value, dict):
        for key, inner in value.items():
            place = f"{path}.{key}"
            yield place, key
            yield from _leaves(inner, place)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{index}]")
    elif isinstance(value, str):
        yield path, value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, json.dumps(value)


def _schema_texts(schema: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield what a schema says in words: names of parameters, descriptions and permitted values, at any depth."""
    if isinstance(schema, list):
        for index, inner in enumerate(schema):
            yield from _schema_texts(inner, f"{path}[{index}]")
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        place = f"{path}.{key}"
        if key == "properties" and isinstance(value, dict):
            for name, inner in value.items():
                yield f"{place}.{name}", name
                yield from _schema_texts(inner, f"{place}.{name}")
        elif key == "description" and isinstance(value, str):
            yield place, value
        elif key == "enum" and isinstance(value, list):
            yield from ((f"{place}[{i}]", one) for i, one in enumerate(value) if isinstance(one, str))
        elif key not in ("default", "examples", "const"):
            yield from _schema_texts(value, place)
