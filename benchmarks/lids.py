"""How far the eyes are open: annotated against detected landmarks and reconstructions.

python benchmarks/lids.py --data ../shared/data [--modes net fit auto] [--open 20]

Takes every face of photos_68 with an eye whose annotated opening is below 0.08 (a blink or a wink), and evenly spaced
others. The opening is the mean distance of the two pairs of iBUG lid points over the width of the eye.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mien  # noqa: F401  (before torch: see mien.threads)

# isort: split
import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import track

from mien.errors import MienError
from mien.evaluation.landmarks import AnnotatedPhoto, matching_face, read_annotated
from mien.evaluation.report import Environment, markdown_table, write_json
from mien.io.photo import read_photo
from mien.morphable.landmark_tables import IBUG_LEFT_EYE, IBUG_RIGHT_EYE
from mien.perception import FaceDetector
from mien.pipeline import Reconstructor

CLOSED = 0.08
"""An eye with a smaller annotated opening is closed."""
MODES = ("net", "fit", "auto")
SETS = ("helen_train", "helen_test", "afw")


def lid_openings(landmarks: Float[np.ndarray, "68 2"]) -> Float[np.ndarray, "2"]:
    """Opening of both eyes over their width, right eye first."""
    openings = []
    for eye in (IBUG_RIGHT_EYE, IBUG_LEFT_EYE):
        outer, upper_1, upper_2, inner, lower_2, lower_1 = landmarks[eye]
        gap = np.linalg.norm(upper_1 - lower_1) + np.linalg.norm(upper_2 - lower_2)
        openings.append(gap / 2 / np.linalg.norm(outer - inner))
    return np.array(openings)


@dataclass(frozen=True)
class LidErrors:
    """Absolute errors of the opening of one source of landmarks, as shares of the eye's width."""

    source: str
    """"detected" or a mode."""
    eyes: str
    """"closed" or "open"."""
    count: int
    """Number of eyes."""
    median: float
    """Median error."""
    p90: float
    """90th percentile."""
    signed: float
    """Mean difference, positive where the prediction is more open."""
    missed: int
    """Number of photos in which the source did not find the annotated face."""


def summarize(
    source: str, pairs: Sequence[tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"] | None]]
) -> list[LidErrors]:
    """Errors of closed and open eyes from pairs of annotated and predicted openings; None where a face is missing."""
    found = [(gt, predicted) for gt, predicted in pairs if predicted is not None]
    gt, predicted = (np.concatenate(values) for values in zip(*found, strict=True))
    rows = []
    for name, eyes in (("closed", gt < CLOSED), ("open", gt >= CLOSED)):
        difference = (predicted - gt)[eyes]
        errors = np.abs(difference) if len(difference) else np.array([np.nan])
        median, p90 = np.quantile(errors, [0.5, 0.9])
        rows.append(
            LidErrors(
                source,
                name,
                int(eyes.sum()),
                float(median),
                float(p90),
                float(difference.mean()),
                len(pairs) - len(found),
            )
        )
    return rows


def choose_photos(folder: Path, *, open_photos: int) -> list[AnnotatedPhoto]:
    """All photos with a closed eye, and per set evenly spaced photos with open eyes."""
    chosen = []
    for name in SETS:
        photos = read_annotated(folder / name)
        closed = [(lid_openings(photo.landmarks_px) < CLOSED).any() for photo in photos]
        others = [photo for photo, shut in zip(photos, closed, strict=True) if not shut]
        places = np.unique(np.linspace(0, len(others) - 1, open_photos).round().astype(int)) if open_photos else []
        chosen += [photo for photo, shut in zip(photos, closed, strict=True) if shut] + [others[k] for k in places]
    return chosen


def predicted_openings(photo: AnnotatedPhoto, source: FaceDetector | Reconstructor) -> Float[np.ndarray, "2"] | None:
    """Openings of the annotated face in one photo; None if the source does not find it."""
    pixels = read_photo(photo.path).pixels
    try:
        if isinstance(source, Reconstructor):
            landmarks = [face.landmarks68 for face in source(pixels)]
        else:
            landmarks = [face.landmarks68_px for face in source.detect(pixels)]
    except MienError as error:
        print(f"- {photo.path.name}: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    best = matching_face(landmarks, photo.landmarks_px)
    return None if best is None else lid_openings(landmarks[best])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with photos_68")
    parser.add_argument("--modes", nargs="*", default=list(MODES), help="net, fit or auto; all if not given")
    parser.add_argument("--open", type=int, default=20, help="photos with open eyes per set")
    parser.add_argument("--jobs", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.jobs)
    photos = choose_photos(options.data / "photos_68", open_photos=options.open)
    rows: list[LidErrors] = []
    for name in ("detected", *options.modes):
        source = FaceDetector() if name == "detected" else Reconstructor(mode=name, detail=False)
        every = track(photos, description=name, console=Console(stderr=True))
        rows += summarize(name, [(lid_openings(p.landmarks_px), predicted_openings(p, source)) for p in every])
    header = ["source", "eyes", "number", "median error", "p90", "mean difference", "faces not found"]
    cells = [[r.source, r.eyes, r.count, f"{r.median:.3f}", f"{r.p90:.3f}", f"{r.signed:+.3f}", r.missed] for r in rows]
    print(f"{Environment.current()}\n\n{markdown_table(header, cells)}")
    if options.json:
        write_json(options.json, environment=Environment.current(), results=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
