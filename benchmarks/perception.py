"""Processor time of finding a face and its landmarks, beside MediaPipe's, where it can be imported.

    pip install mediapipe==0.10.21
    python benchmarks/perception.py --data ../shared/data

One thread, one process, in turns photo by photo: mien, mien with the layers of the networks one by one in torch, and
MediaPipe's face mesh with attention for still images. MediaPipe has the same mesh network; it looks at the photo once
with the short-range detector and computes one mesh. Medians over the repeats, then means over the photos.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import mien
from mien.evaluation.report import Environment, markdown_table, write_json
from mien.perception import FaceDetector
from mien.perception.fused import Program

_MIEN, _TORCH, _PEER = "mien", "mien, layers in torch", "MediaPipe"


@dataclass(frozen=True)
class Cost:
    """What one way of finding a face costs per photo."""

    name: str
    processor_seconds: float
    ratio: float
    """Relative to MediaPipe, or to mien without it."""


@contextlib.contextmanager
def _mediapipe() -> Iterator[Callable[[np.ndarray], Any] | None]:
    """MediaPipe's face mesh; None if it cannot be imported."""
    try:
        import mediapipe  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
    except ImportError:
        yield None
        return
    with mediapipe.solutions.face_mesh.FaceMesh(static_image_mode=True, max_num_faces=1, refine_landmarks=True) as mesh:
        yield mesh.process


def measure(photos: Sequence[Path], repeats: int) -> list[Cost]:
    """Find the face of each photo in each way."""
    detector = FaceDetector()

    def in_torch(pixels: np.ndarray) -> object:
        with mock.patch.object(Program, "fits", return_value=False):
            return detector.detect(pixels)

    totals = defaultdict[str, float](float)
    with _mediapipe() as peer:
        ways: dict[str, Callable[[np.ndarray], object]] = {_MIEN: detector.detect, _TORCH: in_torch}
        ways |= {} if peer is None else {_PEER: peer}
        for path in photos:
            pixels, seconds = mien.read_photo(path).pixels, defaultdict[str, list[float]](list)
            for repeat in range(repeats + 1):  # the first is slower and does not count
                for name, find in ways.items():
                    start = time.process_time()
                    find(pixels)
                    if repeat:
                        seconds[name].append(time.process_time() - start)
            for name, values in seconds.items():
                totals[name] += float(np.median(values)) / len(photos)
    unit = totals.get(_PEER, totals[_MIEN])
    return [Cost(name, total, total / unit) for name, total in totals.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with demo/portrait_*.jpg")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    photos = sorted((options.data / "demo").glob("portrait_*.jpg"))
    if not photos:
        parser.error(f"--data={options.data} has no demo/portrait_*.jpg")
    costs = measure(photos, options.repeats)
    print(f"{Environment.current()}\n")
    rows = [[c.name, f"{1000 * c.processor_seconds:.1f}", f"{c.ratio:.2f}"] for c in costs]
    print(markdown_table(["per photo", "processor ms", "ratio"], rows))
    if options.json:
        write_json(options.json, environment=Environment.current(), results=costs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
