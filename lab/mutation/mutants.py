"""Small faults for source files: each mutant changes one syntax node of one file.

Nodes without an effect on behavior that a test should notice are left out by rule: docstrings, type annotations, decorators,
log calls, `__all__`, and texts for people, which are strings and f-strings with a space.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

IGNORED_FIELDS = frozenset({"annotation", "returns", "decorator_list", "format_spec"})
GENERIC_TYPES = frozenset({"dict", "frozenset", "list", "set", "tuple", "Callable", "Literal", "Mapping", "Sequence"})
"""Names whose subscripts are types, as in `Raw = dict[str, Any]`."""
FLIPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
DECIDED_INSIDE = (ast.Compare, ast.BoolOp, ast.UnaryOp)
"""Conditions that have mutants of their own, so that a negation would add nothing."""
Change = Callable[[], None]


@dataclass(frozen=True, order=True)
class Mutant:
    """One change, found again by its position: number of the node in the file, number of the change at the node."""

    path: Path
    node: int
    variant: int
    line: int
    function: int | None
    """First line of the innermost function, decorators included; None for code that runs at import."""

    def compile(self) -> CodeType:
        """Return the code of the changed file."""
        tree = ast.parse(self.path.read_text())
        _change(tree, self)
        return compile(tree, str(self.path), "exec")

    def describe(self) -> str:
        """Return the node before and after the change."""
        tree = ast.parse(self.path.read_text())
        node = _find(tree, self)
        before = ast.unparse(node)
        _change(tree, self)
        return _difference(before, ast.unparse(node))


def find_mutants(path: Path) -> list[Mutant]:
    """Return all mutants of a file, in the order of its nodes."""
    return [
        Mutant(path, number, variant, _line(node), function)
        for number, (node, function) in enumerate(_nodes(ast.parse(path.read_text()), None))
        for variant in range(len(list(_changes(node))))
    ]


def _line(node: ast.AST) -> int:
    place = node.target if isinstance(node, ast.comprehension) else node
    return int(getattr(place, "lineno", 0))


def _change(tree: ast.Module, mutant: Mutant) -> None:
    list(_changes(_find(tree, mutant)))[mutant.variant]()
    ast.fix_missing_locations(tree)


def _find(tree: ast.Module, mutant: Mutant) -> ast.AST:
    return next(node for number, (node, _) in enumerate(_nodes(tree, None)) if number == mutant.node)


def _nodes(parent: ast.AST, function: int | None) -> Iterator[tuple[ast.AST, int | None]]:
    """Yield all nodes that may change, each with the first line of its function."""
    for field, value in ast.iter_fields(parent):
        if field in IGNORED_FIELDS:
            continue
        inner = function
        if field == "body" and isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = min(node.lineno for node in (parent, *parent.decorator_list))
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_ignored(child):
                yield child, inner
                yield from _nodes(child, inner)


def _is_ignored(node: ast.AST) -> bool:
    match node:
        case ast.Expr(value=ast.Constant()) | ast.Assign(targets=[ast.Name(id="__all__")]):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="logger")))):
            return True
        case ast.Subscript(value=ast.Name(id=name)) if name in GENERIC_TYPES:
            return True
        case ast.JoinedStr(values=parts):
            return any(isinstance(part, ast.Constant) and " " in str(part.value) for part in parts)
        case ast.Constant(value=str(text)):
            return " " in text
    return False


def _changes(node: ast.AST) -> Iterator[Change]:
    match node:
        case ast.Compare(ops=[first, *_]) if type(first) in FLIPPED:
            yield lambda: node.ops.__setitem__(0, FLIPPED[type(first)]())
        case ast.BoolOp(op=op):
            yield _setter(node, "op", ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in ARITHMETIC:
            yield _setter(node, "op", ARITHMETIC[type(op)]())
        case ast.UnaryOp(op=ast.Not()):
            yield _setter(node, "operand", ast.UnaryOp(ast.Not(), node.operand))
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test) if not isinstance(test, DECIDED_INSIDE):
            yield _setter(node, "test", ast.UnaryOp(ast.Not(), test))
        case ast.comprehension(ifs=[_, *_]):
            yield _setter(node, "ifs", [])
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield _setter(node, "value", ast.Constant(None))
        case ast.Expr(value=ast.Call() | ast.Await()):
            yield _setter(node, "value", ast.Constant(None))
        case ast.Call(keywords=keywords):
            for keyword in keywords:
                # Without `strict` zip does the same with sequences of one length, and no other ever occurs.
                if keyword.arg not in (None, "strict"):
                    yield _setter(node, "keywords", [other for other in keywords if other is not keyword])
        case ast.Constant(value=bool() | int() | float() | str() as value):
            yield _setter(node, "value", _other(value))


def _setter(node: ast.AST, field: str, value: object) -> Change:
    return lambda: setattr(node, field, value)


def _other(value: bool | float | str) -> bool | int | float | str:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return f"{value}X" if isinstance(value, str) else 2 * value + 1


def _difference(before: str, after: str) -> str:
    """Return both texts from shortly before the first character that differs."""
    same = next((i for i, pair in enumerate(zip(before, after, strict=False)) if len(set(pair)) > 1), len(before))
    start = max(0, same - 30)
    return "  ->  ".join(" ".join(text[start : start + 80].split()) for text in (before, after))
