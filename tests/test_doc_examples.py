"""The Python examples of README.md and docs/ run.

Each page is run in a folder of its own that holds photo.jpg, a real face, and video.mp4 where it is needed. Code that
is not meant to run is marked ```text. An example that reconstructs a face runs in mode "net", which takes a fraction of
the time.
"""

from __future__ import annotations

import functools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

import mien
from mien.cli.app import app
from mien.io.video import VideoWriter
from tests.astronaut import astronaut

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python(?P<title>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
INCLUDED = re.compile(r'^--8<-- "(?P<path>.+)"$', re.MULTILINE)
OTHER_PROGRAMS = ("bpy",)
"""Modules of programs that are not part of mien's tests. Examples that import them are compiled only."""


@dataclass(frozen=True)
class Example:
    """One ```python block."""

    page: str
    line: int
    code: str

    def run(self, names: dict[str, object]) -> None:
        """Run it after the page's earlier blocks; a traceback shows the line in the page."""
        program = compile("\n" * self.line + self.code, str(ROOT / self.page), "exec")
        if not any(re.search(rf"^import {name}\b", self.code, re.MULTILINE) for name in OTHER_PROGRAMS):
            exec(program, names)


def examples(page: Path) -> list[Example]:
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    blocks = [Example(name, text.count("\n", 0, match.start()) + 1, match["code"]) for match in BLOCK.finditer(text)]
    # A page may include a file of the project; such a block holds nothing else.
    return [
        Example(included["path"], 0, (ROOT / included["path"]).read_text(encoding="utf-8")) if included else block
        for block in blocks
        for included in [INCLUDED.match(block.code)]
    ]


COMMAND = re.compile(r"(?:^\.venv/bin/|`)(mien [^`\n#]+?)\s*(?:`|#|$)", re.MULTILINE)
"""`mien …` in a line, or in a block of a clone."""
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if examples(page)]


README_COMMANDS = COMMAND.findall((ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("line", README_COMMANDS)
def test_commands_of_the_readme_have_the_options_they_use(line: str) -> None:
    """Values are not checked, because that needs the files. An option that does not exist is an error of usage."""
    command: Any = typer.main.get_command(app)
    _, *arguments = shlex.split(line)
    while hasattr(command, "commands") and arguments:
        command = command.commands[arguments.pop(0)]
    assert command.make_context(line, arguments, resilient_parsing=True).command is command


def test_commands_of_the_readme_are_found() -> None:
    assert {"mien studio", "mien view out/photo/face0", "mien reconstruct photo.jpg --parts head -o out"} <= set(
        README_COMMANDS
    )


def test_pages_with_examples_are_found() -> None:
    assert {"README.md", "perception.md", "rasterizer.md"} <= {page.name for page in PAGES}


def _write_video(path: Path) -> None:
    """Six frames in which the astronaut's face moves."""
    pytest.importorskip("av", reason="reads and writes the video")
    with VideoWriter(path, size=(320, 240), rate=25.0) as writer:
        for k in range(6):
            writer.add(astronaut()[20:260, 60 + 2 * k : 380 + 2 * k], k / 25)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mien, "Reconstructor", functools.partial(mien.Reconstructor, mode="net", detail=False))
    Image.fromarray(astronaut()).save("photo.jpg")
    if any("video.mp4" in example.code for example in examples(page)):
        _write_video(tmp_path / "video.mp4")
    names: dict[str, object] = {"__name__": "__main__"}
    for example in examples(page):
        example.run(names)
