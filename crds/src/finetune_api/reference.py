"""Reference tables of the user pages, made from the models: every field and every reason with its meaning.

`python -m finetune_api write` puts them between the markers of the pages in crds/docs.
"""

import ast
import inspect
import re
from typing import Any, Final

from pydantic import BaseModel

from finetune_api import reasons
from finetune_api.crd import Schema, structural_schema
from finetune_api.v1alpha1 import (
    FinetuneJobSpec,
    FinetuneJobStatus,
    InferenceServiceSpec,
    InferenceServiceStatus,
)

PAGES: Final[dict[str, dict[str, type[BaseModel]]]] = {
    "finetunejob.md": {"spec": FinetuneJobSpec, "status": FinetuneJobStatus},
    "inferenceservice.md": {"spec": InferenceServiceSpec, "status": InferenceServiceStatus},
}
"""Models of each page by the name of their marker. The marker `reasons` works on every page."""
_MARKED: Final = re.compile(r"(<!-- generated: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def refreshed(page: str, text: str) -> str:
    """The text of a page with everything between its markers made anew."""

    def section(match: re.Match[str]) -> str:
        name = match["name"]
        content = reason_tables() if name == "reasons" else field_tables(PAGES[page][name], name)
        return f"{match[1]}\n{content}\n{match[3]}"

    return _MARKED.sub(section, text)


def field_tables(model: type[BaseModel], root: str) -> str:
    """One table for the model and one for each object inside, outermost first."""
    tables: list[str] = []
    _collect(structural_schema(model), root, tables)
    return "\n".join(tables)


def reason_tables() -> str:
    """All reasons with the docstrings below them, under the comments that group them."""
    source = inspect.getsource(reasons.Reason)
    groups = {i: line.strip("# ") for i, line in enumerate(source.splitlines(), 1) if line.startswith("    # ")}
    definition = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    lines: list[str] = []
    group = ""
    for member, docstring in zip(definition.body, definition.body[1:], strict=False):
        if not isinstance(member, ast.Assign) or not isinstance(docstring, ast.Expr):
            continue
        current = groups[max(line for line in groups if line < member.lineno)]
        if current != group:
            group = current
            lines += ["", f"**{group}**", "", "| reason | meaning |", "|---|---|"]
        lines.append(f"| `{ast.literal_eval(member.value)}` | {ast.literal_eval(docstring.value)} |")
    return "\n".join(lines[1:]) + "\n"


def _collect(schema: Schema, path: str, tables: list[str]) -> None:
    required = schema.get("required", [])
    lines = [f"#### `{path}`", "", "| field | type | default | meaning |", "|---|---|---|---|"]
    inner: list[tuple[Schema, str]] = []
    for name, field in schema["properties"].items():
        default = "**required**" if name in required else _default(field)
        lines.append(f"| `{name}` | {_type(field)} | {default} | {field.get('description', '')} |")
        item = field.get("items", field)
        if "properties" in item:
            inner.append((item, f"{path}.{name}" + ("[]" if "items" in field else "")))
    tables.append("\n".join(lines) + "\n")
    for nested, where in inner:
        _collect(nested, where, tables)


def _type(field: Schema) -> str:
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if field.get("x-kubernetes-int-or-string"):
        return "quantity"
    if "items" in field:
        return f"list of {_type(field['items'])}{_between(field, 'minItems', 'maxItems', ' items')}"
    bounds = _between(field, "minimum", "maximum", "")
    return f"{field.get('format') or field['type']}{bounds}"


def _between(field: Schema, low: str, high: str, unit: str) -> str:
    parts = []
    if low in field and (field[low] or field.get("exclusiveMinimum")):
        parts.append(f"{'>' if field.get('exclusiveMinimum') else '≥'} {field[low]:g}{unit}")
    if high in field:
        parts.append(f"{'<' if field.get('exclusiveMaximum') else '≤'} {field[high]:,}{unit}".replace(",", " "))
    return f", {', '.join(parts)}" if parts else ""


def _default(field: Schema) -> str:
    default: Any = field.get("default")
    if default is None or default == {}:
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"
