"""Open GLB files in other projects' readers, print what each of them reads, and write the table of docs/outputs.md.

    make interop

Usage: python -m tests.interop.table PAGE FOLDER [FOLDER ...]

FOLDER has the files of a result. PAGE is the Markdown page whose table is replaced. The exit code is 1 if a reader
refuses a file or reads something else; then the page stays as it is. Needs the packages of requirements.txt and
package.json, but not mien.
"""

from __future__ import annotations

import itertools
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from tests.interop.content import Content, Expected, Verdict, judged
from tests.interop.readers import READERS, Reader

TIMEOUT_S = 240
BEGIN, END = "<!-- make interop writes this table -->", "<!-- end of the table -->"


@dataclass(frozen=True)
class Row:
    """One reader and one file."""

    file: str
    reader: str
    verdict: Verdict | None
    note: str = ""
    """Why there is no verdict."""
    failed: bool = False

    def cells(self) -> list[str]:
        return list(astuple(self.verdict)) if self.verdict else [self.note] + [""] * (len(fields(Verdict)) - 1)


def row(folder: Path, part: str, expected: Expected, reader: Reader) -> Row:
    file, name = f"{folder.name}/{part}", reader.name
    try:
        name = f"{reader.name} {reader.version(reader.package)}"
        read = read_apart(reader, folder / reader.file(part))
    except ModuleNotFoundError as error:  # PackageNotFoundError is one
        return Row(file, name, None, f"not tried: {error}", failed=not reader.may_be_missing)
    except Exception as error:
        return Row(file, name, None, f"**no**: {error or type(error).__name__}", failed=True)
    verdict, faults = judged(read, expected, up=reader.up)
    if faults:
        return Row(file, name, None, "**no**: " + ", ".join(faults), failed=True)
    return Row(file, name, verdict)


def read_apart(reader: Reader, file: Path) -> Content:
    """Read in a process of its own, since readers can crash and bring libraries that do not go together."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(reader.read, str(file)).result(TIMEOUT_S)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def documented(rows: Sequence[Row]) -> str:
    """One line per reader, with the cells of the first file, and how many files it opens."""
    lines = []
    for reader in READERS:
        own = [row for row in rows if row.reader.startswith(f"{reader.name} ")]
        read = [row.verdict for row in own if row.verdict]
        if not read:
            lines.append([own[0].reader, own[0].note, "", "", "", "", "", ""])
            continue
        first = read[0]
        lines.append([
            own[0].reader, f"{len(read)} of {len(own)}" + (", dense" if reader.dense else ""),
            first.vertices, first.targets, first.landmarks, first.shape, reader.up, first.colour,
        ])  # fmt: skip
    header = ("reader", "opens", "vertices of skin and eyes", "morph targets", "indices", "shape", "up", "colour")
    return markdown(header, lines)


def write_table(page: Path, table: str) -> None:
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        raise SystemExit(f"{page} lacks the lines {BEGIN!r} and {END!r}, between which the table belongs.")
    page.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")


def main(page: Path, folders: Sequence[Path]) -> int:
    rows = []
    for folder, part in itertools.product(folders, ("face", "head")):
        if not (folder / f"{part}.glb").is_file():
            continue  # other face models have no head
        expected = Expected.of(folder, part)
        for reader in READERS:
            rows.append(row(folder, part, expected, reader))
            print(f"{rows[-1].file:16} {rows[-1].reader:20} {'  '.join(rows[-1].cells())}", flush=True)
    if any(row.failed for row in rows):
        return 1
    write_table(page, documented(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]]))
