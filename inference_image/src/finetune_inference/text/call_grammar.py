"""Grammars that hold an answer to a call of a function, in the form in which the model writes calls."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_inference.text.answer_format import AnswerFormat
from finetune_inference.text.call_syntax import CallSyntax, JsonCall, NamedCall
from finetune_inference.text.grammar import guided

JSON_LIST = CallSyntax(JsonCall(listed=True, prefix='[{"name": "'))
"""Form for models whose own form has no grammar (tags, Python), or that have none."""


@dataclass(frozen=True)
class Function:
    """A function that may be called."""

    name: str
    schema: dict[str, Any]
    """JSON schema of its arguments."""
    strict: bool = False
    """If true, keywords of the schema that cannot be enforced are an error; otherwise they are ignored."""


def constrained_format(form: AnswerFormat) -> AnswerFormat:
    """Return the form of a constrained answer."""
    if form.harmony or (form.calls and isinstance(form.calls.shape, JsonCall | NamedCall)):
        return form
    return AnswerFormat(form.reasoning, JSON_LIST, short_ids=form.short_ids)


def call_grammar(
    form: AnswerFormat,
    functions: Sequence[Function],
    literal: Callable[[str], str],
    *,
    several: bool,
    answer: dict[str, Any] | None = None,
) -> str:
    """Return the Lark grammar of an answer that calls one of the functions, or `several`.

    `form` is a `constrained_format`. `literal` writes a text as a term of the grammar, special tokens included. `answer` is the
    schema of an answer without calls, if one is allowed.
    """
    if form.harmony:
        rules = _harmony(functions, literal)
    else:
        assert form.calls is not None  # noqa: S101 - as `constrained_format` returns it
        rules = _marked(form.calls, functions, literal, several=several and form.calls.several)
    start = "start: calls\n" if answer is None else f"start: calls | answer\nanswer: %json {_json(answer)}\n"
    return f"%llguidance {{}}\n{start}{rules}"


def _marked(syntax: CallSyntax, functions: Sequence[Function], literal: Callable[[str], str], *, several: bool) -> str:
    opening, closing = literal(syntax.opening), literal(syntax.closing)
    if isinstance(syntax.shape, JsonCall) and syntax.shape.listed:
        schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": _any_call(syntax.shape, functions)}
        if not several:
            schema["maxItems"] = 1
        return f"calls: {opening} listed {closing}\nlisted: %json {_json(_guided(_hoisted(schema), functions))}\n"
    before, after, separator = (literal(text) for text in (syntax.before, syntax.after, syntax.separator))
    more = f"({separator} {before} call {after})*" if several else ""
    rules = f"calls: {opening} {before} call {after} {more} {closing}\n"
    if isinstance(syntax.shape, JsonCall):
        return f"{rules}call: %json {_json(_guided(_hoisted(_any_call(syntax.shape, functions)), functions))}\n"
    assert isinstance(syntax.shape, NamedCall)  # noqa: S101 - as `constrained_format` returns it
    between = syntax.shape.between
    return rules + _named(functions, lambda name: literal(name + between))


def _harmony(functions: Sequence[Function], literal: Callable[[str], str]) -> str:
    analysis = f"({literal('<|channel|>analysis<|message|>')} /(.|\\n)*/ {literal('<|end|><|start|>assistant')})?"
    head = literal("<|channel|>commentary to=functions.")
    return f"calls: {analysis} {head} call\n" + _named(
        functions, lambda name: literal(f"{name} <|constrain|>json<|message|>")
    )


def _named(functions: Sequence[Function], head: Callable[[str], str]) -> str:
    names = " | ".join(f"call_{index}" for index in range(len(functions)))
    rules = [
        f"call_{index}: {head(function.name)} %json {_json(_guided(function.schema, [function]))}"
        for index, function in enumerate(functions)
    ]
    return "\n".join([f"call: {names}", *rules, ""])


def _any_call(shape: JsonCall, functions: Sequence[Function]) -> dict[str, Any]:
    calls = [
        _nested([(shape.name, {"const": function.name}), (shape.arguments, _scoped(function))])
        for function in functions
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def _nested(paths: Sequence[tuple[tuple[str, ...], dict[str, Any]]]) -> dict[str, Any]:
    """Return the schema of an object that has exactly these values at these paths."""
    properties: dict[str, Any] = {}
    for key in dict.fromkeys(path[0] for path, _ in paths):
        inner = [(path[1:], schema) for path, schema in paths if path[0] == key]
        properties[key] = inner[0][1] if not inner[0][0] else _nested(inner)
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _scoped(function: Function) -> dict[str, Any]:
    """Return a function's schema for a place inside another schema: its definitions and references have its name."""
    root = f"#/$defs/{function.name}"

    def scoped(value: Any) -> Any:
        if isinstance(value, list):
            return [scoped(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {
            key: root + inner[1:]
            if key == "$ref" and isinstance(inner, str) and inner.startswith("#")
            else scoped(inner)
            for key, inner in value.items()
        }

    return (
        {"x-scope": function.name, **scoped(function.schema)}
        if "$ref" in json.dumps(function.schema)
        else function.schema
    )


def _hoisted(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose scoped parts are definitions of its root."""
    definitions: dict[str, Any] = {}

    def hoisted(value: Any) -> Any:
        if isinstance(value, list):
            return [hoisted(item) for item in value]
        if not isinstance(value, dict):
            return value
        if isinstance(name := value.get("x-scope"), str):
            definitions[name] = {key: inner for key, inner in value.items() if key != "x-scope"}
            return {"$ref": f"#/$defs/{name}"}
        return {key: hoisted(inner) for key, inner in value.items()}

    body = hoisted(schema)
    return {**body, "$defs": definitions} if definitions else body


def _guided(schema: dict[str, Any], functions: Sequence[Function]) -> dict[str, Any]:
    return guided(schema, lenient=not any(function.strict for function in functions))


def _json(schema: dict[str, Any]) -> str:
    return json.dumps(schema)
