"""The docstrings of the public names are complete: parameters, fields, results and errors.

Public are the names of `mien` and `mien.rasterizer`, the fields of their dataclasses, and the public methods of their
classes. Docstrings follow the Google style.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from types import FunctionType

import pytest

import mien

NAMES = [(name, home) for name, home in sorted(mien._HOMES.items())]
NAMES += [
    (name, "mien.rasterizer")
    for name in sorted(vars(importlib.import_module("mien.rasterizer")))
    if not name.startswith("_") and callable(getattr(importlib.import_module("mien.rasterizer"), name))
]
SECTIONS = ("Args", "Returns", "Yields", "Raises", "Warns", "Example", "Examples", "Note", "References")
NO_RESULT = {"None", "NoReturn", "Self"}


def sections(docstring: str) -> dict[str, str]:
    """The text of each Google section; the rest is under the empty name."""
    parts: dict[str, list[str]] = {"": []}
    name = ""
    for line in inspect.cleandoc(docstring).split("\n"):
        heading = re.fullmatch(r"(\w+):", line)
        if heading and heading[1] in SECTIONS:
            name = heading[1]
            parts[name] = []
        else:
            parts[name].append(line)
    return {name: "\n".join(lines) for name, lines in parts.items()}


def entries(text: str) -> set[str]:
    """The names that a section describes: `name: text` or `name, other: text` at its first indentation."""
    names: set[str] = set()
    for line in textwrap.dedent(text).split("\n"):
        entry = re.match(r"([*\w.]+(?:, [*\w.]+)*)(?: \([^)]*\))?: \S", line)
        names |= set(entry[1].replace("*", "").split(", ")) if entry else set()
    return names


def own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """The nodes of a function's body without those of functions inside it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)


def raised_by(function: ast.FunctionDef) -> set[str]:
    names = set()
    for node in own_nodes(function):
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = ast.unparse(error).rpartition(".")[2]
            names |= {name} if name[0].isupper() else set()  # lower case: an error that was caught before
    return names


def tree_of(thing: object) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]  # pyright: ignore[reportArgumentType]


def function_gaps(function: FunctionType, label: str, *, documented_by: str | None = None) -> list[str]:
    """What is missing; `documented_by` is the docstring of the class for its `__init__`."""
    tree = tree_of(function)
    assert isinstance(tree, ast.FunctionDef)
    text = documented_by if documented_by is not None else ast.get_docstring(tree)
    if not text:
        return [f"{label}: has no docstring"]
    parts = sections(text)
    arguments = tree.args
    parameters = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    parameters += [a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None]
    decorators = {ast.unparse(decorator) for decorator in tree.decorator_list}
    gaps = [
        f"{label}: Args lacks {name!r}"
        for name in parameters
        if name not in {"self", "cls"} and name not in entries(parts.get("Args", ""))
    ]
    result = "None" if tree.returns is None else ast.unparse(tree.returns)
    is_property = bool(decorators & {"property", "functools.cached_property", "cached_property"})
    if result not in NO_RESULT and not is_property and not {"Returns", "Yields"} & parts.keys():
        gaps.append(f"{label}: lacks Returns")
    stated = {name.rpartition(".")[2] for name in entries(parts.get("Raises", ""))}
    return gaps + [f"{label}: Raises lacks {name}" for name in sorted(raised_by(tree) - stated)]


def field_gaps(cls: type, label: str) -> list[str]:
    """Fields of a dataclass that have no docstring below them."""
    tree = tree_of(cls)
    assert isinstance(tree, ast.ClassDef)
    described = set()
    for node, below in zip(tree.body, tree.body[1:], strict=False):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and below.value.value is not ...
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and is_text:
            described.add(node.target.id)
    own = {field.name for field in dataclasses.fields(cls)} & vars(cls).get("__annotations__", {}).keys()
    return [f"{label}: field {name!r} has no docstring" for name in sorted(own - described)]


def class_gaps(cls: type, label: str) -> list[str]:
    text = vars(cls).get("__doc__")
    if not text or text.startswith(f"{cls.__name__}("):  # what dataclass makes
        return [f"{label}: has no docstring"]
    gaps = field_gaps(cls, label) if dataclasses.is_dataclass(cls) else []
    for name, member in vars(cls).items():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        function = function.fget if isinstance(function, property) else function
        function = getattr(function, "func", function)  # cached_property
        function = inspect.unwrap(function) if callable(function) else function
        if not isinstance(function, FunctionType) or function.__qualname__ != f"{cls.__qualname__}.{name}":
            continue
        if name == "__init__" and not dataclasses.is_dataclass(cls):
            both = f"{inspect.cleandoc(text)}\n{inspect.cleandoc(function.__doc__ or '')}"
            gaps += function_gaps(function, label, documented_by=both)
        elif not name.startswith("_") or name == "__call__":
            gaps += function_gaps(function, f"{label}.{name}")
    return gaps


def gaps_of(name: str, home: str) -> list[str]:
    thing = getattr(importlib.import_module(home), name)
    label = f"{home}.{name}"
    return class_gaps(thing, label) if inspect.isclass(thing) else function_gaps(inspect.unwrap(thing), label)


@pytest.mark.parametrize(("name", "home"), NAMES, ids=[f"{home}.{name}" for name, home in NAMES])
def test_the_docstrings_of_public_names_are_complete(name: str, home: str) -> None:
    assert gaps_of(name, home) == []


class Sample:
    """A class for the test of this test.

    Args:
        size: Described.
    """

    def __init__(self, size: int, colour: str) -> None:
        self.size, self.colour = size, colour

    def undocumented(self) -> int:
        return self.size

    def incomplete(self, given: int, lacking: int, *more: int) -> int:
        """Does something.

        Args:
            given: Described.

        Raises:
            ValueError: Described.
        """
        if given:
            raise ValueError
        if lacking:
            raise mien.errors.ConfigError(f"{more}")
        return 1

    def complete(self, first: int, second: int, **options: int) -> int:
        """Does something.

        Args:
            first, second: Described together.
            options: Described.

        Returns:
            One.
        """

        def inner() -> None:
            raise KeyError

        try:
            inner()
        except KeyError as error:
            raise error
        return first + second + len(options)

    def _private(self, anything: int) -> int:
        return anything


@dataclasses.dataclass
class SampleFields:
    """A dataclass for the test of this test."""

    described: int
    """Described."""
    lacking: int


def test_gaps_are_found_and_nothing_else() -> None:
    assert class_gaps(Sample, "S") == [
        "S: Args lacks 'colour'",
        "S.undocumented: has no docstring",
        "S.incomplete: Args lacks 'lacking'",
        "S.incomplete: Args lacks 'more'",
        "S.incomplete: lacks Returns",
        "S.incomplete: Raises lacks ConfigError",
    ]
    assert class_gaps(SampleFields, "F") == ["F: field 'lacking' has no docstring"]
