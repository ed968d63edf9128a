"""Completion of a texture from the visible part of a face."""

from __future__ import annotations

from mien.texture.fill import pull_push
from mien.texture.unwrap import Unwrapped
from mien.typing import Float, Tensor

DARKEST = 0.15
"""Smallest shading that the colours of a photo are divided by."""


def complete_texture(
    albedo: Float[Tensor, "B 3 S S"], shade: Float[Tensor, "B 3 S S"], unwrapped: Unwrapped
) -> Float[Tensor, "B 3 S S"]:
    """Fill a texture: the photo where the camera sees the face, then its relit mirror image, then the lit albedo.

    Mirrored colours are divided by the shading of their own side and multiplied by that of the other. Texels that are
    known from neither side are the lit albedo plus the continued difference between known colours and lit albedo, so
    that no seam shows.

    Args:
        albedo: Albedo of the model.
        shade: Shading of the model.
        unwrapped: The photo in UV space.

    Returns:
        Colours of all texels, with the light of the photo; not clamped.
    """
    seen = unwrapped.weights
    mirrored = (unwrapped.colours / shade.clamp(min=DARKEST)).flip(-1) * shade
    from_mirror = (1 - seen) * seen.flip(-1)
    known = seen + from_mirror
    colours = (seen * unwrapped.colours + from_mirror * mirrored) / known.clamp(min=1e-6)
    lit = albedo * shade
    return lit + pull_push(colours - lit, known)
