"""The same face from 15 to 60 cm: does the identity stay when the focal length is known?

    python benchmarks/perspective.py --data ../shared/data

A near lens widens the nose and hides the ears. A fit that assumes the wrong focal length explains that by the shape of
the face, so the identity drifts with the distance; one that knows the focal length must not.

The photos carry no EXIF focal length. It follows from what is known about them: they were taken at about 15, 30, 45
and 60 cm with one camera and reduced by one factor, and the distance of a woman's pupils is 61.7 mm on average
(Dodgson 2004, Optometry and Vision Science 81:156). Each photo gives focal = pupils' distance in pixels · distance /
61.7 mm. The median of the four is used for all, because the camera is the same and the distances are approximate ("only
very", according to the source). The median, 0.85 of the longer side, is a phone's 29 mm equivalent. The distances
that it implies are printed, too.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mien  # noqa: F401  (before torch: see mien.threads)

# isort: split
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from shape import ablated

from mien.evaluation.report import Environment, markdown_table, write_json
from mien.fitting import FitSettings
from mien.geometry import align_points
from mien.io.photo import read_photo
from mien.morphable import MorphableModel
from mien.pipeline import Reconstructor
from mien.result import Reconstruction
from mien.typing import Float, Tensor

DISTANCES_M = {"15cm": 0.15, "30cm": 0.30, "45cm": 0.45, "60cm": 0.60}
PUPIL_DISTANCE_M = 0.0617


@dataclass(frozen=True)
class IdentityDistance:
    """How far the identities of pairs of reconstructions are apart; means over the pairs."""

    pairs: str
    count: int
    coefficient_rms: float
    """Root mean square difference of the coefficients, in standard deviations of the population."""
    cosine: float
    shape_mm: float
    """Mean distance of corresponding skin points of the neutral shapes after a similarity."""


@dataclass(frozen=True)
class PerspectiveResults:
    focal_estimates_px: tuple[float, ...]
    focal_px: float
    distances: tuple[IdentityDistance, ...]


def estimated_focals(paths: Sequence[Path], reconstructor: Reconstructor) -> list[float]:
    """The focal length that each photo's pupils and distance imply, pixels."""
    focals = []
    for path in paths:
        detection = reconstructor.detector.detect(read_photo(path).pixels, max_faces=1)[0]
        right, left = detection.irises_px[:, 0]
        focals.append(float(np.linalg.norm(left - right)) * DISTANCES_M[path.stem] / PUPIL_DISTANCE_M)
    return focals


def identity_distance(
    pairs: str, faces: Sequence[tuple[Reconstruction, Reconstruction]], model: MorphableModel
) -> IdentityDistance:
    first, second = (torch.stack([torch.from_numpy(pair[k].identity) for pair in faces]) for k in (0, 1))
    return IdentityDistance(
        pairs=pairs,
        count=len(faces),
        coefficient_rms=float((first - second).square().mean(1).sqrt().mean()),
        cosine=float(torch.nn.functional.cosine_similarity(first, second).mean()),
        shape_mm=_shape_distance_mm(model, first, second),
    )


def _shape_distance_mm(model: MorphableModel, first: Float[Tensor, "B I"], second: Float[Tensor, "B I"]) -> float:
    masks = model.masks
    skin = (masks.neck < 0.5) & (masks.eyes < 0.5) & (masks.mouth < 0.5)
    neutral = torch.zeros(len(first), model.counts[1])
    a, b = (model.vertices(identity, neutral)[:, skin] for identity in (first, second))
    return 1000 * float((align_points(a, b)(a) - b).norm(dim=-1).mean())


def distance_table(distances: Sequence[IdentityDistance]) -> str:
    rows = [[d.pairs, d.count, f"{d.coefficient_rms:.2f}", f"{d.cosine:.2f}", f"{d.shape_mm:.2f}"] for d in distances]
    return markdown_table(["pairs", "number", "coefficients, rms SD", "cosine", "shape, mm"], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with photos_ccby")
    parser.add_argument("--people", type=int, default=8, help="other people, for comparison")
    parser.add_argument("--jobs", type=int, default=1, help="threads of torch")
    parser.add_argument(
        "--ablate", action="append", default=[], metavar="NAME=VALUE", help="change fields of FitSettings"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.jobs)
    folder = options.data / "photos_ccby"
    zoom = [folder / "zoom" / f"{name}.jpg" for name in DISTANCES_M]
    neutral = sorted((folder / "neutral_front").glob("*.jpg"))
    others = [neutral[k] for k in np.linspace(0, len(neutral) - 1, options.people).round().astype(int)]

    settings = ablated(FitSettings(), options.ablate)
    reconstructor = Reconstructor(detail=False, max_faces=1, settings=settings)
    estimates = estimated_focals(zoom, reconstructor)
    focal = float(np.median(estimates))
    jobs = [("known", path, focal) for path in zoom]
    jobs += [("assumed", path, None) for path in [*zoom, *others]]
    found: dict[tuple[str, Path], Reconstruction] = {
        (kind, path): reconstructor(path, focal_px=focal_px)[0]
        for kind, path, focal_px in track(jobs, description="perspective", console=Console(stderr=True))
    }

    def pairs(kind: str, paths: Sequence[Path]) -> list[tuple[Reconstruction, Reconstruction]]:
        return [(found[kind, a], found[kind, b]) for a, b in itertools.combinations(paths, 2)]

    near, far = zoom[0], zoom[-1]
    distances = (
        identity_distance("one person, 15 to 60 cm, focal length known", pairs("known", zoom), reconstructor.model),
        identity_distance("one person, 15 to 60 cm, 0.8 m assumed", pairs("assumed", zoom), reconstructor.model),
        identity_distance("15 against 60 cm, known", pairs("known", [near, far]), reconstructor.model),
        identity_distance("15 against 60 cm, 0.8 m assumed", pairs("assumed", [near, far]), reconstructor.model),
        identity_distance("different people, one studio", pairs("assumed", others), reconstructor.model),
    )
    texts = ", ".join(
        f"{path.stem}: {value:.0f} px ({100 * DISTANCES_M[path.stem] * focal / value:.0f} cm at the median)"
        for path, value in zip(zoom, estimates, strict=True)
    )
    print(f"{Environment.current()}\n\nFocal length implied by {texts}; used: {focal:.0f} px\n")
    print(distance_table(distances))
    if options.json:
        write_json(
            options.json,
            environment=Environment.current(),
            results=PerspectiveResults(tuple(estimates), focal, distances),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
