"""Writes measurements: Markdown tables, the environment of the measurement, and JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Environment:
    """Machine and versions of a measurement."""

    processor: str
    """Name of the processor."""
    threads: int
    """Number of threads that torch uses for one operation."""
    system: str
    """Operating system and architecture."""
    python: str
    """Version of Python."""
    torch: str
    """Version of torch."""
    mien: str
    """Version of mien."""

    @classmethod
    def current(cls) -> Environment:
        """The environment of this process."""
        return cls(
            processor=_processor(),
            threads=torch.get_num_threads(),
            system=f"{platform.system()} {platform.machine()}",
            python=platform.python_version(),
            torch=torch.__version__,
            mien=_mien_version(),
        )

    def __str__(self) -> str:
        return (
            f"{self.processor}, {self.threads} threads, {self.system}, Python {self.python}, "
            f"torch {self.torch}, mien {self.mien}"
        )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with padded columns, readable in a terminal too; all columns but the first align right."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(3, *(len(row[k]) for row in cells)) for k in range(len(header))]
    rules = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in cells
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rules, *lines[1:]])


def write_json(path: Path, *, environment: Environment, results: Any) -> None:
    """Write results to a JSON file together with the environment.

    Args:
        path: The file; its folder is created.
        environment: Where the results were measured.
        results: A dataclass or a list of dataclasses.

    Raises:
        TypeError: A value cannot be written as JSON.
    """
    plain = [asdict(r) for r in results] if isinstance(results, list | tuple) else asdict(results)
    document = {"environment": asdict(environment), "results": plain}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, default=_plain) + "\n", encoding="utf-8")


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    to_list = getattr(value, "tolist", None)  # numpy arrays and scalars, tensors
    if to_list is None:
        raise TypeError(f"a {type(value).__name__} cannot be written as JSON")
    return to_list()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # only Linux gives the name of the model without a helper program
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _mien_version() -> str:
    try:
        return version("mien")
    except PackageNotFoundError:
        return "source tree"
