"""What the files of the project say about each other: versions, and the pages of the API."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import mien
import mien.rasterizer

ROOT = Path(__file__).parent.parent


def found(pattern: str, file: str) -> str:
    """The first match in a file of the project."""
    match = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    assert match, f"{file} has no line {pattern!r}"
    return match[1]


def test_the_version_is_that_of_the_project() -> None:
    """If this fails in a clone, what is installed there is older than pyproject.toml; any `make` installs it again."""
    assert mien.__version__ == importlib.metadata.version("mien") == found(r'^version = "(.+?)"', "pyproject.toml")


def test_changelog_and_citation_are_of_this_version() -> None:
    version = found(r'^version = "(.+?)"', "pyproject.toml")
    assert found(r"^## \[(\d.*?)\] - \d{4}-\d\d-\d\d$", "CHANGELOG.md") == version
    assert found(r"^version: (.+)$", "CITATION.cff") == version
    assert found(r"^date-released: (.+)$", "CITATION.cff") == found(
        rf"^## \[{re.escape(version)}\] - (.+)$", "CHANGELOG.md"
    )


def test_the_links_of_the_readme_work_on_pages_that_have_no_other_file() -> None:
    """Package indexes show the README alone, so relative links lead nowhere."""
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 10
    assert [link for link in links if not link.startswith("https://")] == []
    own = [re.match(r"https://[^/]+/mien-project/mien/(?:blob/)?main/(.+)", link) for link in links]
    assert [path[1] for path in own if path and not (ROOT / path[1]).is_file()] == []


def test_the_notice_has_the_licences_of_what_the_package_contains() -> None:
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for name in ("nanobind (BSD-3-Clause)", "robin-map (MIT)", "ICT Face Model Light (MIT)"):
        assert name in notice
    assert notice.count("Permission is hereby granted, free of charge") == 1
    assert notice.count("Redistributions in binary form must reproduce the above copyright notice") == 1


RASTERIZER = [name for name, value in vars(mien.rasterizer).items() if not name.startswith("_") and callable(value)]


@pytest.mark.parametrize("name", [*mien._HOMES, *(f"rasterizer.{name}" for name in RASTERIZER)])
def test_each_public_name_has_its_place_in_the_api_pages(name: str) -> None:
    """The build of the pages fails if such a name does not exist; this finds names without a page."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "api").glob("*.md")))
    assert re.search(rf"^::: mien\.{re.escape(name)}$", pages, re.MULTILINE)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_demo_installs_the_package_alone_and_the_tests_add_to_it() -> None:
    def commands(target: str) -> str:
        command = ["make", "--dry-run", "--always-make", target]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout

    demo, test = commands("demo"), commands("test")
    assert "--editable ." in demo
    assert "[dev" not in demo
    assert test.startswith(demo[: demo.index("touch")])
    assert "mien[dev,docs]" in test
