"""Unwrapping of photos to UV space."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.rendering import FaceSurface, facing_camera, sample_image
from mien.texture.atlas import TexelAtlas
from mien.texture.fill import box_mean, largest
from mien.typing import Float, Tensor

FACING = (0.37, 0.64)
"""Cosines of the angle between normal and direction to the camera (68° and 50°): up to the first a texel has no weight,
from the second on full weight. A surface that is seen at a grazing angle covers too few pixels for its texels."""

_MARGIN = 75
"""The margin to hidden texels is the side of the map over this number, 3 mm on a face."""


@dataclass(frozen=True)
class Unwrapped:
    """A photo in UV space."""

    colours: Float[Tensor, "B 3 S S"]
    """Colour of the photo at each texel, whether visible or not."""
    weights: Float[Tensor, "B 1 S S"]
    """Visibility of each texel, 0 to 1: it faces the camera and nothing else of the face occludes it."""
    skin: Float[Tensor, "B 1 S S"]
    """Probability that the photo shows skin at the texel, and not hair or glasses in front of it, 0 to 1."""


def unwrap_photo(
    atlas: TexelAtlas,
    surface: FaceSurface,
    *,
    photo: Float[Tensor, "B 5 H W"],
    vertices_px: Float[Tensor, "B V 2"],
    visibility: Float[Tensor, "B V"],
    near_thin: Float[Tensor, "1 1 S S"] | None = None,
) -> Unwrapped:
    """Sample a photo at every texel; weights fade out where the surface turns away from the camera.

    Args:
        atlas: UV atlas of the size of the result.
        surface: The surfaces that the photo shows.
        photo: Colours (3 channels), mask of the skin, and mask of the whole face with eyes, mouth, beard and glasses.
        vertices_px: Projection of each vertex into the photo, pixels.
        visibility: 1 for vertices that the camera sees, 0 for the others.
        near_thin: Parts that are too thin for the usual margin to hidden texels, eyes and lips, with what is nearer
            than two margins, 0 to 1. They get a quarter of it.

    Returns:
        Colours, weights and skin per texel.
    """
    size = len(atlas.triangle_ids)
    low, high = FACING
    facing = ((facing_camera(surface) - low) / (high - low)).clamp(0, 1)
    points, weights = atlas.interpolate(torch.cat([vertices_px, (visibility * facing)[..., None]], dim=-1)).split(
        [2, 1], dim=1
    )
    sampled = sample_image(photo, points.flatten(2).mT).mT.unflatten(-1, (size, size))
    # Interpolation blends hidden vertices into their visible neighbours: shrink the region, then soften its border.
    weights, radius = weights * sampled[:, 4:], margin_of(size)
    shrunk = _shrunk_and_softened(weights, radius=radius)
    if near_thin is not None:
        narrow = _shrunk_and_softened(weights, radius=max(radius // 4, 1))
        shrunk = torch.maximum(shrunk, near_thin * narrow)
    return Unwrapped(sampled[:, :3], shrunk * atlas.valid, sampled[:, 3:4])


def margin_of(size: int) -> int:
    """The margin to hidden texels of a map with this side, in texels."""
    return max(size // _MARGIN, 1)


def _shrunk_and_softened(weights: Float[Tensor, "B 1 S S"], *, radius: int) -> Float[Tensor, "B 1 S S"]:
    """Minimum, then mean, over a square of 2 · radius + 1 texels."""
    return box_mean(-largest(-weights, radius=radius), radius=radius)
