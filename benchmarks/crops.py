"""One portrait, cut more and more tightly: does its shape stay?

python benchmarks/crops.py --data ../shared/data [--modes auto net]

Cuts each demo portrait to multiples of the width of its face (of the detected points), 1.25 times as high as wide, and
reconstructs it without further knowledge. `fill_c.png` of the field cases is a part of portrait_c inside the face. The
error is the root mean square distance of corresponding vertices from the reconstruction of the whole portrait after
a rigid alignment, without the neck.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import mien  # noqa: F401  (before torch: see mien.threads)

# isort: split
import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from mien.evaluation.report import Environment, markdown_table, write_json
from mien.geometry import align_points
from mien.io.photo import read_photo
from mien.pipeline import Reconstructor
from mien.typing import Float, Tensor, UInt8

WIDTHS = (1.0, 1.3, 1.8, 2.5)
"""Widths of the crops, in widths of the face."""
HEIGHT = 1.25
"""Height of a crop over its width."""
INSIDE = {"portrait_c": Path("field/fill_c.png")}
"""Crops inside the face that are files of their own."""


@dataclass(frozen=True)
class CropErrors:
    """Differences of the crops of one portrait from the whole, one mode."""

    portrait: str
    mode: str
    rms_mm: tuple[float, ...]
    """One per width of `WIDTHS`, then that of `INSIDE`, if there is one."""


def cut(
    pixels: UInt8[np.ndarray, "H W 3"], points_px: Float[np.ndarray, "468 2"], width: float
) -> UInt8[np.ndarray, "h w 3"]:
    """The part of a photo around a face, `width` times as wide as the points; smaller where the photo ends."""
    low, high = points_px.min(0), points_px.max(0)
    half = np.array([1.0, HEIGHT]) * width / 2 * (high[0] - low[0])
    x0, y0 = np.maximum((low + high) / 2 - half, 0).astype(int)
    x1, y1 = ((low + high) / 2 + half).astype(int)
    return np.ascontiguousarray(pixels[y0:y1, x0:x1])


def crop_errors(data: Path, portrait: str, mode: str, reconstructor: Reconstructor) -> CropErrors:
    pixels = read_photo(data / "demo" / f"{portrait}.jpg").pixels
    points_px = reconstructor.detector.detect(pixels, max_faces=1)[0].landmarks468_px[:, :2]
    crops = [cut(pixels, points_px, width) for width in WIDTHS]
    if portrait in INSIDE:
        crops.append(read_photo(data / INSIDE[portrait]).pixels)
    head = reconstructor.model.masks.neck < 0.5

    def shape(photo: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "1 P 3"]:
        return torch.from_numpy(reconstructor(photo)[0].vertices_model)[head][None]

    whole = shape(pixels)
    errors = []
    for photo in crops:
        found = shape(photo)
        squared = (align_points(found, whole, rigid=True)(found) - whole).square().sum(-1)
        errors.append(1000 * float(squared.mean().sqrt()))
    return CropErrors(portrait, mode, tuple(errors))


def table(rows: Sequence[CropErrors]) -> str:
    """A row per portrait and mode, and the mean over the portraits of each mode."""
    header = ["mode", "portrait", *(f"{width} widths" for width in WIDTHS), "inside the face"]
    cells = [[row.mode, row.portrait, *(f"{error:.2f}" for error in row.rms_mm)] for row in rows]
    for mode in dict.fromkeys(row.mode for row in rows):
        columns = zip_longest(*(row.rms_mm for row in rows if row.mode == mode))
        means = [np.mean([error for error in column if error is not None]) for column in columns]
        cells.append([mode, "mean", *(f"{mean:.2f}" for mean in means)])
    return markdown_table(header, [[*cell, *[""] * (len(header) - len(cell))] for cell in cells])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with demo and field")
    parser.add_argument(
        "--modes", nargs="*", default=["auto", "net"], help="fit, net or auto; auto and net if not given"
    )
    parser.add_argument("--jobs", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.jobs)
    portraits = sorted(path.stem for path in (options.data / "demo").glob("portrait_*.jpg"))
    rows = []
    for mode in options.modes:
        reconstructor = Reconstructor(mode=mode, detail=False, max_faces=1)
        every = track(portraits, description=mode, console=Console(stderr=True))
        rows += [crop_errors(options.data, portrait, mode, reconstructor) for portrait in every]
    print(f"{Environment.current()}\n\nRms difference from the whole portrait, mm\n\n{table(rows)}")
    if options.json:
        write_json(options.json, environment=Environment.current(), results=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
