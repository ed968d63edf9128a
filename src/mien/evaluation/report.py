"""How measurements are written down: Markdown tables, the machine they were made on, and JSON."""

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
    """What a figure depends on besides the code."""

    processor: str
    threads: int
    """Threads that torch uses for one operation."""
    system: str
    python: str
    torch: str
    mien: str

    @classmethod
    def current(cls) -> Environment:
        """The machine and the versions of this process."""
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
    """A Markdown table whose columns are padded, so that it reads in a terminal too; numbers go to the right."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(3, *(len(row[k]) for row in cells)) for k in range(len(header))]
    rules = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in cells
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rules, *lines[1:]])


def write_json(path: Path, *, environment: Environment, results: Any) -> None:
    """Write a dataclass, or a list of them, beside the environment it was measured in."""
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
    cpuinfo = Path("/proc/cpuinfo")  # Linux alone says the model's name without a helper program
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
