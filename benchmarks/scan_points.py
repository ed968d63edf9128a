"""Errors of detected points against scans: in the image and in depth, and which share of them all photos have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mien.evaluation.scans import FaceScan
from mien.morphable.landmark_tables import MEDIAPIPE_OVAL
from mien.typing import Float, Int, Tensor


@dataclass(frozen=True)
class PointErrors:
    """Errors of the 468 points of one photo."""

    shares: Float[np.ndarray, "468 3"]
    """x, y and depth without its plane, as shares of the face's size in the photo."""
    turn_deg: Float[np.ndarray, "2"]
    """The plane as a turn of the face about the vertical and about the horizontal axis, degrees."""
    regions: Int[np.ndarray, "468"]
    """Region of the scan that is closest to each point; -1 for the face oval."""


@dataclass(frozen=True)
class RegionPointErrors:
    """Root mean squares over the points of a region, in percent of the face's size."""

    region: str
    """Name of the region."""
    points: int
    """Number of points."""
    systematic: tuple[float, float, float]
    """Mean over the photos of each point's error in x, y and depth."""
    random: tuple[float, float, float]
    """Standard deviation over the photos."""


def point_errors(
    detected_px: Float[Tensor, "468 3"],
    *,
    gt_px: Float[Tensor, "468 2"],
    gt_depth_px: Float[Tensor, "468"],
    regions: Int[Tensor, "468"],
) -> PointErrors:
    """Compare detected points with true ones.

    Args:
        detected_px: Detected points with their depth, photo pixels.
        gt_px: True positions, photo pixels.
        gt_depth_px: True depths, pixels.
        regions: Region of each point.
    """
    size = (detected_px[:, :2].amax(0) - detected_px[:, :2].amin(0)).norm()
    inner = torch.ones(len(detected_px), dtype=torch.bool)
    inner[list(MEDIAPIPE_OVAL)] = False
    columns = torch.cat([detected_px[:, :2] - detected_px[:, :2].mean(0), torch.ones_like(detected_px[:, :1])], dim=1)
    depth = detected_px[:, 2] - gt_depth_px
    plane = torch.linalg.lstsq(columns[inner], depth[inner, None]).solution[:, 0]
    errors = torch.cat([detected_px[:, :2] - gt_px, (depth - columns @ plane)[:, None]], dim=1)
    regions = torch.where(inner, regions, -1)
    return PointErrors((errors / size).numpy(), torch.rad2deg(plane[:2].atan()).numpy(), regions.numpy())


def closest_regions(scan: FaceScan, points_mm: Float[Tensor, "P 3"]) -> Int[Tensor, "P"]:
    """Region of the measured point of the scan that is closest to each point."""
    if scan.region_of_point is None:
        return torch.zeros(len(points_mm), dtype=torch.long)
    return scan.region_of_point[torch.cdist(points_mm, scan.points).argmin(1)]


def summarize_points(photos: Sequence[PointErrors], region_names: Sequence[str]) -> list[RegionPointErrors]:
    """Split the errors into the mean over the photos and the rest, for all points but the oval, and per region."""
    shares = 100 * np.stack([photo.shares for photo in photos])
    votes = np.stack([photo.regions for photo in photos])
    counts = np.stack([(votes == k).sum(0) for k in range(-1, len(region_names))])
    region = counts.argmax(0) - 1
    rows = [("all but the oval", region >= 0)]
    rows += [(name, region == k) for k, name in enumerate(region_names)] + [("oval", region < 0)]
    return [_row(name, shares[:, chosen]) for name, chosen in rows if chosen.any()]


def _row(name: str, shares: Float[np.ndarray, "N P 3"]) -> RegionPointErrors:
    systematic = np.sqrt((shares.mean(0) ** 2).mean(0))
    random = np.sqrt(shares.var(0).mean(0))
    return RegionPointErrors(name, shares.shape[1], tuple(systematic.tolist()), tuple(random.tolist()))
