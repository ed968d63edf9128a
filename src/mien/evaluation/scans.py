"""Error of a predicted face against a metric scan of the same person, taken together with the photo.

    prediction ── start from pixels or 7 landmarks ── trimmed ICP ──► alignment
    points of the scan ── distance to the aligned prediction ──► median, mean, p90; the same per region

Distances run from the scan to the prediction, so that all predictions are measured at the same points, and a missing
part costs its distance to the border. The protocol follows NoW (Sanyal et al. 2019) and REALY (Chai et al. 2022);
docs/scans.md lists the differences. Lengths are millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mien.errors import ConfigError
from mien.evaluation.scan_alignment import (
    IcpSettings,
    ScanAlignment,
    align_with_keypoints,
    known,
    nearby,
    pair_distances,
    robust_similarity,
    to_prediction,
    trimmed_icp,
)
from mien.evaluation.scan_camera import ScanCamera
from mien.geometry import Similarity, Surface, align_points
from mien.typing import Float, Int, Tensor

IBUG_OF_SEVEN = (36, 39, 42, 45, 33, 48, 54)
"""NoW's seven landmarks among the 68 iBUG points: outer and inner corner of the right and inner and outer corner of the
left eye, nose base, right and left corner of the mouth."""
_FEWEST_PAIRS = 12
"""Fewer pixels on the scan give no start."""
_FEWEST_LANDMARKS = 4
_FEWEST_POINTS = 40
"""A region of fewer points is not measured."""
_REGIONAL_ICP = IcpSettings(points=400, steps=12)
_REGIONAL_POINTS = 800
"""Number of points that measure a re-aligned region."""


@dataclass(frozen=True)
class Keypoints:
    """Keypoints of a scan that lead the regional alignment of REALY."""

    points: Float[Tensor, "K 3"]
    """Positions, millimetres."""
    regions: tuple[tuple[int, ...], ...]
    """Numbers of the keypoints that lead each region."""
    weights: tuple[float, ...]
    """Weight of all keypoints of a region, relative to all of its points."""
    tolerance_mm2: float
    """Change of the mean squared distance below which an alignment is done."""


@dataclass(frozen=True)
class FaceScan:
    """The ground truth of one photo."""

    name: str
    """Name of the photo in the results."""
    photo: Path | None
    """The photo, if the data set has it."""
    surface: Surface
    """The scan, millimetres, float64."""
    points: Float[Tensor, "P 3"]
    """Points of the scan at which predictions are measured, in random order."""
    region_names: tuple[str, ...] = ()
    """Names of the regions."""
    region_of_point: Int[Tensor, "P"] | None = None
    """Number of the region of each point; negative for a point outside all of them."""
    landmarks7: Float[Tensor, "7 3"] | None = None
    """The seven landmarks on the scan; not finite where unknown."""
    camera: ScanCamera | None = None
    """Camera of the photo, if it is known."""
    keypoints: Keypoints | None = None
    """Keypoints for the regional alignment; without them regions are aligned by their points alone."""
    icp: IcpSettings = field(default_factory=IcpSettings)
    """Schedule of the alignment."""

    def region_points(self, region: int) -> Float[Tensor, "R 3"]:
        """The points of one region."""
        return self.points[:0] if self.region_of_point is None else self.points[self.region_of_point == region]


@dataclass(frozen=True)
class PredictedFace:
    """A predicted mesh, in any right-handed frame."""

    surface: Surface
    """The mesh, float64, millimetres or any other unit."""
    metric: bool = False
    """Whether the unit is the millimetre."""
    pixels: Float[Tensor, "V 2"] | None = None
    """Position of each vertex in the photo, with the centre of the first pixel at (0, 0); not finite where unknown."""
    landmarks7: Float[Tensor, "7 3"] | None = None
    """The seven landmarks of the mesh."""
    keypoints: Float[Tensor, "K 3"] | None = None
    """The same keypoints as those of the scan; not finite where unknown."""


@dataclass(frozen=True)
class ErrorSummary:
    """Statistics of distances, millimetres."""

    median: float
    """Median."""
    mean: float
    """Mean."""
    std: float
    """Standard deviation."""
    p90: float
    """90th percentile."""

    @classmethod
    def of(cls, errors: Float[np.ndarray, "P"]) -> ErrorSummary:
        """Summarise distances."""
        p90 = float(np.quantile(errors, 0.9))
        return cls(float(np.median(errors)), float(errors.mean()), float(errors.std()), p90)


@dataclass(frozen=True)
class RegionErrors:
    """Errors of one region."""

    name: str
    """Name of the region."""
    errors: ErrorSummary
    """Errors after the alignment of the whole face."""
    realigned: ErrorSummary | None
    """Errors after a rigid alignment of this region alone, if that was requested."""


@dataclass(frozen=True, eq=False)
class ScanErrors:
    """Errors of one prediction after one kind of alignment."""

    overall: ErrorSummary
    """Errors of all points."""
    regions: tuple[RegionErrors, ...]
    """Errors per region; regions without enough points are missing."""
    scale: float
    """Factor by which the alignment enlarged the prediction."""
    start_matches: float
    """Share of the pairs of the start that match; below 0.4 the start is weak."""
    rms_mm: float
    """Root mean squared distance of the points that the alignment kept."""
    similarity: Similarity
    """The alignment."""
    distances: Float[np.ndarray, "P"]
    """Error of each point."""


def score_face(scan: FaceScan, face: PredictedFace, *, rigid: bool = False, regional: bool = False) -> ScanErrors:
    """Measure one prediction against its scan.

    Args:
        scan: The ground truth.
        face: The prediction.
        rigid: Keep the size of the prediction: the metric error. Otherwise a similarity is found.
        regional: Also align and measure each region alone.

    Returns:
        The errors.

    Raises:
        ConfigError: The prediction has too few pixels and landmarks on the scan for a start, or `rigid` is set and its
            unit is unknown.
    """
    if rigid and not face.metric:
        raise ConfigError("the prediction has no known unit; give one (--unit) for the metric error, or leave it out.")
    runs = []
    for start, matches in _starts(scan, face, rigid=rigid):
        runs.append((trimmed_icp(face.surface, scan.points, start, rigid=rigid, settings=scan.icp), matches))
    if not runs:
        raise ConfigError(
            f"{scan.name}: the prediction has no start; give pixels of vertices inside the face, or the 7 landmarks."
        )
    best, matches = min(runs, key=lambda run: run[0].rms_mm)
    distances = _distances(face.surface, scan.points, best.similarity)
    return ScanErrors(
        overall=ErrorSummary.of(distances),
        regions=_regions(scan, face, distances, best, regional=regional),
        scale=float(best.similarity.scale),
        start_matches=matches,
        rms_mm=best.rms_mm,
        similarity=best.similarity,
        distances=distances,
    )


def _starts(scan: FaceScan, face: PredictedFace, *, rigid: bool) -> list[tuple[Similarity, float]]:
    """First similarities, from pixels and from landmarks, each with the share of its pairs that match."""
    starts = []
    if scan.camera is not None and face.pixels is not None:
        source, target = scan.camera.matches(face.surface, face.pixels, scan.surface)
        if len(source) >= _FEWEST_PAIRS:
            start = robust_similarity(source, target, rigid=rigid)
            starts.append((start, float((pair_distances(start, source, target) < 6).double().mean())))
    if scan.landmarks7 is not None and face.landmarks7 is not None:
        both = known(scan.landmarks7) & known(face.landmarks7)
        if int(both.sum()) >= _FEWEST_LANDMARKS:
            source, target = face.landmarks7[both], scan.landmarks7[both]
            start = align_points(source[None], target[None], rigid=rigid)
            starts.append((start, float((pair_distances(start, source, target) < 10).double().mean())))
    return starts


def _distances(surface: Surface, points: Tensor, similarity: Similarity) -> Float[np.ndarray, "P"]:
    local = nearby(surface, points, similarity)
    return (local.closest(to_prediction(similarity, points)).distances * similarity.scale).numpy()


def _regions(
    scan: FaceScan, face: PredictedFace, distances: np.ndarray, aligned: ScanAlignment, *, regional: bool
) -> tuple[RegionErrors, ...]:
    found = []
    for region, name in enumerate(scan.region_names):
        inside = (scan.region_of_point == region).numpy() if scan.region_of_point is not None else np.zeros(0, bool)
        if inside.sum() < _FEWEST_POINTS:
            continue
        again = _realigned(scan, face, region, aligned.similarity) if regional else None
        found.append(RegionErrors(name, ErrorSummary.of(distances[inside]), again))
    return tuple(found)


def _realigned(scan: FaceScan, face: PredictedFace, region: int, start: Similarity) -> ErrorSummary:
    points = scan.region_points(region)
    if scan.keypoints is None or face.keypoints is None:
        aligned = trimmed_icp(face.surface, points, start, rigid=True, settings=_REGIONAL_ICP).similarity
        return ErrorSummary.of(_distances(face.surface, points[:_REGIONAL_POINTS], aligned))
    numbers = torch.tensor(scan.keypoints.regions[region])
    numbers = numbers[known(face.keypoints[numbers]) & known(scan.keypoints.points[numbers])]
    aligned = align_with_keypoints(
        face.surface,
        points,
        start,
        keypoints=face.keypoints[numbers],
        gt_keypoints=scan.keypoints.points[numbers],
        weight=scan.keypoints.weights[region],
        tolerance_mm2=scan.keypoints.tolerance_mm2,
    )
    return ErrorSummary.of(_distances(face.surface, points, aligned))
