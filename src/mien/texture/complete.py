"""A whole texture from the visible part of a face."""

from __future__ import annotations

from mien.texture.fill import extended
from mien.texture.unwrap import Unwrapped
from mien.typing import Float, Tensor


def complete_texture(
    albedo: Float[Tensor, "B 3 S S"], shade: Float[Tensor, "B 3 S S"], unwrapped: Unwrapped
) -> Float[Tensor, "B 3 S S"]:
    """The photo's colours where the camera sees the face, else their mirror image relit, else the albedo, lit.

    The mirrored colours are divided by the light on their own side and multiplied by that on the other. What is known
    from neither side takes on the difference that the known has at its border, so that no seam shows.
    """
    seen = unwrapped.weights
    mirrored = (unwrapped.colours / shade.clamp(min=0.15)).flip(-1) * shade
    from_mirror = (1 - seen) * seen.flip(-1)
    known = seen + from_mirror
    colours = (seen * unwrapped.colours + from_mirror * mirrored) / known.clamp(min=1e-6)
    lit = albedo * shade
    return lit + extended(colours - lit, known)
