"""The photo on the UV atlas."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn import functional as F

from mien.rendering import FaceSurface, sample_image
from mien.texture.atlas import TexelAtlas
from mien.typing import Float, Tensor


@dataclass(frozen=True)
class Unwrapped:
    """The photo in texture space."""

    colours: Float[Tensor, "B 3 S S"]
    weights: Float[Tensor, "B 1 S S"]
    """How well the camera sees the face at each texel, 0 to 1."""
    skin: Float[Tensor, "B 1 S S"]
    """How sure it is that the texel's colour is skin and not hair or glasses before it, 0 to 1."""


def unwrap_photo(
    atlas: TexelAtlas,
    surface: FaceSurface,
    *,
    photo: Float[Tensor, "B 5 H W"],
    vertices_px: Float[Tensor, "B V 2"],
    visibility: Float[Tensor, "B V"],
) -> Unwrapped:
    """Sample the photo at every texel of the chart; texels fade out where the surface turns away from the camera.

    The photo's channels are its colours, the skin mask and the mask of the whole face.
    """
    size = len(atlas.triangle_ids)
    points = atlas.interpolate(vertices_px).flatten(2).mT
    sampled = sample_image(photo, points).mT.unflatten(-1, (size, size))
    towards = F.normalize(-surface.vertices_camera, dim=-1) * surface.normals.new_tensor([1.0, -1.0, -1.0])
    cosine = (towards * surface.normals).sum(-1)
    # From 68° to 50° the texel's footprint in the photo grows until its colour is trustworthy.
    facing = ((cosine - 0.37) / (0.64 - 0.37)).clamp(0, 1)
    weights = atlas.interpolate((visibility * facing)[..., None])
    # Vertices just inside a hidden region still blend in: shrink, then soften.
    weights = _shrunk_and_softened(weights * sampled[:, 4:], radius=max(size // 75, 1))
    return Unwrapped(sampled[:, :3], weights * atlas.valid, sampled[:, 3:4])


def _shrunk_and_softened(weights: Float[Tensor, "B 1 S S"], *, radius: int) -> Float[Tensor, "B 1 S S"]:
    side = 2 * radius + 1
    for window, padding in (((side, 1), (radius, 0)), ((1, side), (0, radius))):
        weights = -F.max_pool2d(-weights, window, stride=1, padding=padding)
    for window, padding in (((side, 1), (radius, 0)), ((1, side), (0, radius))):
        weights = F.avg_pool2d(weights, window, stride=1, padding=padding, count_include_pad=False)
    return weights
