"""Validation errors of pydantic in plain words: field, expected, found.

Operator, gateway, trainer and server all report them through `problems_of`, so that one mistake reads the same everywhere.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from finetune_api.v1alpha1.common import DNS_LABEL_PATTERN, SERVICE_NAME_PATTERN

MAX_FOUND: Final = 80
"""Characters of a refused value that are shown: enough to recognize it."""
MAX_KEY: Final = 60
"""Characters of an unknown key that are shown."""
MAX_TEXT: Final = 400
"""Characters of one problem's text."""
MAX_LISTED: Final = 5
"""Problems that `summary` names; the first few say enough."""
MAX_SUGGESTIONS: Final = 20
"""Unknown keys that get a suggestion: a body can have as many of them as bytes."""
MAX_TAGGED: Final = 64
"""Keys of an object that may be the tagged member of a union."""
MAX_BITS: Final = 256
"""Size of an integer that is shown; Python refuses to print very large ones."""
UNKNOWN: Final = object()
"""Document that the caller does not have: locations are then shown as pydantic gives them."""

_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_SECRET_FIELD: Final = re.compile(r"token|secret|password|credential|api_?key", re.IGNORECASE)
_USER_IN_URI: Final = re.compile(r"(\w+://)[^/\s'\"]*@")
_QUERY_IN_URI: Final = re.compile(r"(\b(?!hf://)\w+://[^\s'\"?]*)\?[^\s'\"]*")
_BRANCH: Final = re.compile(r"[\w-]+\[.*\]|int|str|float|bool|constrained-\w+|[A-Z]\w*", re.DOTALL)
"""Part of a location that stands for a member of a union: `list[TextPart]`, `str`, `TextFormat`."""
_SYNONYMS: Final[Mapping[str, str]] = {
    "r": "rank",
    "lr": "learningRate",
    "loraalpha": "alpha",
    "loradropout": "dropout",
    "maxseqlength": "maxLength",
    "numtrainepochs": "epochs",
    "perdevicetrainbatchsize": "microBatchSize",
    "lrschedulertype": "schedule",
    "savesteps": "everySteps",
    "savetotallimit": "keep",
}
"""Names that peft and transformers' Trainer use for a field of ours, lower-case without underscores."""
_PATTERNS: Final[Mapping[str, str]] = {
    DNS_LABEL_PATTERN: "expected lower-case letters, digits and '-', with a letter or digit at both ends",
    SERVICE_NAME_PATTERN: "expected lower-case letters, digits and '-', beginning with a letter and not ending in '-'",
    r"^sha256:[0-9a-f]{64}$": "expected sha256: and 64 hex digits",
}
_TYPES: Final[Mapping[str, str]] = {
    "int": "an integer",
    "float": "a number",
    "decimal": "a number",
    "finite": "a finite number",
    "string": "a string",
    "bool": "true or false",
    "list": "a list",
    "dict": "an object",
    "model": "an object",
    "mapping": "an object",
    "none": "null",
    "datetime": "a time such as 2026-01-31T12:00:00Z",
    "timezone": "a time such as 2026-01-31T12:00:00Z",
}
"""Expected type by the first word of pydantic's error type (`int_type`, `int_parsing`, `int_from_float`)."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a document."""

    field: str
    """Field as the user writes it, for example `messages[0].content[1]`; empty for the whole document."""
    message: str
    """Clause that says what is wrong or expected, without a full stop."""
    found: str | None = None
    """Refused value as one short line of JSON; None if the message says enough."""
    kind: str = ""
    """pydantic's error type, for example `missing`."""

    def __str__(self) -> str:
        """Return the problem as one clause: `lora.rank: expected 1 or more, found 0`."""
        found = f", found {self.found}" if self.found is not None else ""
        return f"{self.field}: {self.message}{found}" if self.field else f"{self.message}{found}"


class FieldError(ValueError):
    """An error of a whole model that names the field at fault."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


@dataclass(frozen=True)
class _Located:
    """A pydantic error with its location cleaned of union members."""

    error: Mapping[str, Any]
    path: tuple[str | int, ...]
    branch: int | None
    """Length of the path at the first union on the way; None without one."""


def problems_of(
    errors: ValidationError | Iterable[Mapping[str, Any]],
    *,
    document: object = UNKNOWN,
    model: type[BaseModel] | None = None,
) -> list[Problem]:
    """Return every problem of a validation error.

    `document` is the parsed input: with it, members of unions disappear from field names. `model` is the class that refused
    it: with it, an unknown key comes with the field that was probably meant.
    """
    found = errors.errors(include_url=False) if isinstance(errors, ValidationError) else errors
    problems: dict[tuple[str, str], Problem] = {}
    unknown = 0
    for item in _furthest([_locate(error, document) for error in found]):
        unknown += item.error["type"] == "extra_forbidden"
        problem = _problem(item, model if unknown <= MAX_SUGGESTIONS else None)
        # The members of a union that expect another type become one problem: "expected a string or a list".
        is_type = item.branch is not None and problem.kind.endswith("_type")
        key = (problem.field, "type" if is_type else problem.message)
        known = problems.setdefault(key, problem)
        expected = problem.message.removeprefix("expected ")
        if expected not in known.message:
            problems[key] = replace(known, message=f"{known.message} or {expected}")
    return list(problems.values())


def summary(problems: Sequence[Problem], limit: int = MAX_LISTED) -> str:
    """Return the first problems as one line, and how many more there are."""
    rest = f"; and {len(problems) - limit} more" if len(problems) > limit else ""
    return "; ".join(map(str, problems[:limit])) + rest


def shown(value: Any) -> str | None:
    """Return a refused value as one short line. Objects and lists are named by type: the field says where to look."""
    if value is None:
        return "null"
    if isinstance(value, dict | list | tuple):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        return "a number with many digits"
    if not isinstance(value, str | int | float):
        return None
    return _bounded(_without_credentials(json.dumps(value, ensure_ascii=False)), MAX_FOUND)


def _locate(error: Mapping[str, Any], document: object) -> _Located:
    """Walk the location along the document; a part that leads nowhere and looks like a union's member is dropped."""
    parts = tuple(error["loc"])
    path: list[str | int] = []
    branch: int | None = None
    here = document
    for i, part in enumerate(parts):
        following = parts[i + 1] if i + 1 < len(parts) else None
        if document is not UNKNOWN and _is_branch(part, here, following, error["type"]):
            branch = len(path) if branch is None else branch
            continue
        path.append(part)
        here = _child(here, part)
    return _Located(error, tuple(path), branch)


def _is_branch(part: str | int, here: object, following: str | int | None, kind: str) -> bool:
    if isinstance(part, int):
        return False
    if isinstance(here, dict):
        if (
            following is not None
            and len(here) <= MAX_TAGGED
            and part in [v for v in here.values() if isinstance(v, str)]
        ):
            # The tag of a discriminated union, such as response_format.type.
            return part not in here or following == part
        is_key = following is None and kind in ("missing", "extra_forbidden")
        return part not in here and not is_key and _BRANCH.fullmatch(part) is not None
    return _BRANCH.fullmatch(part) is not None or part == "[key]"


def _child(here: object, part: str | int) -> object:
    if isinstance(here, dict):
        return here.get(part)
    if isinstance(here, list) and isinstance(part, int) and part < len(here):
        return here[part]
    return None


def _furthest(located: list[_Located]) -> Iterator[_Located]:
    """Keep, of the members of a union, those that accepted most of the input: the user meant one of them."""

    def rank(item: _Located) -> tuple[int, int, bool]:
        last = item.path[-1] if len(item.path) > (item.branch or 0) else None
        return len(item.path), last if isinstance(last, int) else -1, not item.error["type"].endswith("_type")

    best: dict[tuple[str | int, ...], tuple[int, int, bool]] = {}
    for item in located:
        if item.branch is not None:
            union = item.path[: item.branch]
            best[union] = max(best.get(union, (0, -1, False)), rank(item))
    for item in located:
        if item.branch is None or rank(item) == best[item.path[: item.branch]]:
            yield item


def _problem(item: _Located, model: type[BaseModel] | None) -> Problem:
    error, path = item.error, item.path
    kind, field = str(error["type"]), field_name(path)
    own = (error.get("ctx") or {}).get("error")
    match kind:
        case "missing":
            return Problem(field, "required, but missing", kind=kind)
        case "extra_forbidden":
            meant = _meant(model, path) if model is not None else None
            return Problem(field, "unknown field" + (f"; did you mean {meant}?" if meant else ""), kind=kind)
        case "json_invalid":
            return Problem("", _text(f"not valid JSON: {own or error['msg']}"), kind=kind)
        case "value_error" if isinstance(own, FieldError):
            return Problem(f"{field}.{own.field}" if field else own.field, _text(own.problem), kind=kind)
        case "value_error" | "assertion_error":
            message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
            return Problem(field, _text(message), kind=kind)
    is_secret = bool(path) and _SECRET_FIELD.search(str(path[-1])) is not None
    found = None if is_secret else _found(kind, error)
    return Problem(field, _text(_expected(kind, error)), found, kind)


def _found(kind: str, error: Mapping[str, Any]) -> str | None:
    if kind == "union_tag_invalid":
        return shown((error.get("ctx") or {}).get("tag"))
    return None if kind == "union_tag_not_found" else shown(error.get("input"))


def _expected(kind: str, error: Mapping[str, Any]) -> str:
    """Return what pydantic expects, in plain words; its own where there are no better ones."""
    ctx: Mapping[str, Any] = error.get("ctx") or {}
    match kind:
        case "greater_than_equal":
            return f"expected {_number(ctx['ge'])} or more"
        case "less_than_equal":
            return f"expected {_number(ctx['le'])} or less"
        case "greater_than":
            return f"expected more than {_number(ctx['gt'])}"
        case "less_than":
            return f"expected less than {_number(ctx['lt'])}"
        case "string_too_short":
            return f"expected at least {_count(ctx['min_length'], 'character')}"
        case "string_too_long":
            return f"expected at most {_count(ctx['max_length'], 'character')}"
        case "too_short":
            return f"expected at least {_count(ctx['min_length'], 'item')}"
        case "too_long":
            return f"expected at most {_count(ctx['max_length'], 'item')}"
        case "string_pattern_mismatch":
            return _PATTERNS.get(ctx["pattern"], f"expected text that matches {ctx['pattern']}")
        case "literal_error" | "enum":
            return f"expected {str(ctx['expected']).replace(chr(39), '')}"
        case "union_tag_invalid":
            first, _, last = str(ctx["expected_tags"]).rpartition(", ")
            return f"expected {ctx['discriminator']} {first} or {last}".replace("'", "")
        case "union_tag_not_found":
            return f"expected an object with {ctx['discriminator']}".replace("'", "")
        case "string_unicode":
            return "expected valid Unicode, without half a surrogate pair"
    if (name := kind.split("_")[0]) in _TYPES:
        return f"expected {_TYPES[name]}"
    message = str(error["msg"])
    for opening in ("Input should be ", "Input should have ", "Value should be ", "Value should have "):
        if message.startswith(opening):
            return f"expected {message.removeprefix(opening)}"
    return message[:1].lower() + message[1:]


def field_name(path: Sequence[str | int]) -> str:
    """Return a path as users write it: `messages[0].content`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part):
            text += f".{_bounded(part, MAX_KEY)}" if text else _bounded(part, MAX_KEY)
        else:
            text += f"[{json.dumps(_bounded(part, MAX_KEY))}]"
    return text


def _meant(model: type[BaseModel], path: tuple[str | int, ...]) -> str | None:
    """Return the known field that an unknown key was probably meant to be: one beside it, or the same one elsewhere."""
    if len(str(path[-1])) > MAX_KEY:
        return None
    types: list[Any] = [model]
    for part in path[:-1]:
        types = [child for t in types for child in _child_types(t, part)]
    beside = [name for t in types for name in _fields(t)]
    plain = {_plain(name): name for name in beside}
    wanted = _plain(str(path[-1]))
    synonym = _plain(_SYNONYMS.get(wanted, wanted))
    close = [synonym] if synonym in plain else get_close_matches(wanted, plain, 1, cutoff=0.7)
    if close:
        return plain[close[0]]
    elsewhere = [p for p in _all_fields(model) if _plain(p.rsplit(".", 1)[-1]) == synonym]
    return elsewhere[0] if len(elsewhere) == 1 else None


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def _flat(annotation: Any) -> Iterator[Any]:
    """Yield the members of a union, without Annotated and None."""
    if get_origin(annotation) is Annotated:
        yield from _flat(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from _flat(member)
    elif annotation is not type(None):
        yield annotation


def _fields(annotation: Any) -> dict[str, Any]:
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return {}
    return {field.alias or name: field.annotation for name, field in annotation.model_fields.items()}


def _child_types(annotation: Any, part: str | int) -> Iterator[Any]:
    if isinstance(part, int) and get_origin(annotation) is list:
        yield from _flat(get_args(annotation)[0])
    elif part in (fields := _fields(annotation)):
        yield from _flat(fields[str(part)])


def _all_fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the path of every field of objects inside objects; items of lists are not searched."""
    for name, annotation in _fields(model).items():
        yield prefix + name
        for child in _flat(annotation):
            if _fields(child):
                yield from _all_fields(child, f"{prefix}{name}.")


def _number(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _text(message: str) -> str:
    return _bounded(_without_credentials(message), MAX_TEXT)


def _without_credentials(text: str) -> str:
    """Cut user and query out of URIs: both often hold a credential."""
    return _QUERY_IN_URI.sub(r"\1?…", _USER_IN_URI.sub(r"\1…@", text))


def _bounded(text: str, limit: int) -> str:
    """Return text that fits on one line and can be encoded: JSON can hold halves of surrogate pairs."""
    encoded = text.encode("utf-8", errors="replace").decode()
    line = "".join(c if c.isprintable() else " " for c in encoded)
    return line if len(line) <= limit else line[: limit - 1] + "…"
