"""Small changes of a source file that ought to change a result: each is one replacement of the text of one node."""

import ast
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip
TWINS = {
    "min": "max", "amin": "amax", "argmin": "argmax", "minimum": "maximum", "any": "all", "floor": "ceil",
    "sum": "mean", "zeros": "ones",
}  # fmt: skip
TWINS |= {new: old for old, new in TWINS.items()}


class Mutation(NamedTuple):
    """Where it is (lines from 1, columns in bytes), what stood there and what stands there then."""

    kind: str
    line: int
    column: int
    end_line: int
    end_column: int
    old: str
    new: str

    def applied(self, source: str) -> str:
        """The source with this one change."""
        lines = source.encode().splitlines(keepends=True)
        before = b"".join(lines[: self.line - 1]) + lines[self.line - 1][: self.column]
        after = lines[self.end_line - 1][self.end_column :] + b"".join(lines[self.end_line :])
        return (before + self.new.encode() + after).decode()


def of(source: str) -> list[Mutation]:
    """Every mutation of a source, in the order of its text; all of them can be parsed."""
    found = [
        _mutation(kind, node, new, source)
        for node in _changeable(ast.parse(source))
        for kind, rule in RULES.items()
        for new in rule(node)
    ]
    return sorted({mutation for mutation in found if mutation.old != mutation.new}, key=lambda m: (m.line, m.column, m))


def _mutation(kind: str, node: ast.expr | ast.stmt, new: ast.AST | str, source: str) -> Mutation:
    text = new if isinstance(new, str) else ast.unparse(new)
    if isinstance(node, ast.expr) and not isinstance(node, ast.Constant | ast.Name | ast.Attribute):
        text = f"({text})"
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    place = (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)
    return Mutation(kind, *place, ast.get_source_segment(source, node) or "", text)


def _changeable(node: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """Nodes below this one, without types, docstrings, imports, words for people and what is checked by `assert`."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.Import | ast.ImportFrom | ast.Assert | ast.JoinedStr) or _is_words(child):
                continue
            if isinstance(child, ast.expr | ast.stmt):
                yield child
            if isinstance(child, ast.AST) and not isinstance(child, ast.Raise):
                yield from _changeable(child)


def _is_words(node: object) -> bool:
    """Whether it is a docstring, or `__all__`, or another assignment to a name with two underscores."""
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id.startswith("__") for target in node.targets)
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _changed(node: ast.AST, **fields: object) -> ast.AST:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _comparison(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            ops: Sequence[ast.cmpop] = [*node.ops[:i], COMPARISONS[type(op)](), *node.ops[i + 1 :]]
            yield _changed(node, ops=ops)


def _arithmetic(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OPERATORS:
        parts = [node.left, node.right] if isinstance(node, ast.BinOp) else [node.value]
        if not any(isinstance(part, ast.JoinedStr | ast.List) or _is_text(part) for part in parts):
            yield _changed(node, op=OPERATORS[type(node.op)]())


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _number(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        for step in (1, -1):
            yield _changed(node, value=node.value + step)  # type: ignore[operator]


def _truth(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield _changed(node, value=not node.value)


def _key(node: ast.AST) -> Iterator[str]:
    """A string without spaces that says which, not one for people to read."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
        yield repr(f"{node.value}_")


def _dropped(node: ast.AST) -> Iterator[str]:
    """A call for its effect, an update, an assignment into something, a refusal, an early end of a loop."""
    into = isinstance(node, ast.Assign) and all(isinstance(t, ast.Attribute | ast.Subscript) for t in node.targets)
    if into or isinstance(node, ast.Expr | ast.AugAssign | ast.Raise | ast.Continue | ast.Break):
        yield "pass"


def _swapped(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Call) and len(node.args) > 1 and not any(isinstance(a, ast.Starred) for a in node.args[:2]):
        first, second, *rest = node.args
        if ast.dump(first) != ast.dump(second):
            yield _changed(node, args=[second, first, *rest])


def _negation(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield node.operand


def _connective(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BoolOp):
        yield _changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())


def _branches(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.IfExp):
        yield _changed(node, body=node.orelse, orelse=node.body)


def _twin(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Name) and node.id in TWINS:
        yield _changed(node, id=TWINS[node.id])
    if isinstance(node, ast.Attribute) and node.attr in TWINS:
        yield _changed(node, attr=TWINS[node.attr])


RULES: dict[str, Callable[[ast.AST], Iterator[ast.AST | str]]] = {
    "comparison": _comparison,
    "arithmetic": _arithmetic,
    "number": _number,
    "truth": _truth,
    "key": _key,
    "dropped": _dropped,
    "swapped": _swapped,
    "negation": _negation,
    "connective": _connective,
    "branches": _branches,
    "twin": _twin,
}
