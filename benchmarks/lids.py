"""How far eyes or lips are open: annotated against detected landmarks and reconstructions.

python benchmarks/lids.py --data ../shared/data [--of lids lips] [--modes net fit auto] [--open 20]

Lids: every face of photos_68 with an eye whose annotated opening is below 0.08 (a blink or a wink), and evenly spaced
others. The opening is the mean distance of the two pairs of iBUG lid points over the width of the eye. Lips: evenly
spaced faces of both kinds; the opening is the mean distance of the three inner pairs over the width of the mouth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
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
from mien.morphable.landmark_tables import IBUG_INNER_LIPS, IBUG_LEFT_EYE, IBUG_MOUTH_CORNERS, IBUG_RIGHT_EYE
from mien.perception import FaceDetector
from mien.pipeline import Reconstructor

CLOSED = 0.08
"""An eye with a smaller annotated opening is closed."""
CLOSED_LIPS = 0.03
"""Lips with a smaller annotated opening are closed: people click one pixel apart on either side of the line."""
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


def lip_opening(landmarks: Float[np.ndarray, "68 2"]) -> Float[np.ndarray, "1"]:
    """Opening of the lips over the width of the mouth."""
    _, *upper, _, lower_1, lower_2, lower_3 = landmarks[IBUG_INNER_LIPS]
    gap = np.linalg.norm(np.array(upper) - np.array([lower_3, lower_2, lower_1]), axis=1).mean()
    first, last = landmarks[list(IBUG_MOUTH_CORNERS)]
    return np.array([gap / np.linalg.norm(last - first)])


@dataclass(frozen=True)
class Opening:
    """What is measured."""

    of: Callable[[Float[np.ndarray, "68 2"]], Float[np.ndarray, "E"]]
    closed: float
    """A smaller opening counts as closed."""
    all_closed: bool
    """Whether all photos of closed ones are taken, because they are rare."""


OPENINGS = {"lids": Opening(lid_openings, CLOSED, True), "lips": Opening(lip_opening, CLOSED_LIPS, False)}


@dataclass(frozen=True)
class OpeningErrors:
    """Absolute errors of the opening of one source of landmarks, as shares of the width of the eye or mouth."""

    source: str
    """"detected" or a mode."""
    state: str
    """"closed" or "open"."""
    count: int
    """Number of eyes or mouths."""
    median: float
    """Median error."""
    p90: float
    """90th percentile."""
    signed: float
    """Mean difference, positive where the prediction is more open."""
    missed: int
    """Number of photos in which the source did not find the annotated face."""


def summarize(
    source: str,
    pairs: Sequence[tuple[Float[np.ndarray, "E"], Float[np.ndarray, "E"] | None]],
    *,
    closed: float = CLOSED,
) -> list[OpeningErrors]:
    """Errors of closed and of open ones from annotated and predicted openings; None where a face is missing."""
    found = [(gt, predicted) for gt, predicted in pairs if predicted is not None]
    gt, predicted = (np.concatenate(values) for values in zip(*found, strict=True))
    rows = []
    for name, chosen in (("closed", gt < closed), ("open", gt >= closed)):
        difference = (predicted - gt)[chosen]
        errors = np.abs(difference) if len(difference) else np.array([np.nan])
        median, p90 = np.quantile(errors, [0.5, 0.9])
        rows.append(
            OpeningErrors(
                source,
                name,
                int(chosen.sum()),
                float(median),
                float(p90),
                float(difference.mean()),
                len(pairs) - len(found),
            )
        )
    return rows


def choose_photos(folder: Path, opening: Opening, *, open_photos: int) -> list[AnnotatedPhoto]:
    """Per set, photos with closed eyes or lips, all or evenly spaced, and evenly spaced others."""
    chosen = []
    for name in SETS:
        photos = read_annotated(folder / name)
        is_closed = [bool((opening.of(photo.landmarks_px) < opening.closed).any()) for photo in photos]
        closed = [photo for photo, shut in zip(photos, is_closed, strict=True) if shut]
        others = [photo for photo, shut in zip(photos, is_closed, strict=True) if not shut]
        chosen += closed if opening.all_closed else _spaced(closed, open_photos)
        chosen += _spaced(others, open_photos)
    return chosen


def _spaced(photos: Sequence[AnnotatedPhoto], count: int) -> list[AnnotatedPhoto]:
    places = np.unique(np.linspace(0, len(photos) - 1, count).round().astype(int)) if count and photos else []
    return [photos[k] for k in places]


def predicted_openings(
    photo: AnnotatedPhoto, source: FaceDetector | Reconstructor, opening: Opening
) -> Float[np.ndarray, "E"] | None:
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
    return None if best is None else opening.of(landmarks[best])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with photos_68")
    parser.add_argument("--of", nargs="*", default=list(OPENINGS), choices=list(OPENINGS), help="what to measure")
    parser.add_argument("--modes", nargs="*", default=list(MODES), help="net, fit or auto; all if not given")
    parser.add_argument(
        "--open", type=int, default=20, help="photos per set with open eyes, and with open and with closed lips"
    )
    parser.add_argument("--jobs", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.jobs)
    print(Environment.current())
    results = {}
    for what in options.of:
        opening, rows = OPENINGS[what], []
        photos = choose_photos(options.data / "photos_68", opening, open_photos=options.open)
        for name in ("detected", *options.modes):
            source = FaceDetector() if name == "detected" else Reconstructor(mode=name, detail=False)
            every = track(photos, description=f"{what}, {name}", console=Console(stderr=True))
            pairs = [(opening.of(p.landmarks_px), predicted_openings(p, source, opening)) for p in every]
            rows += summarize(name, pairs, closed=opening.closed)
        header = ["source", what, "number", "median error", "p90", "mean difference", "faces not found"]
        cells = [
            [r.source, r.state, r.count, f"{r.median:.3f}", f"{r.p90:.3f}", f"{r.signed:+.3f}", r.missed] for r in rows
        ]
        print(f"\n{markdown_table(header, cells)}")
        results[what] = rows
    if options.json:
        write_json(options.json, environment=Environment.current(), results=results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
