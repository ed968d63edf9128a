"""CSV tables with file names and messages in them, which a spreadsheet must not take for formulas."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

# https://owasp.org/www-community/attacks/CSV_Injection, with the wide forms that East Asian spreadsheets accept.
_FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?\d*\.?\d+(e[+-]?\d+)?")
_SEPARATORS = frozenset(";\t|")
"""What spreadsheets of other countries split a line at, although this file has commas."""


def write_table(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV table in UTF-8; invalid Unicode in file names becomes backslashes.

    A text that a spreadsheet would take for a formula gets an apostrophe before it, which `read_cell` removes.

    Args:
        path: The file to write.
        rows: The rows, the first one with the names of the columns.

    Raises:
        OSError: The file cannot be written.
    """
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        plain, quoted = csv.writer(stream), csv.writer(stream, quoting=csv.QUOTE_ALL)
        for row in rows:
            cells = [_cell(str(value)) for value in row]
            splits = any(_SEPARATORS.intersection(cell) for cell in cells)
            (quoted if splits else plain).writerow(cells)


def read_cell(text: str) -> str:
    """The text of a cell that `write_table` wrote."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _cell(text: str) -> str:
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text
