"""What hides a face in a photo: the map of the occluder head, cleaned, in pixels of a crop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from mien.perception.crops import Crop
from mien.typing import Float

SURE = 0.85
"""A region counts only if its probability reaches this somewhere."""
PROBABILITY = (0.4, 0.6)
"""A pixel of such a region is not covered up to the first probability, and covered from the second."""
SMALLEST_SHARE = 0.004
"""Smallest area of a region over that of the window, which the face fills to a third."""

NEARBY = 2
"""Distance at which two estimates of the map still agree, pixels of the map. Of drawn hands, 84 % are found with 0,
90 % with 2, and 91 % without a second estimate."""


@dataclass(frozen=True)
class OccluderMap:
    """Where something hides a face, in the window of the mesh network."""

    probability: Float[np.ndarray, "M M"]
    """Of an occluder, 0 to 1, at half of the window's resolution; what is beside the face may be missing."""
    photo_from_window: Float[np.ndarray, "2 3"]
    """From pixels of the map to pixels of the photo."""

    def touches(self, points_px: Float[np.ndarray, "N D"]) -> bool:
        """Whether a region may reach one of some points.

        Args:
            points_px: x and y in pixels of the photo; what follows is ignored.
        """
        linear = np.linalg.inv(self.photo_from_window[:, :2])
        places = (points_px[:, :2] - self.photo_from_window[:, 2]) @ linear.T
        column, row = places.astype(int).clip(0, len(self.probability) - 1).T
        return bool((self.probability[row, column] > PROBABILITY[0]).any())

    def where_also(self, probability: Float[np.ndarray, "M M"]) -> OccluderMap:
        """The map of what a second estimate shows too, there or nearby.

        Args:
            probability: The second estimate of the same window.
        """
        second = torch.from_numpy(np.ascontiguousarray(probability))[None]
        nearby = F.max_pool2d(second, 2 * NEARBY + 1, stride=1, padding=NEARBY)[0].numpy()
        return OccluderMap(np.minimum(self.probability, nearby), self.photo_from_window)

    def in_crop(self, crop: Crop) -> Float[np.ndarray, "S S"]:
        """Where the face in a crop is covered, 0 to 1: regions that are large enough and sure; exact zeros elsewhere.

        Args:
            crop: A crop of the photo.
        """
        regions = _regions(self.probability)
        if regions is None:
            return np.zeros((crop.size, crop.size), np.float32)
        low, high = PROBABILITY
        cleaned = np.clip((self.probability - low) / (high - low), 0, 1) * regions
        return _resampled(cleaned.astype(np.float32), self.photo_from_window, crop)


def _regions(probability: np.ndarray) -> np.ndarray | None:
    """The pixels of connected regions that count; None if there are none."""
    inside = probability > PROBABILITY[0]
    if not (probability > SURE).any():
        return None
    kept = np.zeros_like(inside)
    for region in _connected(inside):
        if region.sum() >= SMALLEST_SHARE * region.size and probability[region].max() > SURE:
            kept |= region
    return kept if kept.any() else None


def _connected(inside: np.ndarray) -> list[np.ndarray]:
    """The connected regions of a mask: runs of pixels in rows, joined where runs of successive rows touch."""
    parents: list[int] = []

    def root(number: int) -> int:
        while parents[number] != number:
            number = parents[number]
        return number

    runs: list[tuple[int, int, int]] = []
    above: list[int] = []
    for row, pixels in enumerate(inside):
        edges = np.flatnonzero(np.diff(pixels, prepend=False, append=False)).reshape(-1, 2).tolist()
        here = []
        for first, last in edges:
            number = len(runs)
            runs.append((row, first, last))
            parents.append(number)
            here.append(number)
            for other in above:
                if runs[other][1] <= last and first <= runs[other][2]:  # also across a corner
                    parents[root(other)] = root(number)
        above = here
    regions: dict[int, np.ndarray] = {}
    for number, (row, first, last) in enumerate(runs):
        regions.setdefault(root(number), np.zeros_like(inside))[row, first:last] = True
    return list(regions.values())


def _resampled(values: np.ndarray, photo_from_window: np.ndarray, crop: Crop) -> np.ndarray:
    """The map in pixels of a crop; zeros outside the window."""
    linear = np.linalg.inv(photo_from_window[:, :2])
    shift = linear @ (crop.photo_from_crop[:, 2].numpy() - photo_from_window[:, 2])
    matrix = np.concatenate([linear @ crop.photo_from_crop[:, :2].numpy(), shift[:, None]], 1)
    # `affine_grid` counts from -1 to 1 in both squares.
    size, side = crop.size, len(values)
    scaled = matrix[:, :2] * (size / side)
    theta = np.concatenate([scaled, scaled.sum(1, keepdims=True) + matrix[:, 2:] * (2 / side) - 1], 1)
    grid = F.affine_grid(torch.from_numpy(theta)[None].float(), [1, 1, size, size], align_corners=False)
    return F.grid_sample(torch.from_numpy(values)[None, None], grid, align_corners=False)[0, 0].numpy()
