"""All small changes of a Python source that its tests should notice.

Annotations, decorators, docstrings, messages (f-strings, `raise`, `warn`) and `__repr__` stay as they are.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS = {
    ast.Lt: ("<", ">"),
    ast.LtE: ("<=", ">"),
    ast.Gt: (">", "<"),
    ast.GtE: (">=", "<"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
}
ARITHMETIC = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}
_TWINS = (
    "min max, amin amax, minimum maximum, argmin argmax, sin cos, any all, floor ceil, mean sum, exp log, row column"
)
TWINS = {a: b for pair in _TWINS.split(", ") for a, b in (pair.split(), reversed(pair.split()))}
"""Names of functions and of keyword arguments that are swapped with each other."""
REMOVABLE = {
    "clamp",
    "clamp_",
    "clip",
    "abs",
    "detach",
    "sqrt",
    "square",
    "relu",
    "normalize",
    "flip",
    "sigmoid",
    "exp",
}
"""Functions whose call is replaced by what it is called on."""
UNORDERED = {
    "isinstance",
    "issubclass",
    "zip",
    "getattr",
    "setattr",
    "min",
    "max",
    "print",
    "maximum",
    "minimum",
    "range",
}
"""Functions whose arguments are not swapped: the result is the same, or an error that says nothing of the tests."""
FIXED_KEYWORDS = {"strict", "keepdim", "keepdims", "dim", "axis", "non_blocking", "inplace", "stacklevel", "encoding"}
SMALLEST = 1e-5
"""Smaller numbers guard a division: twice as much is the same, so that they are replaced by 0 only."""


@dataclass(frozen=True)
class Mutant:
    """One change of one expression."""

    operator: str
    function: str
    """Qualified name of the function or class around it, empty at the top of the module."""
    line: int
    before: str
    after: str
    source: str
    """The whole changed module."""


def mutants(source: str) -> Iterator[Mutant]:
    """Every change of the source that compiles, in its order."""
    data, starts = source.encode(), [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    text = _Text(data, starts)
    for node, scope in _expressions(ast.parse(source), ""):
        for operator, start, end, after in _changes(node, text):
            changed = data[:start] + after.encode() + data[end:]
            mutant = Mutant(operator, scope, node.lineno, data[start:end].decode(), after, changed.decode())
            if mutant.after != mutant.before and _compiles(mutant.source):
                yield mutant


class _Text:
    """The source's bytes and where nodes lie in them."""

    def __init__(self, data: bytes, line_starts: list[int]) -> None:
        self.data, self.line_starts = data, line_starts

    def span(self, node: ast.expr | ast.keyword) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return (
            self.line_starts[node.lineno - 1] + node.col_offset,
            self.line_starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def of(self, node: ast.expr) -> str:
        """The node's text, in parentheses where a place inside another expression needs them."""
        start, end = self.span(node)
        text = self.data[start:end].decode()
        atoms = ast.Name | ast.Constant | ast.Call | ast.Attribute | ast.Subscript | ast.Tuple | ast.List
        return text if isinstance(node, atoms) else f"({text})"

    def symbol(self, left: ast.expr, right: ast.expr, symbol: str) -> tuple[int, int]:
        """Where the operator between two operands lies."""
        start, end = self.span(left)[1], self.span(right)[0]
        at = self.data.index(symbol.encode(), start, end)
        return at, at + len(symbol)


def _expressions(node: ast.AST, scope: str) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Expressions and statements that may be changed, with the name of the function around them."""
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns", "decorator_list", "type_params", "bases"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or _is_text(child):
                continue
            inner = scope
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = f"{scope}.{child.name}".lstrip(".")
            if isinstance(child, ast.expr | ast.stmt):
                yield child, inner
            yield from _expressions(child, inner)


def _is_text(node: ast.AST) -> bool:
    match node:
        case ast.JoinedStr() | ast.Raise() | ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()):
            return True
        case ast.FunctionDef(name=name):
            return name in {"__repr__", "__str__"} or name.endswith("_message")
        case ast.Call(func=ast.Attribute(attr="warn")) | ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return True
        case ast.Compare(left=ast.Name(id="__name__")):
            return True
    return False


_Change = tuple[str, int, int, str]


def _changes(node: ast.expr | ast.stmt, text: _Text) -> Iterator[_Change]:
    match node:
        case ast.Compare():
            yield from _comparisons(node, text)
        case ast.BinOp():
            yield from _arithmetic(node, text)
        case ast.AugAssign(op=op, value=value) if type(op) in ARITHMETIC and not isinstance(value, ast.List):
            old, new = ARITHMETIC[type(op)]
            start, end = text.symbol(node.target, node.value, f"{old}=")
            yield "arithmetic", start, end, f"{new}="
        case ast.BoolOp(values=[first, second, *_]):
            old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            start, end = text.symbol(first, second, old)
            yield "condition", start, end, new
        case ast.UnaryOp(operand=operand) if not isinstance(operand, ast.Constant) or isinstance(node.op, ast.Not):
            yield "sign", *text.span(node), text.of(operand)
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test) if not isinstance(test, ast.Constant):
            yield "condition", *text.span(test), f"(not {text.of(test)})"
        case ast.Subscript(slice=index):
            yield from _indices(index, text)
        case ast.Call():
            yield from _calls(node, text)
        case ast.Assign(value=value) | ast.AnnAssign(value=value) if value is not None:
            yield from _constants(value, text)
        case ast.FunctionDef(args=arguments):
            for default in [*arguments.defaults, *arguments.kw_defaults]:
                yield from () if default is None else _constants(default, text)


def _comparisons(node: ast.Compare, text: _Text) -> Iterator[_Change]:
    operands = [node.left, *node.comparators]
    for op, left, right in zip(node.ops, operands, operands[1:], strict=False):
        old, new = COMPARISONS[type(op)]
        yield "comparison", *text.symbol(left, right, old), new
        yield from _constants(right, text)


def _arithmetic(node: ast.BinOp, text: _Text) -> Iterator[_Change]:
    if type(node.op) not in ARITHMETIC or isinstance(node.left, ast.JoinedStr | ast.List):
        return
    old, new = ARITHMETIC[type(node.op)]
    yield "arithmetic", *text.symbol(node.left, node.right, old), new
    dropped = "term" if isinstance(node.op, ast.Add | ast.Sub) else "factor"
    yield dropped, *text.span(node), text.of(node.left)
    if isinstance(node.op, ast.Add | ast.Mult):
        yield dropped, *text.span(node), text.of(node.right)
    for side in (node.left, node.right):
        yield from _constants(side, text)


def _constants(node: ast.expr, text: _Text) -> Iterator[_Change]:
    if isinstance(node, ast.Tuple | ast.List | ast.Dict):
        for part in node.values if isinstance(node, ast.Dict) else node.elts:
            yield from _constants(part, text)
        return
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        yield "constant", *text.span(node), text.of(node.operand)
        return
    if not isinstance(node, ast.Constant):
        return
    span, value = text.span(node), node.value
    if isinstance(value, bool):
        yield "flag", *span, str(not value)
    elif isinstance(value, int | float):
        yield from [] if value == 0 else [("constant", *span, "0" if isinstance(value, int) else "0.0")]
        if abs(value) > SMALLEST:
            yield "constant", *span, repr(2 * value)
            yield "constant", *span, f"(-{value!r})"
        elif value == 0:
            yield "constant", *span, "1" if isinstance(value, int) else "1.0"


def _indices(index: ast.expr, text: _Text) -> Iterator[_Change]:
    match index:
        case ast.Tuple(elts=parts):
            for part in parts:
                yield from _indices(part, text)
        case ast.Slice(lower=lower, upper=upper):
            for bound in (lower, upper):
                yield from () if bound is None else _indices(bound, text)
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            yield "index", *text.span(index), str(value + 1 if value == 0 else value - 1)
        case ast.UnaryOp(operand=ast.Constant(value=int())):
            yield "index", *text.span(index), "0"


def _calls(node: ast.Call, text: _Text) -> Iterator[_Change]:
    for keyword in node.keywords:
        if keyword.arg in FIXED_KEYWORDS:
            continue
        if keyword.arg in TWINS:
            start = text.span(keyword)[0]
            yield "twin", start, start + len(keyword.arg), TWINS[keyword.arg]
        yield from _constants(keyword.value, text)
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
    if name is None:
        return
    end = text.span(node.func)[1]
    if name in TWINS:
        yield "twin", end - len(name), end, TWINS[name]
    if name in REMOVABLE and isinstance(node.func, ast.Attribute):
        module = isinstance(node.func.value, ast.Name) and node.func.value.id in {"torch", "F", "np", "math"}
        kept = node.args[0] if module and node.args else node.func.value
        yield "removal", *text.span(node), text.of(kept)
    plain = [argument for argument in node.args if not isinstance(argument, ast.Starred)]
    if len(plain) == len(node.args) >= 2 and name not in UNORDERED:
        (start, middle), (again, end) = text.span(plain[0]), text.span(plain[1])
        between = text.data[middle:again].decode()
        if "(" not in between and ")" not in between:
            yield "arguments", start, end, text.of(plain[1]) + between + text.of(plain[0])


def _compiles(source: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(source, "mutant", "exec")
        except SyntaxError:
            return False
    return True
