"""The atlas of the head's skin: the face's own map on the left, the skin around it on the right."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mien.morphable import HeadModel
from mien.rasterizer import Fragments, interpolate, rasterize_hard
from mien.texture.fill import pull_push
from mien.typing import Float, Tensor

_SEAM_SHARE = 0.5
"""Share of the median colour along the seam in the colour that the outer skin fades to; the rest is the face's, whose
middle is redder than scalp and neck."""


@dataclass(frozen=True)
class HeadAtlas:
    """The skin of a head as a square map; row 0 is v = 1."""

    head: HeadModel
    size: int
    """Side in texels."""
    fragments: Fragments
    """Triangle of the skin and barycentric coordinates at each texel."""

    @classmethod
    def of(cls, head: HeadModel, size: int) -> HeadAtlas:
        """Rasterize the UV layout of a head's skin."""
        u, v = head.skin_uv.unbind(-1)
        flat = torch.stack([2 * u - 1, 1 - 2 * v, torch.ones_like(u)], dim=-1)[None]
        triangles = head.part("skin").triangles
        return cls(head, size, rasterize_hard(flat, triangles, image_size=(size, size), near=0.5, far=1.5))

    @property
    def face_columns(self) -> int:
        """Width of the face's map in texels."""
        return round(self.size * self.head.face_width)

    @functools.cached_property
    def valid(self) -> Float[Tensor, "1 A A"]:
        """1 inside the layout, 0 outside."""
        return (self.fragments.triangle_ids >= 0).float()

    def interpolate(self, values: Float[Tensor, "W C"]) -> Float[Tensor, "C A A"]:
        """Interpolate values of the head's vertices; continued beyond the layout.

        Args:
            values: One row per vertex of the head: the face's, then its own.
        """
        skin = self.head.part("skin")
        drawn = interpolate(values[skin.vertices].float(), skin.triangles, self.fragments)
        return pull_push(drawn, self.valid[None])[0]

    def with_face(self, outer: Float[Tensor, "C A A"], face: Float[Tensor, "C S S"]) -> Float[Tensor, "C A A"]:
        """Place a map of the face on the left of a map of the head."""
        width = self.face_columns
        shown = F.interpolate(face[None], size=(self.size, width), mode="bicubic", antialias=True, align_corners=False)[
            0
        ]
        return torch.cat([shown, outer[..., width:]], dim=-1)


def continued_over_head(
    face: Float[Tensor, "V C"], head: HeadModel, *, far: Float[Tensor, "C"]
) -> Float[Tensor, "W C"]:
    """Continue values of the face's vertices over the skin around it.

    Args:
        face: Values at the face's vertices.
        head: The head.
        far: The values that they fade to.

    Returns:
        Values at all vertices of the head; `far` at parts other than the skin.
    """
    seam = face[head.seam]
    values = far.expand(len(face) + len(head.mean), -1).clone()
    values[: len(face)] = face
    values[len(face) : len(face) + len(head.seam_shares)] += head.seam_shares @ (seam - far)
    return values


def far_colour(face: Float[Tensor, "V 3"], head: HeadModel, skin: Float[Tensor, "V"]) -> Float[Tensor, "3"]:
    """The colour of skin far from the face, as scalp and neck have it.

    Args:
        face: Colours without light at the face's vertices.
        head: The head.
        skin: How far each vertex counts as the face's skin.
    """
    mean = (face * skin[:, None]).sum(0) / skin.sum()
    return _SEAM_SHARE * face[head.seam].median(0).values + (1 - _SEAM_SHARE) * mean
