"""Memory of a joint reconstruction against the number of photos.

    python benchmarks/joint_memory.py --data ../shared/data [--counts 2,10,50] [--mode auto]

The photos are those of one person in photos_ccby ("lisa" and "zoom"), repeated with other borders. Each number of
photos is reconstructed and written in a process of its own, as by `mien reconstruct --same-person --formats npz`; the
table has the largest resident memory of the process, and its processor time.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mien  # noqa: F401  (before torch: see mien.threads)

# isort: split
import torch
from PIL import Image, ImageOps

from mien.evaluation.report import Environment, markdown_table, write_json
from mien.scale.output_folder import PersonFolder
from mien.scale.photo_work import PhotoSettings
from mien.scale.worker import Worker

SOURCES = ("lisa/lisa1.jpg", "lisa/lisa3.jpg", "lisa/lisa4.jpg", "zoom/30cm.jpg", "zoom/45cm.jpg", "zoom/60cm.jpg")


@dataclass(frozen=True)
class MemoryUse:
    """One joint reconstruction."""

    photos: int
    """Number of photos."""
    faces: int
    """Number of photos in which the person was found."""
    peak_mb: float
    """Largest resident memory, MiB."""
    loaded_mb: float
    """Resident memory when the model and the networks were loaded, MiB."""
    processor_s: float
    """Processor time of the reconstruction."""


def make_photos(data: Path, folder: Path, count: int) -> list[Path]:
    """Photos of one person, no two alike."""
    paths = []
    for number in range(count):
        round_, source = divmod(number, len(SOURCES))
        photo = ImageOps.expand(Image.open(data / "photos_ccby" / SOURCES[source]).convert("RGB"), 8 * round_)
        paths.append(folder / f"{number:02}.png")
        photo.save(paths[-1], compress_level=1)
    return paths


def measure_here(data: Path, *, count: int, mode: str) -> MemoryUse:
    """Reconstruct in this process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        photos = tuple(make_photos(data, Path(folder), count))
        work = Worker(PhotoSettings(mode=mode, formats=("npz",)))
        loaded, start = _peak_mb(), time.process_time()
        outcome = work(PersonFolder(Path(folder) / "out", folder, photos))
        faces = sum(row.faces for row in outcome.rows)
        return MemoryUse(count, faces, _peak_mb(), loaded, time.process_time() - start)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with photos_ccby")
    parser.add_argument("--counts", default="2,10,50", help="numbers of photos")
    parser.add_argument("--mode", default="auto", help="of the reconstructions: fit, net or auto")
    parser.add_argument("--here", action="store_true", help="measure one number in this process, print JSON")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/joint_memory"), help="folder of the results")
    options = parser.parse_args(arguments)
    if options.here:
        print(json.dumps(vars(measure_here(options.data, count=int(options.counts), mode=options.mode))))
        return 0
    found = []
    for count in options.counts.split(","):
        command = [sys.executable, __file__, "--data", str(options.data), "--mode", options.mode, "--here"]
        printed = subprocess.run([*command, "--counts", count], check=True, capture_output=True, text=True).stdout
        found.append(MemoryUse(**json.loads(printed.splitlines()[-1])))
    rows = [
        [one.photos, one.faces, f"{one.loaded_mb:.0f}", f"{one.peak_mb:.0f}", f"{one.processor_s / one.photos:.1f}"]
        for one in found
    ]
    header = [f"photos, mode {options.mode}", "faces", "loaded, MiB", "peak, MiB", "processor s per photo"]
    environment = Environment.current()
    print(f"{environment}\n\n{markdown_table(header, rows)}")
    write_json(options.out / f"{options.mode}.json", environment=environment, results=found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
