"""How often the quality flags of a face are right, and how often they are false alarms.

python benchmarks/quality.py --data ../shared/data [--degraded 8] [--wild 20] [--pd 50]

Portraits of photos_ccby and portraits_pd show nothing that deserves a flag, except glasses in some of portraits_pd. The
same portraits are then blurred, shrunk, darkened, overexposed, cut off and covered. Photos of photos_68 have annotated
eyes. Mode net, which all modes share the measurements with.
"""

from __future__ import annotations

import argparse
import csv
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mien  # noqa: F401  (before torch: see mien.threads)

# isort: split
import numpy as np
import torch
from jaxtyping import UInt8
from lids import CLOSED, SETS, lid_openings
from occluder_pictures import draw
from PIL import Image, ImageFilter
from rich.console import Console
from rich.progress import track

from mien.errors import FaceDoubtful, MienError
from mien.evaluation.landmarks import matching_face, read_annotated
from mien.evaluation.report import Environment, markdown_table, write_json
from mien.io.photo import read_photo
from mien.perception import FaceDetection, FaceDetector
from mien.pipeline import Reconstructor
from mien.quality import FaceQuality, QualityFlag

Pixels = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True)
class Case:
    """One photo of a set."""

    group: str
    pixels: Pixels
    focal_px: float | None = None
    landmarks_px: np.ndarray | None = None
    """(68, 2) of the annotated face; None for the most prominent one."""


@dataclass(frozen=True)
class Rates:
    """How often each flag was set in a group of photos."""

    group: str
    photos: int
    """With a face that was found."""
    lost: int
    """Without."""
    flagged: int
    """Photos with any flag."""
    counts: dict[str, int]
    """Photos by flag."""


def degraded(pixels: Pixels, face: FaceDetection, *, seed: int) -> list[Case]:
    """One portrait with each kind of trouble."""
    image, points = Image.fromarray(pixels), face.landmarks468_px[:, :2]
    width = float(np.ptp(points[:, 0]))
    height = float(np.linalg.norm(points[10] - points[152]))
    level = pixels.astype(np.float32) / 255
    left, right = points[:, 0].min(), points[:, 0].max()
    small = image.resize([max(1, round(side * 40 / height)) for side in image.size], Image.Resampling.BOX)
    return [
        Case("blurred", np.asarray(image.filter(ImageFilter.GaussianBlur(0.04 * width)))),
        Case("slightly blurred", np.asarray(image.filter(ImageFilter.GaussianBlur(0.01 * width)))),
        Case("JPEG at quality 40", _jpeg(image, 40)),
        Case("face of 40 px", np.asarray(small)),
        Case("dark", _bytes(0.12 * level)),
        Case("rather dark", _bytes(0.5 * level)),
        Case("overexposed", _bytes(3.0 * level)),
        Case("cut at 75 % of the face", np.ascontiguousarray(pixels[:, : round(left + 0.75 * (right - left))])),
        Case("cut at the ears", np.ascontiguousarray(pixels[:, round(left) : round(right)])),
        Case("mask", draw("blue mask", pixels, points, seed=seed).pixels),
        Case("sunglasses", draw("sunglasses", pixels, points, seed=seed).pixels),
        Case("focal length of 0.3 of the width", pixels, focal_px=0.3 * max(pixels.shape[:2])),
    ]


def _jpeg(image: Image.Image, quality: int) -> Pixels:
    import io  # noqa: PLC0415

    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def _bytes(level: np.ndarray) -> Pixels:
    return np.rint(np.clip(level, 0, 1) * 255).astype(np.uint8)


def portraits(data: Path) -> list[Path]:
    """The 142 neutral portraits of photos_ccby."""
    with (data / "photos_ccby" / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["set"] in {"neutral_front", "canada"}]
    return [data / "photos_ccby" / row["file"] for row in rows]


def some(items: Sequence[Path], count: int) -> list[Path]:
    """Evenly spaced items."""
    return [items[k] for k in np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))] if count else []


def annotated_eyes(data: Path, count: int) -> list[Case]:
    """Photos with both eyes shut, all of them, and others."""
    cases = []
    for name in SETS:
        shut, other = [], []
        for photo in read_annotated(data / "photos_68" / name):
            (shut if (lid_openings(photo.landmarks_px) < CLOSED).all() else other).append(photo)
        chosen = other[:: max(1, len(other) // count)] if count else []
        for group, photos in (("photos_68, eyes shut", shut), ("photos_68, others", chosen)):
            cases += [Case(group, read_photo(p.path).pixels, landmarks_px=p.landmarks_px) for p in photos]
    return cases


def quality_of(case: Case, reconstructor: Reconstructor) -> FaceQuality | None:
    """The quality of the case's face; None if it is not found."""
    try:
        faces = reconstructor(case.pixels, focal_px=case.focal_px)
    except MienError:
        return None
    index = 0
    if case.landmarks_px is not None:
        index = matching_face([face.landmarks68 for face in faces], case.landmarks_px)
    return None if index is None else faces[index].quality


def summarize(group: str, found: Sequence[FaceQuality | None]) -> Rates:
    """Counts of one group."""
    known = [quality for quality in found if quality is not None]
    counts = {flag.value: sum(flag in quality.flags for quality in known) for flag in QualityFlag}
    return Rates(group, len(known), len(found) - len(known), sum(bool(quality.flags) for quality in known), counts)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with photos_ccby, portraits_pd and photos_68")
    parser.add_argument("--degraded", type=int, default=8, help="portraits that are degraded")
    parser.add_argument("--pd", type=int, default=50, help="portraits of portraits_pd")
    parser.add_argument("--wild", type=int, default=20, help="photos with open eyes per set of photos_68")
    parser.add_argument("--jobs", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measures", type=Path, help="CSV of all measurements")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.jobs)
    warnings.simplefilter("ignore", FaceDoubtful)
    data, detector = options.data, FaceDetector()
    reconstructor = Reconstructor(mode="net", detail=False, max_faces=4)
    files = portraits(data)
    sources: list[Callable[[], list[Case]]] = []
    sources += [lambda path=path: [Case("photos_ccby", read_photo(path).pixels)] for path in files]
    congress = some(sorted((data / "portraits_pd" / "images").glob("*.jpg")), options.pd)
    sources += [lambda path=path: [Case("portraits_pd", read_photo(path).pixels)] for path in congress]

    def spoil(path: Path, seed: int) -> list[Case]:
        pixels = read_photo(path).pixels
        return degraded(pixels, detector.detect(pixels, max_faces=1)[0], seed=seed)

    sources += [lambda path=path, k=k: spoil(path, k) for k, path in enumerate(some(files, options.degraded))]
    if options.wild:
        sources.append(lambda: annotated_eyes(data, options.wild))
    found: dict[str, list[FaceQuality | None]] = {}
    for source in track(sources, description="faces", console=Console(stderr=True)):
        for case in source():
            found.setdefault(case.group, []).append(quality_of(case, reconstructor))
    rates = [summarize(group, qualities) for group, qualities in found.items()]
    header = ["photos", "found", "lost", "any flag", *(flag.words for flag in QualityFlag)]
    cells = [[r.group, r.photos, r.lost, r.flagged, *(n or "" for n in r.counts.values())] for r in rates]
    print(f"{Environment.current()}\n\n{markdown_table(header, cells)}")
    if options.json:
        write_json(options.json, environment=Environment.current(), results=rates)
    if options.measures:
        _write_measures(options.measures, found)
    return 0


def _write_measures(path: Path, found: dict[str, list[FaceQuality | None]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        names = ["covered", "eye", "turn", "cut_off", "height_px", "blur", "brightness", "overexposed", "distance_m"]
        writer.writerow(["group", *names, "flags"])
        for group, qualities in found.items():
            for quality in qualities:
                if quality is None:
                    continue
                m = quality.measures
                values = [m.covered.face, max(m.eye_openings), m.turn_degrees, m.cut_off, m.height_px]
                values += [m.blur, m.brightness, m.overexposed, m.distance_m]
                writer.writerow([group, *values, " ".join(flag.value for flag in quality.flags)])


if __name__ == "__main__":
    sys.exit(main())
