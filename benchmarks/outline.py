"""How near the outline of the fitted face is to annotated jaw lines, and what head and contour bring.

    python benchmarks/outline.py --data ../shared/data [--set afw] [--limit 60]

Each photo of iBUG's sets is fitted without the contour, with the contour but without the head, and with both. The error
of the jaw is the mean distance of its 17 annotated points from the line through the model's, in percent of the
face's size (the diagonal of the annotated points' box). Distances along the jaw do not count.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import mien  # (before torch: see mien.threads)

# isort: split
import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from mien.evaluation.landmarks import AnnotatedPhoto, read_annotated
from mien.evaluation.paired import paired_difference
from mien.evaluation.report import Environment, markdown_table, write_json
from mien.fitting import FitSettings, FitTargets
from mien.fitting.contour import ContourMesh
from mien.fitting.head_skin import HeadSkin
from mien.morphable import landmark_vertices
from mien.morphable.landmark_tables import IBUG_INNER
from mien.perception import FaceDetector, IdentityNetwork
from mien.pipeline.inputs import PhotoInputs

JAW = slice(0, 17)
FARTHEST = 0.2
"""A detected face is another one if its middle is farther away than this share of the face's size."""
NO_CONTOUR = FitSettings(contour_sigma=1000.0)
ROWS = ("without contour", "contour, without head", "contour and head")
BASE = ROWS[1]


@dataclass(frozen=True)
class Outline:
    """Errors of one fit."""

    jaw: float
    """Of the jaw line, percent of the face's size."""
    inner: float
    """Of the 51 inner points, percent of the face's size."""
    seconds: float
    """Processor time of the fit."""


class Fitter:
    """The fit with and without head."""

    def __init__(self) -> None:
        self.model, self.detector = mien.load_model(), FaceDetector()
        self.recognition = IdentityNetwork.from_assets()
        self.meshes = {BASE: ContourMesh.around(self.model, None)}
        self.meshes |= dict.fromkeys(ROWS[2:], ContourMesh.around(self.model, HeadSkin.of(self.model)))

    @contextmanager
    def _contour(self, row: str) -> Iterator[FitSettings]:
        mesh = self.meshes.get(row, self.meshes[BASE])
        with patch.object(ContourMesh, "of", staticmethod(lambda _: mesh)):
            yield NO_CONTOUR if row == ROWS[0] else FitSettings()

    def inputs(self, photo: AnnotatedPhoto) -> PhotoInputs | None:
        """The annotated face of a photo, if it is found."""
        pixels, points = mien.read_photo(photo.path).pixels, photo.landmarks_px
        faces = self.detector.detect(pixels)
        away = [np.linalg.norm(face.landmarks68_px.mean(0) - points.mean(0)) for face in faces]
        if not away or min(away) > FARTHEST * _size(points):
            return None
        face = faces[int(np.argmin(away))]
        return PhotoInputs.of(pixels, [face], focal_px=None, exif_focal_px=None, device=torch.device("cpu"))

    def fit(self, inputs: PhotoInputs, points: np.ndarray, row: str) -> Outline:
        """Fit one face."""
        targets: FitTargets = inputs.targets
        with self._contour(row) as settings:
            start = time.process_time()
            result = mien.fit(self.model, targets, settings=settings, recognition=self.recognition)
            seconds = time.process_time() - start
        face = result.coefficients
        with torch.no_grad():
            vertices = self.model.vertices(face.identity, face.expression)
            crop_px = result.camera.project(face.pose.to_camera(vertices))
            chosen = landmark_vertices(self.model, crop_px, face.pose.rotmat())[0]
        found = inputs.faces[0].crop.to_photo(crop_px[0].double()).numpy()[chosen.numpy()]
        share = 100 / _size(points)
        inner = np.linalg.norm((found - points)[IBUG_INNER], axis=1).mean()
        return Outline(share * to_line(points[JAW], found[JAW]).mean(), share * inner, seconds)


def to_line(points: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Distance of each point from the line through the others."""
    starts, along = line[:-1], np.diff(line, axis=0)
    offsets = points[:, None] - starts
    shares = (offsets * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-9)
    return np.linalg.norm(offsets - shares.clip(0, 1)[..., None] * along, axis=-1).min(1)


def _size(points: np.ndarray) -> float:
    return float(np.linalg.norm(np.ptp(points, axis=0)))


def table(measured: dict[str, dict[str, Outline]]) -> str:
    """Means over the photos, and the paired difference of the jaw from the contour without head."""
    base = {photo: rows[BASE].jaw for photo, rows in measured.items()}
    cells = []
    for row in ROWS:
        own = {photo: rows[row] for photo, rows in measured.items()}
        means = [np.mean([getattr(x, name) for x in own.values()]) for name in ("jaw", "inner", "seconds")]
        d = None if row == BASE else paired_difference({photo: x.jaw for photo, x in own.items()}, base)
        difference = "" if d is None else f"{d.difference:+.2f} [{d.low:+.2f}, {d.high:+.2f}]"
        cells.append([row, len(own), f"{means[0]:.2f}", difference, f"{means[1]:.2f}", f"{means[2]:.2f}"])
    return markdown_table(["fit", "photos", "jaw, %", "difference, 95 % interval", "inner, %", "processor s"], cells)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with photos_68")
    parser.add_argument("--set", default="afw", help="helen_test, afw or helen_train")
    parser.add_argument("--limit", type=int, help="maximum number of photos, evenly spaced")
    parser.add_argument("--json", type=Path, help="file to write: the errors of each photo")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    photos = read_annotated(options.data / "photos_68" / options.set)
    if options.limit:
        photos = [photos[k] for k in np.linspace(0, len(photos) - 1, options.limit).astype(int)]
    fitter, measured = Fitter(), {}
    for photo in track(photos, console=Console(stderr=True)):
        inputs = fitter.inputs(photo)
        if inputs is not None:
            measured[photo.path.name] = {row: fitter.fit(inputs, photo.landmarks_px, row) for row in ROWS}
    print(f"{Environment.current()}\n\n{table(measured)}")
    if options.json:
        write_json(options.json, environment=Environment.current(), results=measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
