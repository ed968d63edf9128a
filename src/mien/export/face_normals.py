"""Normals of a face, on its mesh and in its UV maps."""

from __future__ import annotations

import functools

import numpy as np
import torch

from mien.export.surface import unit_normals
from mien.export.uv_layout import Texels, UvLayout, texels_of
from mien.morphable import MorphableModel
from mien.result import Reconstruction
from mien.typing import Float, Tensor

_LEAST_DETERMINANT = 1e-12
"""As in `mien.texture.surface`: the squared area per unit of u and v of a closed triangle, m⁴."""


class FaceNormals:
    """Unit normals of one face in model space, each kind computed at the first request.

    Args:
        reconstruction: The face.
        model: The face's model, on the CPU.
    """

    def __init__(self, reconstruction: Reconstruction, model: MorphableModel) -> None:
        self._face, self._model = reconstruction, model

    @functools.cached_property
    def of_mesh(self) -> Float[np.ndarray, "V 3"]:
        """Normals of `vertices_model`."""
        return unit_normals(self._face.vertices_model, self._face.triangles)

    @functools.cached_property
    def of_map(self) -> Float[np.ndarray, "D D 3"]:
        """Normals with the relief of the displacement map, as a map of its size, continued beyond the layout."""
        texels = texels_of(self._model, len(self._face.displacement))
        normals = texels.as_map(self.at(texels, torch.from_numpy(self._face.displacement)))
        return unit(normals).permute(1, 2, 0).contiguous().numpy()

    def at(self, texels: Texels, displacement: Float[Tensor, "S S"]) -> Float[Tensor, "3 P"]:
        """Normals of the model's surface with a displacement, as `mien.texture.DisplacedNormals` defines them.

        Args:
            texels: The texels of maps of the displacement's size.
            displacement: Metres along the normal.
        """
        normals, gradient = self._smooth
        u, v = (slope.flatten()[texels.index] * texels.inner for slope in _slopes(displacement))
        # `gather` takes a third of the time of an index.
        steepest = gradient.gather(1, texels.triangles.expand(len(gradient), -1))
        return unit(unit(texels.interpolate(normals)) - steepest[:3] * u - steepest[3:] * v)

    @functools.cached_property
    def _smooth(self) -> tuple[Float[Tensor, "V 3"], Float[Tensor, "6 T"]]:
        """The surface of the linear model: its normals, and on it the gradients of u and v, metres⁻¹."""
        face = self._face
        with torch.no_grad():
            identity, expression = (torch.from_numpy(values)[None] for values in (face.identity, face.expression))
            vertices = self._model.vertices(identity, expression)[0]
        j_u, j_v = UvLayout.of(self._model).along_uv(vertices.T.contiguous())
        uu, uv, vv = ((a * b).sum(0) for a, b in ((j_u, j_u), (j_u, j_v), (j_v, j_v)))
        determinant = (uu * vv - uv * uv).clamp(min=_LEAST_DETERMINANT)
        gradient = torch.cat([vv * j_u - uv * j_v, uu * j_v - uv * j_u]) / determinant
        return torch.from_numpy(unit_normals(vertices.numpy(), face.triangles)), gradient


def unit(vectors: Float[Tensor, "3 ..."]) -> Float[Tensor, "3 ..."]:
    """Unit vectors; zero for zero."""
    x, y, z = vectors
    return vectors / (x * x + y * y + z * z).sqrt().clamp(min=1e-12)


def _slopes(displacement: Float[Tensor, "S S"]) -> tuple[Float[Tensor, "S S"], Float[Tensor, "S S"]]:
    """Derivatives along u and v by central differences; v grows upwards."""
    padded = torch.nn.functional.pad(displacement[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    half = len(displacement) / 2
    return (padded[1:-1, 2:] - padded[1:-1, :-2]) * half, (padded[:-2, 1:-1] - padded[2:, 1:-1]) * half
