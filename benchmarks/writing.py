"""Processor time of writing each format of a result, as a ratio to that of finding the face in mode net.

    python benchmarks/writing.py --data ../shared/data

One thread, in turns: each repeat finds the face once and writes every format once. Medians over photos and repeats.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import mien
from mien.evaluation.report import Environment, markdown_table, write_json
from mien.io.result_files import DEFAULT_FORMATS, FORMATS

_FINDING, _DEFAULT = "finding the face", "default formats"


@dataclass(frozen=True)
class Cost:
    """What one piece of work costs per face."""

    name: str
    processor_seconds: float
    ratio: float
    """Relative to finding the face."""
    kilobytes: float
    """Size of the files."""


def measure(photos: Sequence[Path], repeats: int) -> list[Cost]:
    """Find and write the most prominent face of each photo."""
    reconstructor = mien.Reconstructor(mode="net", max_faces=1)
    choices = {_DEFAULT: DEFAULT_FORMATS, **{name: (name,) for name in FORMATS}}
    seconds, sizes = defaultdict[str, list[float]](list), defaultdict[str, list[int]](list)
    with tempfile.TemporaryDirectory() as out:
        for repeat in range(repeats + 1):  # the first is slower and does not count
            for path in photos:
                photo = mien.read_photo(path)
                start = time.process_time()
                (face,) = reconstructor(photo)
                times = {_FINDING: time.process_time() - start}
                for name, formats in choices.items():
                    folder = Path(out) / name
                    start = time.process_time()
                    mien.write_reconstruction(face, reconstructor.model, photo, folder, formats)
                    times[name] = time.process_time() - start
                    sizes[name].append(sum(file.stat().st_size for file in folder.iterdir()))
                if repeat:
                    for name, value in times.items():
                        seconds[name].append(value)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return [
        Cost(name, value, value / medians[_FINDING], float(np.median(sizes[name])) / 1000 if name in choices else 0.0)
        for name, value in medians.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with demo/portrait_*.jpg")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    photos = sorted((options.data / "demo").glob("portrait_*.jpg"))
    if not photos:
        parser.error(f"--data={options.data} has no demo/portrait_*.jpg")
    costs = measure(photos, options.repeats)
    print(f"{Environment.current()}\n")
    rows = [[c.name, f"{1000 * c.processor_seconds:.0f}", f"{c.ratio:.2f}", f"{c.kilobytes:.0f}"] for c in costs]
    print(markdown_table(["per face", "processor ms", "ratio to finding", "kB"], rows))
    if options.json:
        write_json(options.json, environment=Environment.current(), results=costs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
