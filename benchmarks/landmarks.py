"""Landmark errors on Helen test and AFW; the same as `mien evaluate landmarks`, with JSON.

python benchmarks/landmarks.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import mien  # noqa: F401  (before torch: see mien.threads)

# isort: split
import torch
from rich.console import Console
from rich.progress import Progress

from mien.evaluation import evaluate_landmarks
from mien.evaluation.report import Environment, write_json
from mien.pipeline import Reconstructor


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with photos_68")
    parser.add_argument("--set", default="", help="helen_test, afw or helen_train; the two test sets if not given")
    parser.add_argument("--limit", type=int, help="photos of each set")
    parser.add_argument("--raw", action="store_true", help="perception alone, without the fit")
    parser.add_argument("--jobs", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.jobs)
    reconstructor = None if options.raw else Reconstructor(detail=False)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("landmarks")
        report = evaluate_landmarks(
            options.data / "photos_68" / options.set,
            reconstructor=reconstructor,
            limit=options.limit,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    print(f"{Environment.current()}\n\n{report.table()}\n")
    for row in report.rows:
        if row.reason:
            print(f"- {row.file}: {row.reason}")
    if options.json:
        write_json(options.json, environment=Environment.current(), results=report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
