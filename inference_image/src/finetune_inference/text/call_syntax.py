"""The written form of tool calls and of reasoning in a model's answers, and a parser of one call.

`answer_format` finds the form of a model; `answer_parser` reads answers with it; `call_grammar` constrains answers to it.
White space around and in markers is matched loosely, because models vary it.
"""

import ast
import json
from dataclasses import dataclass, field
from typing import Any

import regex

from finetune_inference.text.json_scanner import JsonScanner, NotJsonError

_PYTHON_NAME = regex.compile(r"[\s,]*(?P<name>[A-Za-z_][\w.-]*)\s*\(")
MAX_NAME = 256
"""Most characters of a function's name; a longer text is no call."""


class NotACallError(ValueError):
    """A text that began like a call and is none."""


@dataclass(frozen=True)
class ParsedCall:
    """A call as it was generated."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class JsonCall:
    """A call that is one JSON object, for example `{"name": "f", "arguments": {}}`; several may stand in a list."""

    name: tuple[str, ...] = ("name",)
    """Keys that lead to the function's name."""
    arguments: tuple[str, ...] = ("arguments",)
    """Keys that lead to the arguments."""
    prefix: str = '{"name": "'
    """Text before the name, which recognizes a call without a marker."""
    listed: bool = False
    """True if the calls stand in a list."""


@dataclass(frozen=True)
class NamedCall:
    """A call that is a name followed by the arguments as a JSON object."""

    between: str
    """Text between name and arguments."""


@dataclass(frozen=True)
class TaggedCall:
    """A call that is a name followed by one tag per argument, such as Qwen3-Coder's."""

    after_name: str
    before_key: str
    between: str
    """Text between an argument's name and its value, with white space that is no part of the value."""
    after_value: str


@dataclass(frozen=True)
class PythonicCall:
    """Calls that are a Python list of function calls with keyword arguments."""


Shape = JsonCall | NamedCall | TaggedCall | PythonicCall


@dataclass(frozen=True)
class CallSyntax:
    """The written form of calls: `opening before CALL after separator before CALL after closing`."""

    shape: Shape
    opening: str = ""
    """Text before the first call only."""
    before: str = ""
    """Text before each call."""
    after: str = ""
    """Text after each call."""
    closing: str = ""
    """Text after the last call only."""
    separator: str = ""
    """Text between `after` and the next `before`."""
    several: bool = True
    """False if the template refuses a second call."""

    @property
    def marked(self) -> bool:
        """True if a marker precedes calls, so that no ordinary text is taken for a call."""
        return bool((self.opening + self.before).strip())

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that belong to the form and not to a call."""
        shape = self.shape
        inner: tuple[str, ...] = ()
        if isinstance(shape, NamedCall):
            inner = (shape.between,)
        if isinstance(shape, TaggedCall):
            inner = (shape.after_name, shape.before_key, shape.between, shape.after_value)
        return tuple(
            t for t in (self.opening, self.before, self.after, self.closing, self.separator, *inner) if t.strip()
        )


def flexible(text: str) -> str:
    """Return a pattern for a text with any white space between its words, and any number for a number."""
    words = [regex.sub(r"\d+", r"\\d+", regex.escape(word)) for word in text.split()]
    return r"\s*".join(words)


def flexible_json(prefix: str) -> str:
    """Return a pattern for the beginning of a JSON text with any white space between its parts."""
    return r"\s*".join(map(regex.escape, regex.findall(r'"[^"]*"?|[^\s"]', prefix)))


@dataclass
class CallReader:
    """Reads one call from a growing text."""

    syntax: CallSyntax
    types: dict[str, dict[str, Any]]
    """JSON schemas of each function's arguments, for values that are written without quotes."""
    _scanner: JsonScanner | None = field(default=None, init=False)
    _named: tuple[str, int] | None = field(default=None, init=False)
    """Name of the function and the end of the text before its arguments."""

    def read(self, text: str) -> tuple[list[ParsedCall], int] | None:
        """Return the calls at the start of `text` and their end, or None if more text is needed. Raises NotACallError."""
        match self.syntax.shape:
            case JsonCall() as shape:
                end = self._json_end(text, 0)
                return None if end is None else (_calls_of(_loads(text[:end]), shape), end)
            case NamedCall(between):
                return self._read_named(text, between)
            case TaggedCall() as shape:
                return self._read_tagged(text, shape)
            case PythonicCall():
                return _read_pythonic(text)

    def _json_end(self, text: str, start: int) -> int | None:
        self._scanner = self._scanner or JsonScanner(start)
        try:
            return self._scanner.scan(text)
        except NotJsonError as error:
            raise NotACallError(str(error)) from None

    def _read_named(self, text: str, between: str) -> tuple[list[ParsedCall], int] | None:
        named = self._name(text, rf"\s*{flexible(between)}\s*(?=[{{])")
        if named is None:
            return None
        name, start = named
        end = self._json_end(text, start)
        return None if end is None else ([ParsedCall(name, _object(_loads(text[start:end])))], end)

    def _read_tagged(self, text: str, shape: TaggedCall) -> tuple[list[ParsedCall], int] | None:
        key_tag, after = flexible(shape.before_key), flexible(self.syntax.after)
        named = self._name(
            text, rf"\s*{flexible(shape.after_name)}" if shape.after_name else rf"\s*(?={key_tag}|{after})"
        )
        if named is None:
            return None
        name, position = named
        argument = regex.compile(
            rf"\s*{key_tag}(?P<key>.*?){flexible(shape.between)}(?P<value>.*?){flexible(shape.after_value)}",
            regex.DOTALL,
        )
        arguments: dict[str, Any] = {}
        while found := argument.match(text, position):
            key = found["key"].strip()
            arguments[key] = _typed(_value(found["value"], shape), self.types.get(name, {}).get(key, {}))
            position = found.end()
        end = regex.compile(rf"\s*{after}").match(text, position, partial=True)
        if end is not None and not end.partial:
            return [ParsedCall(name, arguments)], end.end()
        if argument.match(text, position, partial=True) or end:
            return None
        raise NotACallError("the arguments are not closed")

    def _name(self, text: str, rest: str) -> tuple[str, int] | None:
        if self._named:
            return self._named
        found = regex.match(rf"\s*(?P<name>[^\s<>(){{}}\[\]\"]+?){rest}", text, partial=True)
        if found is None or (len(text) > MAX_NAME and found.partial):
            raise NotACallError("no name of a function")
        if found.partial:
            return None
        self._named = (found["name"], found.end())
        return self._named


def _loads(text: str) -> Any:
    try:
        # Not strict, because models write line breaks into strings as they are.
        return json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        raise NotACallError(f"no JSON: {error}") from None


def _calls_of(value: Any, shape: JsonCall) -> list[ParsedCall]:
    items = value if isinstance(value, list) else [value]
    if not items:
        raise NotACallError("an empty list")
    return [_call_of(item, shape) for item in items]


def _call_of(item: Any, shape: JsonCall) -> ParsedCall:
    name, arguments = _at(item, shape.name), _at(item, shape.arguments)
    if arguments is None:
        # Models that read other templates before often write the other of the two common names.
        arguments = _at(item, ("parameters",)) or _at(item, ("arguments",)) or {}
    if not isinstance(name, str) or not name:
        raise NotACallError("no name of a function")
    return ParsedCall(name, _object(arguments))


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _object(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = _loads(value)
    if not isinstance(value, dict):
        raise NotACallError("the arguments are not an object")
    return value


def _value(text: str, shape: TaggedCall) -> str:
    """Return a value without the line breaks that the tags bring."""
    text = text.removeprefix("\n") if shape.between.endswith("\n") else text
    return text.removesuffix("\n") if shape.after_value.startswith("\n") else text


def _typed(text: str, schema: dict[str, Any]) -> Any:
    """Return an argument's value: as the function's schema says, else as JSON if it is JSON, else as text."""
    if schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_pythonic(text: str) -> tuple[list[ParsedCall], int] | None:
    start = len(text) - len(text.lstrip())
    if text[start:] and text[start] != "[":
        raise NotACallError("no list of calls")
    end = JsonScanner(start, quotes="\"'").scan(text)
    if end is None:
        return None
    calls, position = [], start + 1
    # Not parsed as one expression, because a function's name may have hyphens.
    while found := _PYTHON_NAME.match(text, position):
        closing = JsonScanner(found.end() - 1, quotes="\"'").scan(text)
        if closing is None:
            raise NotACallError("a call is not closed")
        calls.append(ParsedCall(found["name"], _keywords(text[found.end() : closing - 1])))
        position = closing
    if not calls or text[position : end - 1].strip(", \n"):
        raise NotACallError("no list of calls")
    return calls, end


def _keywords(text: str) -> dict[str, Any]:
    try:
        call = ast.parse(f"call({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            raise NotACallError("no keyword arguments")
        return {str(keyword.arg): _python_value(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NotACallError(f"no Python call: {error}") from None


def _python_value(node: ast.expr) -> Any:
    """Return a literal; `true`, `false` and `null` are read as JSON's."""
    names = {"true": True, "false": False, "null": None}
    match node:
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_python_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {ast.literal_eval(k): _python_value(v) for k, v in zip(keys, values, strict=True) if k}
    return ast.literal_eval(node)
