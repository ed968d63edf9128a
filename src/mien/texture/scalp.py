"""Hair on the head as a texture: where it grows, and how short hair colours the skin."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from mien.io.result_files import Scalp
from mien.texture.relight import filled_shade
from mien.typing import Bool, Float, Tensor

_MIDDLE_MM = -45.0
"""The vertical axis of the head, z in model space: angles are measured around it."""
_HAIRLINE_MM = (
    (0, 84), (20, 87), (34, 93), (46, 84), (57, 62), (64, 44), (69, 30), (73, 6), (78, 2), (83, 14), (90, 22),
    (106, 22), (116, 8), (122, -22), (140, -50), (180, -60),
)  # fmt: skip
"""Height of the hairline in model space, over the angle from the front in degrees, in millimetres of the mean head.

The middle of the forehead, its corners, the temples, the sideburns before the ears, around the ears, and the nape."""
_RADIUS_MM = 75.0
"""Radius of the head, which turns angles into lengths along the hairline."""
_SMOOTHING_DEG = 2.5
_FEWEST_VERTICES = 20
_QUANTILES = (0.05, 0.4)
"""Of the brightness above the hairline: outside are gaps between strands, and highlights."""
_TRANSITION_MM = 13.0
"""Width of the hairline: over it, single hairs become a field."""
_WAVES_MM = 1.6
"""Irregularity of the hairline."""
_COVERED = 0.86
"""Share of the skin that hair of a few millimetres covers."""
_STUBBLE = 0.16
"""The same for a shaved scalp, whose roots show through."""
_STRANDS = 0.2
"""Variation of brightness from hair to hair."""


def within_hairline_mm(places: Float[Tensor, "V 3"]) -> Float[Tensor, "V"]:
    """Distance from the hairline to points of the mean head, millimetres along the skin; positive where hair grows.

    Args:
        places: Points of the mean head, metres.
    """
    x, y, z = (1000 * places).unbind(-1)
    degrees = torch.rad2deg(torch.atan2(x.abs(), z - _MIDDLE_MM))
    heights, slopes = (torch.from_numpy(values).to(places) for values in _hairline())
    below = degrees.clamp(0, 179.999).long()
    share = degrees - below
    height, slope = (torch.lerp(table[below], table[below + 1], share) for table in (heights, slopes))
    return (y - height) / (1 + slope.square()).sqrt()


def hair_cover(
    distance_mm: Float[Tensor, "*p"], *, waves: Float[Tensor, "*p"], hairs: Float[Tensor, "*p"], scalp: Scalp
) -> Float[Tensor, "*p"]:
    """Share of the skin that hair covers, 0 to 1.

    Args:
        distance_mm: `within_hairline_mm`.
        waves: Noise over some millimetres, standard deviation 1.
        hairs: Noise over the distance of hairs, standard deviation 1.
        scalp: The kind of scalp.
    """
    density = torch.sigmoid((distance_mm + _WAVES_MM * waves) * (4 / _TRANSITION_MM) - 1)
    # Where hair is thin, single hairs stand on bare skin.
    single = (density + 0.35 * hairs * (density * (1 - density)).sqrt()).clamp(0, 1)
    return single * (_COVERED if scalp == "hair" else _STUBBLE)


def hair_brightness(hairs: Float[Tensor, "*p"]) -> Float[Tensor, "*p"]:
    """Brightness of single hairs relative to the colour of all."""
    return 1 + _STRANDS * hairs.clamp(-1.5, 1.5) / 1.5


def _hairline() -> tuple[np.ndarray, np.ndarray]:
    """Height of the hairline at whole degrees from 0 to 180, and its slope, both per millimetre along it."""
    degrees = np.arange(-180, 361)
    angles, heights = np.array(_HAIRLINE_MM, float).T
    mirrored = np.where(degrees < 0, -degrees, np.where(degrees > 180, 360 - degrees, degrees))
    table = np.interp(mirrored, angles, heights)
    kernel = np.exp(-0.5 * (np.arange(-10, 11) / _SMOOTHING_DEG) ** 2)
    smooth = np.convolve(table, kernel / kernel.sum(), mode="same")[180:361]
    return smooth, np.gradient(smooth) / (np.pi / 180 * _RADIUS_MM)


def hair_colour(
    colours: Float[Tensor, "V 3"], shade: Float[Tensor, "V 3"], places: Float[Tensor, "V 3"], seen: Bool[Tensor, "V"]
) -> Float[Tensor, "3"] | None:
    """The colour in white light of what the photo shows above the hairline.

    Args:
        colours: The photo's at each vertex of the face.
        shade: Light on each vertex.
        places: Points of the mean head, metres.
        seen: Whether the photo shows the vertex, or the hair on it.

    Returns:
        The mean without highlights and without the darkest shadows; None if the photo ends below.
    """
    chosen = seen & (within_hairline_mm(places) > _TRANSITION_MM)
    if int(chosen.sum()) < _FEWEST_VERTICES:
        return None
    values = colours[chosen] / filled_shade(shade.T[None, :, None], chosen[None, None, None].float())[0, :, 0].T[chosen]
    level = values.mean(-1)
    low, high = level.quantile(torch.tensor(_QUANTILES).to(level))
    return values[(level >= low) & (level <= high)].mean(0).clamp(0, 1)


class SurfaceNoise:
    """Smooth noise in space, so that it has no seam where a UV map has one.

    Args:
        seed: Of the noise.
    """

    _CELLS = 32

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        cube = torch.randn(1, 1, *([self._CELLS] * 3), generator=generator)
        # One more layer on each side, so that the noise repeats without a step.
        self._cube = F.pad(cube, (0, 1, 0, 1, 0, 1), mode="circular")

    def __call__(self, places: Float[Tensor, "3 H W"], *, cell_m: float) -> Float[Tensor, "H W"]:
        """Noise of mean 0 and standard deviation about 1.

        Args:
            places: Points in space, metres.
            cell_m: Distance over which the noise changes.
        """
        cells = (places / cell_m) % self._CELLS
        grid = (2 * cells / self._CELLS - 1).movedim(0, -1)[None, None]
        noise = F.grid_sample(self._cube, grid, mode="bilinear", padding_mode="border", align_corners=True)
        return noise[0, 0, 0] / 0.54  # the mean square of trilinear weights is (2/3)^3 = 0.296
