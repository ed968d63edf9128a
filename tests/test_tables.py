"""CSV tables: cells that a spreadsheet would take for formulas, and that they are read as they were."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from mien.io.tables import read_cell, write_table

FORMULAS = ("=1+1", "+1+1", "-1.jpg", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "'=1", "''=1")
TEXTS = (*FORMULAS, "'a", "a=1", "", "-1.5e3", "+7")


def cells_of(path: Path, delimiter: str = ",") -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream, delimiter=delimiter))


def test_no_cell_is_a_formula_and_every_cell_is_read_as_it_was(tmp_path: Path) -> None:
    write_table(tmp_path / "a.csv", [["name", "reason"], *([text, text] for text in TEXTS)])
    _, *rows = cells_of(tmp_path / "a.csv")
    assert [[read_cell(cell) for cell in row] for row in rows] == [[text, text] for text in TEXTS]
    begin = [row[0][:1] for row in rows]
    assert begin == ["'"] * 11 + ["a", "", "-", "+"]  # numbers stay numbers


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_no_cell_is_a_formula_where_lines_are_split_at_other_characters(tmp_path: Path, separator: str) -> None:
    write_table(tmp_path / "a.csv", [["name", "reason"], [f"/in/a{separator}=1+1{separator}.jpg", "no face"]])
    assert cells_of(tmp_path / "a.csv")[1] == [f"/in/a{separator}=1+1{separator}.jpg", "no face"]
    assert not any(cell.startswith("=") for row in cells_of(tmp_path / "a.csv", separator) for cell in row)


def test_invalid_unicode_becomes_backslashes(tmp_path: Path) -> None:
    write_table(tmp_path / "a.csv", [["b\udcff.jpg"]])
    assert cells_of(tmp_path / "a.csv") == [[r"b\udcff.jpg"]]
