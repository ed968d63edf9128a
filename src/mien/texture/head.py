"""The atlas of the head's skin: the face's texture, and colours for the skin around it."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from mien.morphable import HeadModel, MorphableModel
from mien.rasterizer import interpolate, rasterize_hard
from mien.rendering import sample_map
from mien.texture.fill import pull_push
from mien.typing import Float, Tensor

_SEAM_SHARE = 0.65
"""Share of the median colour along the seam in the colour that the outer skin fades to; the rest is the face's mean.
The seam is in the shade of the hair on many photos, and the face's middle is redder than scalp and neck."""


def head_atlas(
    texture: Float[Tensor, "3 S S"], model: MorphableModel, head: HeadModel, *, size: int
) -> Float[Tensor, "3 A A"]:
    """Colours of the whole skin: the face's texture on the left, the outer skin on the right.

    The colours at the border of the face continue over the outer skin and fade to one colour.

    Args:
        texture: The face's texture, complete; row 0 is v = 1.
        model: The face model.
        head: Its head.
        size: Side of the atlas in texels.
    """
    width = round(size * head.face_width)
    face = F.interpolate(texture[None], size=(size, width), mode="bicubic", antialias=True, align_corners=False)[0]
    return torch.cat([face.clamp(0, 1), _outer_map(texture, model, head, size)[..., width:]], dim=-1)


def head_colours(texture: Float[Tensor, "3 S S"], model: MorphableModel, head: HeadModel) -> Float[Tensor, "W 3"]:
    """Colours of the skin's vertices: the face's from its texture, then those of the outer skin."""
    colours = sample_map(texture[None], model.uv)[0]
    far = far_colour(colours, head, model.masks.skin * (1 - model.masks.neck))
    return continued_over_head(colours, head, far=far)[: len(colours) + len(head.seam_shares)]


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
        face: Colours at the face's vertices.
        head: The head.
        skin: How far each vertex counts as the face's skin.
    """
    mean = (face * skin[:, None]).sum(0) / skin.sum()
    return _SEAM_SHARE * face[head.seam].median(0).values + (1 - _SEAM_SHARE) * mean


def _outer_map(
    texture: Float[Tensor, "3 S S"], model: MorphableModel, head: HeadModel, size: int
) -> Float[Tensor, "3 A A"]:
    """The outer skin in the atlas, continued beyond its border."""
    skin, (u, v) = head.part("skin"), head.skin_uv.unbind(-1)
    triangles = skin.triangles[(u[skin.triangles] > head.face_width).all(1)]
    flat = torch.stack([2 * u - 1, 1 - 2 * v, torch.ones_like(u)], dim=-1)[None]
    fragments = rasterize_hard(flat, triangles, image_size=(size, size), near=0.5, far=1.5)
    drawn = interpolate(head_colours(texture, model, head)[skin.vertices], triangles, fragments)
    return pull_push(drawn, (fragments.triangle_ids >= 0)[:, None].to(drawn))[0]
