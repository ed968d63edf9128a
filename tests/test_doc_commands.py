"""The commands that README.md and the pages name exist, with the options they show, and scripts import what exists."""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.main

from mien.cli.app import app

ROOT = Path(__file__).parent.parent
CODE = re.compile(r"^```[^\n]*\n(?P<fenced>.*?)^```$|`(?P<inline>[^`\n]+(?:\n[^`\n]+)?)`|^ {4,}(?P<indented>[^\n]+)$",
                  re.MULTILINE | re.DOTALL)  # fmt: skip
COMMAND = re.compile(
    r"^\s*(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(?P<program>mien|make|python3?) (?P<rest>\S.*)$", re.MULTILINE
)
END = {"|", ">", "2>", "&&", "||", ";", "&", "#"}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class DocCommand:
    """One command of a page."""

    page: str
    program: str
    words: tuple[str, ...]
    """What follows the program, up to a pipe or a comment."""

    def __str__(self) -> str:
        return f"{self.page}: {self.program} {' '.join(self.words)}"

    @property
    def options(self) -> list[str]:
        """Names of its options, without values."""
        return [word.split("=")[0] for word in self.words if re.match(r"--?[A-Za-z]", word)]


def commands(page: Path) -> list[DocCommand]:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    pieces = [match["fenced"] or match["indented"] or (match["inline"] or "").replace("\n", " ")
              for match in CODE.finditer(text)]  # fmt: skip
    found = []
    for match in (match for piece in pieces for match in COMMAND.finditer(piece)):
        words = re.findall(r"\"[^\"]*\"|'[^']*'|\S+", match["rest"])
        end = next((k for k, word in enumerate(words) if word in END), len(words))
        found.append(DocCommand(page.relative_to(ROOT).as_posix(), match["program"], tuple(words[:end])))
    return found


COMMANDS = [command for page in PAGES for command in commands(page)]


def of(*programs: str) -> list[DocCommand]:
    return [command for command in COMMANDS if command.program in programs]


def choices(option: Any) -> list[str]:
    """Values that an option of mien allows; empty if they are not listed in its help as [a|b]."""
    listed = re.fullmatch(r"\[(.+\|.+)\]", option.metavar or "")
    return listed[1].split("|") if listed else []


@functools.cache
def program() -> Any:
    return typer.main.get_command(app)


def faults(command: DocCommand) -> list[str]:
    """What a command of mien names that does not exist."""
    level = program()
    words = list(command.words)
    while words and hasattr(level, "commands") and re.fullmatch("[a-z]+", words[0]):
        if words[0] not in level.commands:
            return [words[0]]
        level = level.commands[words.pop(0)]
    known = {name: option for option in level.params for name in (*option.opts, *option.secondary_opts)}
    wrong = [name for name in command.options if name not in known and name not in {"-h", "--help"}]
    for name, value in itertools.pairwise(words):
        allowed = choices(known[name]) if name in known else set()
        if allowed and re.fullmatch("[a-z0-9]+", value) and value not in allowed:
            wrong.append(f"{name} {value}")
    return wrong


def test_commands_are_found() -> None:
    assert len(of("mien")) > 80
    assert len(of("python", "python3")) > 50
    assert len(of("make")) > 10


def test_commands_of_mien_have_the_options_of_the_pages() -> None:
    assert {str(command): wrong for command in of("mien") if (wrong := faults(command))} == {}


def test_scripts_have_the_options_of_the_pages() -> None:
    wrong = {}
    for command in of("python", "python3"):
        script = ROOT / command.words[0]
        if not command.words[0].startswith(("benchmarks/", "models/", "examples/")):
            continue
        source = script.read_text(encoding="utf-8") if script.is_file() else ""
        missing = [name for name in command.options if f'"{name}"' not in source]
        if missing or not source:
            wrong[str(command)] = missing
    assert wrong == {}


def test_scripts_that_the_pages_name_exist() -> None:
    named = {
        (page.name, script)
        for page in PAGES
        for script in re.findall(r"\b(?:benchmarks|models|examples)/\w+\.(?:py|sh)", page.read_text(encoding="utf-8"))
    }
    assert len(named) > 40
    assert {(page, script) for page, script in named if not (ROOT / script).is_file()} == set()


def own_imports(script: Path) -> Iterator[tuple[str, str]]:
    """Module and name of each `from mien… import name` of a script."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mien":
            yield from ((str(node.module), alias.name) for alias in node.names)


def test_scripts_import_names_that_exist() -> None:
    """They are not part of the package, so that neither tests nor pyright run them."""
    scripts = [script for folder in ("benchmarks", "models", "examples") for script in (ROOT / folder).glob("*.py")]
    assert len(scripts) > 60
    missing = []
    for script in scripts:
        for module, name in own_imports(script):
            try:
                exec(f"from {module} import {name}", {})
            except ImportError as error:  # noqa: PERF203  (each failure is listed)
                missing.append(f"{script.name}: {error}")
    assert missing == []


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {word for command in of("make") for word in command.words if re.fullmatch("[a-z-]+", word)}
    assert named - targets == set()


def test_a_command_that_does_not_exist_is_a_fault() -> None:
    for words, fault in (
        ("reconstrct photo.jpg", "reconstrct"),
        ("reconstruct photo.jpg --speed", "--speed"),
        ("evaluate scans DATA --mode quick", "--mode quick"),
    ):
        assert faults(DocCommand("page", "mien", tuple(words.split()))) == [fault]
