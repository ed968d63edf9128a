"""The relief of a face as a tangent-space normal map, and the tangents it refers to, for viewers of the GLB."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from mien.export.images import normal_map
from mien.export.surface import eye_triangles, unit_normals
from mien.morphable import MorphableModel
from mien.result import Reconstruction
from mien.texture import TexelAtlas
from mien.texture.atlas import triangle_tangents
from mien.typing import Float, Tensor

_FLAT = (0.0, 0.0, 1.0)
_LEAST_SLOPE_Z = 0.2
"""Smallest z of a normal, about 78° from the mesh; only folded triangles come near."""
_SHORTEST = 1e-6
"""Sums of unit vectors below this have no direction."""


def tangent_normal_map(reconstruction: Reconstruction, model: MorphableModel) -> Float[np.ndarray, "S S 3"]:
    """Normals of the displaced surface relative to the mesh, which carries the relief at its vertices only.

    The axes are those of `vertex_tangents`: x along u, y along v (upwards in the picture), z along the interpolated
    normal. The map holds for every expression, because these axes move with the mesh.

    Args:
        reconstruction: The face.
        model: The face's model.

    Returns:
        Unit normals; (0, 0, 1) on the eyes and outside the UV layout. Row 0 is v = 1. The side is a power of two, at
        least that of the displacement map.
    """
    displacement = _enlarged(reconstruction.displacement)
    atlas = TexelAtlas.of(model, len(displacement))
    normals = unit_normals(reconstruction.vertices_model, reconstruction.triangles)
    tangents = vertex_tangents(reconstruction.vertices_model, normals, model)
    at_texels = atlas.interpolate(torch.from_numpy(np.concatenate([tangents, normals], axis=1))[None])[0]
    x, sign, z = at_texels.permute(1, 2, 0).split([3, 1, 3], dim=-1)
    x, z = F.normalize(x, dim=-1), F.normalize(z, dim=-1)
    axes = torch.stack([x, torch.linalg.cross(z, x) * sign.sign(), z], dim=-1)
    skin = atlas.valid & ~torch.from_numpy(eye_triangles(model))[atlas.triangle_ids.clamp(min=0)]
    axes[~skin] = torch.eye(3)
    relief = torch.linalg.solve(axes, torch.from_numpy(normal_map(reconstruction, model, displacement)))
    relief[..., 2].clamp_(min=_LEAST_SLOPE_Z)
    return F.normalize(torch.where(skin[..., None], relief, torch.tensor(_FLAT)), dim=-1).numpy()


def vertex_tangents(
    vertices: Float[np.ndarray, "V 3"], normals: Float[np.ndarray, "V 3"], model: MorphableModel
) -> Float[np.ndarray, "V 4"]:
    """Tangents as MikkTSpace has them, which viewers use with a normal map.

    A tangent is the mean of ∂p/∂u of the triangles at a vertex, in the plane of its normal, weighted by their angles.
    The fourth number is the sign of the bitangent. Where triangles of both signs meet, MikkTSpace splits the vertex;
    here most of them decide. The packaged model has positive triangles only.

    Args:
        vertices: Positions.
        normals: Unit normals of the vertices.
        model: Gives triangles and UV coordinates.

    Returns:
        Unit vectors and signs.
    """
    points, upwards, triangles = torch.from_numpy(vertices), torch.from_numpy(normals), model.triangles
    along_u = triangle_tangents(model, points[None])[0, ..., 0]
    signs = torch.linalg.det(model.uv[triangles[:, 1:]] - model.uv[triangles[:, :1]]).sign()
    sums = torch.zeros(len(points), 4)
    for corner in range(3):
        here, following, last = (triangles[:, (corner + step) % 3] for step in range(3))
        first, second, tangent = (
            F.normalize(_without(upwards[here], vector), dim=-1)
            for vector in (points[following] - points[here], points[last] - points[here], along_u)
        )
        angles = (first * second).sum(-1, keepdim=True).clamp(-1, 1).acos()
        sums.index_add_(0, here, torch.cat([tangent, signs[:, None]], dim=-1) * angles)
    # A vertex without triangles, or whose triangles cancel out, gets any direction in the plane of its normal.
    across = F.normalize(_without(upwards, torch.eye(3)[upwards.abs().argmin(dim=-1)]), dim=-1)
    tangents = torch.where(sums[:, :3].norm(dim=-1, keepdim=True) > _SHORTEST, sums[:, :3], across)
    return torch.cat([F.normalize(tangents, dim=-1), torch.where(sums[:, 3:] < 0, -1.0, 1.0)], dim=-1).numpy()


def _without(normal: Float[Tensor, "N 3"], vector: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """The part of a vector in the plane of a unit normal."""
    return vector - (vector * normal).sum(-1, keepdim=True) * normal


def _enlarged(displacement: Float[np.ndarray, "D D"]) -> Float[np.ndarray, "S S"]:
    """The same map with a side that is a power of two, as older engines want it."""
    side = 1 << (len(displacement) - 1).bit_length()
    image = Image.fromarray(displacement.astype(np.float32))
    return np.array(image.resize((side, side), Image.Resampling.BICUBIC))
