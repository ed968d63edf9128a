"""The relief of a face as a tangent-space normal map, and the tangents it refers to, for viewers of the GLB."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from mien.export.face_normals import FaceNormals, unit
from mien.export.surface import eye_triangles
from mien.export.uv_layout import UvLayout, texels_of
from mien.morphable import MorphableModel
from mien.result import Reconstruction
from mien.typing import Float, Tensor

_FLAT = (0.0, 0.0, 1.0)
_LEAST_SLOPE_Z = 0.2
"""Smallest z of a normal, about 78° from the mesh; only folded triangles come near."""
_SHORTEST = 1e-6
"""Sums of unit vectors below this have no direction."""


def tangent_normal_map(
    reconstruction: Reconstruction, model: MorphableModel, *, normals: FaceNormals | None = None
) -> Float[np.ndarray, "S S 3"]:
    """Normals of the displaced surface relative to the mesh, which carries the relief at its vertices only.

    The axes are those of `vertex_tangents`: x along u, y along v (upwards in the picture), z along the interpolated
    normal. The map holds for every expression, because these axes move with the mesh.

    Args:
        reconstruction: The face.
        model: The face's model.
        normals: The face's normals, if other files need them too.

    Returns:
        Unit normals; (0, 0, 1) on the eyes and outside the UV layout. Row 0 is v = 1. The side is a power of two, at
        least that of the displacement map.
    """
    normals = normals or FaceNormals(reconstruction, model)
    displacement = torch.from_numpy(_enlarged(reconstruction.displacement))
    texels = texels_of(model, len(displacement))
    tangents = vertex_tangents(reconstruction.vertices_model, normals.of_mesh, model)
    at_vertices = torch.from_numpy(np.concatenate([tangents, normals.of_mesh], axis=1))
    x, sign, z = texels.interpolate(at_vertices).split([3, 1, 3])
    relief = _in_axes(unit(x), unit(z), sign.sign(), normals.at(texels, displacement))
    eyes = torch.from_numpy(eye_triangles(model))[texels.triangles]
    relief[:, eyes] = torch.tensor(_FLAT)[:, None]
    flat = torch.tensor(_FLAT).repeat(texels.size**2, 1)
    flat[texels.index] = relief.T
    return flat.view(texels.size, texels.size, 3).numpy()


def _in_axes(
    x: Float[Tensor, "3 P"], z: Float[Tensor, "3 P"], sign: Float[Tensor, "1 P"], vectors: Float[Tensor, "3 P"]
) -> Float[Tensor, "3 P"]:
    """Directions in axes x, y = sign · z × x and z, by Cramer's rule, as x and z need not be perpendicular."""
    y = torch.linalg.cross(z, x, dim=0) * sign
    normal = torch.linalg.cross(x, y, dim=0)
    parts = [(torch.linalg.cross(a, b, dim=0) * vectors).sum(0) for a, b in ((y, z), (z, x))]
    determinant = (normal * z).sum(0)
    relief = torch.stack([*parts, (normal * vectors).sum(0)]) / determinant
    relief[2].clamp_(min=_LEAST_SLOPE_Z)
    # Interpolated axes of opposite directions can have no frame.
    return torch.where(determinant.abs() > _SHORTEST, unit(relief), torch.tensor(_FLAT)[:, None])


def vertex_tangents(
    vertices: Float[np.ndarray, "V 3"], normals: Float[np.ndarray, "V 3"], model: MorphableModel
) -> Float[np.ndarray, "V 4"]:
    """`layout_tangents` of a model's own layout."""
    return layout_tangents(vertices, normals, UvLayout.of(model))


def layout_tangents(
    vertices: Float[np.ndarray, "V 3"], normals: Float[np.ndarray, "V 3"], layout: UvLayout
) -> Float[np.ndarray, "V 4"]:
    """Tangents as MikkTSpace has them, which viewers use with a normal map.

    A tangent is the mean of ∂p/∂u of the triangles at a vertex, in the plane of its normal, weighted by their angles.
    The fourth number is the sign of the bitangent. Where triangles of both signs meet, MikkTSpace splits the vertex;
    here most of them decide. The packaged model has positive triangles only.

    Args:
        vertices: Positions.
        normals: Unit normals of the vertices.
        layout: Triangles and their UV coordinates.

    Returns:
        Unit vectors and signs.
    """
    points, upwards = (torch.from_numpy(np.ascontiguousarray(vectors.T)) for vectors in (vertices, normals))
    along_u, _ = layout.along_uv(points)
    corners = [points[:, corner] for corner in layout.triangles]
    sums = torch.zeros(4, points.shape[1])
    for k, here in enumerate(layout.triangles):
        upwards_here = upwards[:, here]
        edges = (corners[(k + step) % 3] - corners[k] for step in (1, 2))
        first, second, tangent = (unit(_without(upwards_here, vector)) for vector in (*edges, along_u))
        angles = (first * second).sum(0).clamp(-1, 1).acos()
        values = torch.cat([tangent, layout.signs[None]]) * angles
        sums.scatter_add_(1, here.expand(4, -1), values)
    tangents = sums[:3]
    lost = (tangents.square().sum(0).sqrt() <= _SHORTEST).nonzero()[:, 0]
    if len(lost):  # no triangles, or they cancel out: any direction in the plane of the normal
        some = upwards[:, lost]
        tangents[:, lost] = unit(_without(some, torch.eye(3)[some.abs().argmin(dim=0)].T))
    return torch.cat([unit(tangents), torch.where(sums[3:] < 0, -1.0, 1.0)]).T.contiguous().numpy()


def _without(normal: Float[Tensor, "3 N"], vector: Float[Tensor, "3 N"]) -> Float[Tensor, "3 N"]:
    """The part of a vector in the plane of a unit normal."""
    return vector - (vector * normal).sum(0) * normal


def _enlarged(displacement: Float[np.ndarray, "D D"]) -> Float[np.ndarray, "S S"]:
    """The same map with a side that is a power of two, as older engines want it."""
    side = 1 << (len(displacement) - 1).bit_length()
    image = Image.fromarray(displacement.astype(np.float32))
    return np.array(image.resize((side, side), Image.Resampling.BICUBIC))
