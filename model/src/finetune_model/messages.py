"""Chat messages and tools in one form, for training rows and for requests.

The trainer calls `normalize` for each row and the server for each request, so that a conversation reaches the chat template
in one form wherever it comes from. The form is OpenAI's, with what templates need:

- `content` is text. Parts are joined by line breaks; the content of a message that only calls tools is empty.
- Arguments of calls are objects. OpenAI sends the text of an object, which templates would quote once more.
- `developer` is `system`; `functions`, `function_call` and the role `function` are tools, calls and the role `tool`.
- `reasoning` and `thinking` are `reasoning_content`.
- Keys that are null are absent: Parquet gives every message the keys of all of them.

A key that has no place in this form is reported to the caller or refused by name, never dropped.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from finetune_model.unicode import has_unpaired_surrogate

Message = dict[str, Any]
"""Message in the form of this module: role and content, and if they are set reasoning_content, name, tool_calls, tool_call_id
and weight, in this order."""
Tool = dict[str, Any]
"""`{type: function, function: {name, description, parameters}}`."""

ROLES: Final = ("system", "developer", "user", "assistant", "tool")
"""Roles of messages; `function`, the older name of `tool`, is read, too."""
PART_SEPARATOR: Final = "\n"
"""Text between two parts of a content, as vLLM joins them for templates that expect text."""
REASONING_KEYS: Final = ("reasoning_content", "reasoning", "thinking")
"""Keys under which servers and datasets write what a model thought before its answer."""
MAX_DEPTH: Final = 64
"""Levels of arguments and schemas; templates write them by recursion."""

_ROLE_NAMES: Final = {**{role: role for role in ROLES}, "developer": "system", "function": "tool"}
_TEXT_PARTS: Final = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Types of text parts, with the key of their text."""
_KEYS: Final = frozenset({"role", "content", "name"})
_KEYS_OF_ROLES: Final = {
    "assistant": _KEYS | {"tool_calls", "function_call", "refusal", *REASONING_KEYS},
    "tool": _KEYS | {"tool_call_id"},
}
_LOSS_KEYS: Final = frozenset({"weight", "train", "loss"})
_EMPTY: Final[tuple[Any, ...]] = (None, "", [], {})


class MessageError(ValueError):
    """A message or tool that cannot be used. The text has its path and shape, and what is expected, but none of its content."""

    def __init__(self, path: str, problem: str) -> None:
        """Describe the `problem` as the rest of a sentence about `path`, for example `messages[1].content` `is a number`."""
        super().__init__(f"{path} {problem}")
        self.path = path
        self.problem = problem


def normalize(
    messages: Any,
    tools: Any = None,
    *,
    functions: Any = None,
    path: str = "messages",
    training: bool = False,
    unused: Callable[[str], None] | None = None,
) -> tuple[list[Message], list[Tool] | None]:
    """Check messages and tools, and return both in one form; the arguments stay unchanged. Raises MessageError.

    `functions` is the older form of `tools`, and `path` the name of `messages` in errors. With `training`, messages may have a
    `weight` of 0 or 1, or a boolean `train` or `loss`; all become `weight`. `unused` is called with the path of each key that
    has no meaning; without it such a key is an error.
    """
    if not isinstance(messages, list) or not messages:
        raise MessageError(path, f"is {kind(messages)}, expected a list of {{role, content}}")
    reader = _Reader(training=training, unused=unused)
    normalized = [reader.message(message, f"{path}[{index}]") for index, message in enumerate(messages)]
    return normalized, normalize_tools(tools, functions=functions, unused=unused)


def normalize_tools(
    tools: Any, *, functions: Any = None, unused: Callable[[str], None] | None = None
) -> list[Tool] | None:
    """Return tools in OpenAI's form, None if there are none; the list and each tool may be JSON text. Raises MessageError."""
    given, path = (tools, "tools") if functions in _EMPTY else (functions, "functions")
    if given in _EMPTY:
        return None
    if functions not in _EMPTY and tools not in _EMPTY:
        raise MessageError("functions", "is set beside tools, which has replaced it; keep one of them")
    given = parsed(given, "[", path)
    if not isinstance(given, list):
        raise MessageError(path, f"is {kind(given)}, expected a list of functions")
    return [_tool(tool, f"{path}[{index}]", unused) for index, tool in enumerate(given)] or None


def parse_json(text: str, path: str) -> Any:
    """Return the value of a JSON text. Raises MessageError, also for a key that occurs twice in one object."""
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _without_twins(pairs, path))
    except MessageError:
        raise
    except RecursionError:
        raise MessageError(path, "is nested too deeply") from None
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "a number has too many digits"
        raise MessageError(path, f"is text that is not JSON ({reason})") from None


def kind(value: Any) -> str:
    """Describe the kind of a value without repeating it."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "text" if value else "an empty text"
        case list():
            return "a list" if value else "an empty list"
        case dict():
            return "an object"
        case _:
            return f"of type {type(value).__name__}"


def is_empty(value: Any) -> bool:
    """Return whether a value holds nothing that could be lost: null, or an empty text, list or object."""
    return value in _EMPTY


class _Reader:
    """Reader of one conversation, which knows the calls so far."""

    def __init__(self, *, training: bool, unused: Callable[[str], None] | None) -> None:
        self._loss_keys = _LOSS_KEYS if training else frozenset()
        self._unused = unused
        self._names: dict[str, str] = {}
        """Name of each called function by the call's id."""
        self._open: list[str] = []
        """Ids of calls without a result."""
        self._made: set[str] = set()
        """Ids that calls without one were given."""

    def message(self, value: Any, path: str) -> Message:
        """Return a message in the common form."""
        if not isinstance(value, dict):
            raise MessageError(path, f"is {kind(value)}, expected {{role, content}}")
        content = value.get("content")
        if len(value) == 2 and isinstance(content, str) and value.get("role") in ("system", "user", "assistant"):
            # Most messages: several times faster, which a hundred thousand rows notice.
            return {"role": value["role"], "content": checked_text(content, f"{path}.content")}
        role = _role(value, path)
        given = {key: item for key, item in value.items() if item is not None}
        known = _KEYS_OF_ROLES.get(role, _KEYS) | self._loss_keys
        if not given.keys() <= known:
            report_unused(given, known, path, self._unused, f"a message of role {role}")
        message: Message = {"role": role, "content": self._content(given.get("content"), f"{path}.content")}
        if role == "assistant":
            self._add_answer(message, given, path)
        if message["content"] is None:
            raise MessageError(f"{path}.content", "is null, expected text")
        if "name" in given:
            message["name"] = checked_text(given["name"], f"{path}.name")
        if role == "assistant" and (calls := self._calls(given, path)):
            message["tool_calls"] = calls
        if role == "tool":
            self._add_result(message, given, path)
        weight = _weight(given, path) if self._loss_keys else None
        return message if weight is None else {**message, "weight": weight}

    def _content(self, value: Any, path: str) -> str | None:
        if value is None or value == []:
            return None
        if not isinstance(value, list):
            return checked_text(value, path)
        texts = []
        for index, part in enumerate(value):
            place = f"{path}[{index}]"
            given = part.get("type") if isinstance(part, dict) else None
            key = _TEXT_PARTS.get(given) if isinstance(given, str) else None
            if key is None:
                found = f"a part of type {shown(given)}" if isinstance(given, str) else kind(part)
                raise MessageError(place, f"is {found}, expected {{type: text, text}}")
            report_unused(part, {"type", key}, place, self._unused, "a part")
            texts.append(checked_text(part.get(key), f"{place}.{key}"))
        return PART_SEPARATOR.join(texts)

    def _add_answer(self, message: Message, given: Mapping[str, Any], path: str) -> None:
        """Add an assistant's reasoning, and the text of an answer that is a refusal or has calls only."""
        if given.get("refusal"):
            refusal = checked_text(given["refusal"], f"{path}.refusal")
            if message["content"]:
                raise MessageError(f"{path}.refusal", "is set beside content, expected one of the two")
            message["content"] = refusal
        if message["content"] is None and (given.get("tool_calls") or given.get("function_call")):
            message["content"] = ""
        texts = {key: checked_text(given[key], f"{path}.{key}") for key in REASONING_KEYS if key in given}
        reasoning = sorted({text for text in texts.values() if text})
        if len(reasoning) > 1:
            raise MessageError(path, f"has different texts in {' and '.join(texts)}, expected one of them")
        if reasoning:
            message["reasoning_content"] = reasoning[0]

    def _calls(self, given: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
        place = f"{path}.tool_calls"
        calls = parsed(given.get("tool_calls"), "[", place)
        if not isinstance(calls, list | None):
            raise MessageError(place, f"is {kind(calls)}, expected a list")
        if legacy := given.get("function_call"):
            if calls:
                raise MessageError(f"{path}.function_call", "is set beside tool_calls, which has replaced it; keep one")
            return [self._call({"function": legacy}, path, f"{path}.function_call")]
        return [self._call(call, f"{place}[{i}]", f"{place}[{i}].function") for i, call in enumerate(calls or ())]

    def _call(self, call: Any, path: str, place: str) -> dict[str, Any]:
        """Return a call with an id; `place` is the path of its function."""
        if not isinstance(call, dict):
            raise MessageError(path, f"is {kind(call)}, expected {{id, type, function}}")
        function = call.get("function")
        if function is None and "name" in call:  # written without the level in between
            function = {key: value for key, value in call.items() if key not in ("id", "type", "function")}
            call, place = {key: call.get(key) for key in ("id", "type")}, path
        if not isinstance(function, dict):
            raise MessageError(place, f"is {kind(function)}, expected {{name, arguments}}")
        if call.get("type") not in (None, "function"):
            raise MessageError(f"{path}.type", f"is {shown(call['type'])}, expected function")
        report_unused(call, {"id", "type", "function"}, path, self._unused, "a call")
        report_unused(function, {"name", "arguments"}, place, self._unused, "a call's function")
        name = _name(function.get("name"), f"{place}.name")
        arguments = _arguments(function.get("arguments"), f"{place}.arguments")
        call_id = self._register(call.get("id"), name, path)
        return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}

    def _register(self, call_id: Any, name: str, path: str) -> str:
        """Remember a call, and return its id. One is made if there is none, of the form that Mistral's templates require."""
        if call_id in (None, ""):
            call_id = f"call{len(self._names):05d}"
            self._made.add(call_id)
        checked_text(call_id, f"{path}.id")
        self._names[call_id] = name
        self._open.append(call_id)
        return str(call_id)

    def _add_result(self, message: Message, given: Mapping[str, Any], path: str) -> None:
        """Add to a tool's message the id and name of the call that it answers, as far as they can be known."""
        call_id, name = given.get("tool_call_id"), message.get("name")
        if call_id is not None:
            checked_text(call_id, f"{path}.tool_call_id")
        # A conversation may write its calls as text, or begin after them: then there is nothing to compare with.
        if call_id not in self._names and self._names:
            matching = [one for one in self._open if name in (None, self._names[one])]
            if call_id is not None and not self._made:
                raise MessageError(f"{path}.tool_call_id", "is the id of no call before it; expected one of tool_calls")
            call_id = matching[0] if matching else call_id
        if call_id in self._open:
            self._open.remove(call_id)
        if call_id in self._names:
            message.setdefault("name", self._names[call_id])
        if call_id is not None:
            message["tool_call_id"] = call_id


def report_unused(
    given: Mapping[Any, Any], known: Any, path: str, unused: Callable[[str], None] | None, owner: str
) -> None:
    """Report keys that are not `known` and hold something. Raises MessageError if `unused` is None."""
    for key, value in given.items():
        if key in known or is_empty(value):
            continue
        name = re.sub(r"\s+", " ", str(key))[:40]
        if unused is None:
            raise MessageError(f"{path}.{name}", f"has no meaning in {owner}; remove it")
        unused(f"{path}.{name}")


def checked_text(value: Any, path: str) -> str:
    """Return a text that can be tokenized. Raises MessageError."""
    if not isinstance(value, str):
        raise MessageError(path, f"is {kind(value)}, expected text")
    if has_unpaired_surrogate(value):
        raise MessageError(path, "has an unpaired UTF-16 surrogate, as in text cut inside an emoji; expected Unicode")
    return value


def shown(value: Any) -> str:
    """Return a short name, such as a role or a type, for a message; the kind of any other value."""
    return repr(value)[:40] if isinstance(value, str) else kind(value)


def _role(value: Mapping[str, Any], path: str) -> str:
    role = value.get("role")
    if role is None:
        raise MessageError(path, f"has no role, expected one of {', '.join(ROLES)}")
    if not isinstance(role, str) or role not in _ROLE_NAMES:
        raise MessageError(f"{path}.role", f"is {shown(role)}, expected one of {', '.join(ROLES)}")
    return _ROLE_NAMES[role]


def _weight(given: Mapping[str, Any], path: str) -> int | None:
    """Return 0 or 1, whichever key says so; None without such a key."""
    found: dict[str, int] = {}
    if "weight" in given:
        weight = given["weight"]
        if isinstance(weight, bool) or weight not in (0, 1):
            found_value = repr(weight) if isinstance(weight, int | float) else kind(weight)
            raise MessageError(f"{path}.weight", f"is {found_value}, expected 0 or 1")
        found["weight"] = int(weight)
    for key in ("train", "loss"):
        if key in given:
            if not isinstance(given[key], bool):
                raise MessageError(f"{path}.{key}", f"is {kind(given[key])}, expected true or false")
            found[key] = int(given[key])
    if len(set(found.values())) > 1:
        raise MessageError(path, f"has {' and '.join(found)} that contradict each other")
    return next(iter(found.values()), None)


def _name(value: Any, path: str) -> str:
    if not checked_text(value, path).strip():
        raise MessageError(path, "is empty, expected the name of a function")
    return str(value)


def _arguments(value: Any, path: str) -> dict[str, Any]:
    """Return the arguments of a call as an object: OpenAI's form has the text of one, which is empty without arguments."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return {}
    found = "is"
    if isinstance(value, str):
        value, found = parse_json(value, path), "is the text of"
    if not isinstance(value, dict):
        raise MessageError(path, f"{found} {kind(value)}, expected an object")
    _check_values(value, path)
    return value


def parsed(value: Any, start: str, path: str) -> Any:
    """Return the value of a JSON text that begins with `start`; any other value as it is."""
    return parse_json(value, path) if isinstance(value, str) and value.lstrip().startswith(start) else value


def _tool(tool: Any, path: str, unused: Callable[[str], None] | None) -> Tool:
    tool = parsed(tool, "{", path)
    if not isinstance(tool, dict):
        raise MessageError(path, f"is {kind(tool)}, expected {{type: function, function}}")
    if tool.get("type") not in (None, "function"):
        raise MessageError(f"{path}.type", f"is {shown(tool['type'])}, expected function; no other tool can be called")
    function, place = tool.get("function"), f"{path}.function"
    if function is None and "name" in tool:  # `functions`, and the form of the Responses API
        function, place = {key: value for key, value in tool.items() if key not in ("type", "function")}, path
    else:
        report_unused(tool, {"type", "function"}, path, unused, "a tool")
    if not isinstance(function, dict):
        raise MessageError(place, f"is {kind(function)}, expected {{name, description, parameters}}")
    function = {key: value for key, value in function.items() if value is not None}
    _name(function.get("name"), f"{place}.name")
    if "description" in function:
        checked_text(function["description"], f"{place}.description")
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if isinstance(parameters, str):
        parameters = parse_json(parameters, f"{place}.parameters")
    if not isinstance(parameters, dict):
        raise MessageError(f"{place}.parameters", f"is {kind(parameters)}, expected an object (JSON Schema)")
    function = {**function, "parameters": parameters}
    _check_values(function, place)
    return {"type": "function", "function": function}


def _check_values(value: Any, path: str) -> None:
    """Check that JSON has all nested values, and UTF-8 all texts. Not recursive, because a request may nest deeply."""
    waiting = [(path, value, 0)]
    while waiting:
        place, item, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise MessageError(path, f"is nested more than {MAX_DEPTH} levels deep")
        if isinstance(item, str):
            checked_text(item, place)
        elif isinstance(item, dict):
            for key, inner in item.items():
                checked_text(key, f"a key of {place}")
                waiting.append((f"{place}.{key[:40]}", inner, depth + 1))
        elif isinstance(item, list):
            waiting += [(f"{place}[{i}]", inner, depth + 1) for i, inner in enumerate(item)]
        elif isinstance(item, float) and not math.isfinite(item):
            # Python reads NaN and Infinity, and 1e400 as infinity; a template would write them as words.
            raise MessageError(place, "is not JSON: NaN" if math.isnan(item) else "is a number out of range")
        elif not isinstance(item, int | float | None):
            raise MessageError(place, f"is {kind(item)}, expected JSON")


def _without_twins(pairs: list[tuple[str, Any]], path: str) -> dict[str, Any]:
    """Refuse a key that occurs twice, because Python would silently keep its last value."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise MessageError(path, "has a key more than once in one object")
    return value
