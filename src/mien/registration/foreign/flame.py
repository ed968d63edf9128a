"""Converts the geometry of DECA's 236 values (Feng et al., SIGGRAPH 2021) and 3DDFA's 62 (Guo et al., ECCV 2020)."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from mien.errors import ConfigError, FormatError
from mien.morphable import MorphableModel
from mien.typing import Float, Tensor

_DECA_PARTS = (100, 50, 50, 6, 3, 27)
DECA_CROP_PX = 224
_JAW = 2
"""FLAME's joints: root, neck, jaw, two eyes."""


@dataclass(frozen=True)
class DecaCoefficients:
    """A batch of DECA's coefficient vectors."""

    shape: Float[Tensor, "B I"]
    texture: Float[Tensor, "B A"]
    expression: Float[Tensor, "B E"]
    pose: Float[Tensor, "B 6"]
    """Rotation vectors of head and jaw, radians."""
    camera: Float[Tensor, "B 3"]
    """Scale s and translation of a scaled orthographic camera: s (x + tx, y + ty), in [-1, 1] over the crop."""
    light: Float[Tensor, "B 27"]

    @classmethod
    def of_vector(cls, vector: Float[Tensor, "B N"]) -> DecaCoefficients:
        """Split vectors of 236 values; FormatError for other lengths."""
        if vector.shape[1] != sum(_DECA_PARTS):
            raise FormatError(f"vectors of {vector.shape[1]} values; expected DECA's {sum(_DECA_PARTS)}")
        return cls(*vector.split(_DECA_PARTS, dim=1))

    def vector(self) -> Float[Tensor, "B N"]:
        """The inverse of `of_vector`."""
        return torch.cat([getattr(self, f.name) for f in fields(self)], dim=1)

    def vertices(self, flame: MorphableModel) -> Float[Tensor, "B V 3"]:
        """Posed vertices in FLAME's space, metres; differentiable. ConfigError if the model has no joints."""
        if flame.skinning is None:
            raise ConfigError(f"{flame.name!r} has no joints; DECA's codes need a converted FLAME")
        identity = _padded(self.shape, flame.counts[0])
        shaped = flame.vertices(identity, _padded(self.expression, flame.counts[1]))
        rotations = self.pose.new_zeros(len(self.pose), len(flame.skinning.parents), 3)
        rotations[:, 0], rotations[:, _JAW] = self.pose[:, :3], self.pose[:, 3:]
        return flame.skinning(shaped, rotations)

    def project(self, vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "B V 2"]:
        """Project points into the 224-pixel crop, pixels, y down."""
        shifted = vertices[..., :2] + self.camera[:, None, 1:]
        plane = self.camera[:, :1, None] * shifted * shifted.new_tensor([1.0, -1.0])
        return (plane + 1) * (DECA_CROP_PX / 2)


def _padded(values: Float[Tensor, "B K"], count: int) -> Float[Tensor, "B N"]:
    if values.shape[1] > count:
        raise ConfigError(f"{values.shape[1]} coefficients for a model of {count}; convert the whole FLAME")
    return torch.nn.functional.pad(values, (0, count - values.shape[1]))


@dataclass(frozen=True)
class TddfaCoefficients:
    """A batch of 3DDFA's parameters after undoing its normalisation."""

    projection: Float[Tensor, "B 3 4"]
    """sR | t from micrometres of its model to pixels of the 120-pixel crop, y up."""
    shape: Float[Tensor, "B 40"]
    """Coefficients in micrometres along unit components."""
    expression: Float[Tensor, "B 10"]

    CROP_PX = 120

    @classmethod
    def of_vector(
        cls, vector: Float[Tensor, "B N"], *, mean: Float[Tensor, "M"], deviation: Float[Tensor, "M"]
    ) -> TddfaCoefficients:
        """Undo the network's normalisation by `param_mean` and `param_std`; FormatError for other lengths than 62."""
        if vector.shape[1] != 62 or mean.shape != (62,) or deviation.shape != (62,):
            raise FormatError(
                f"vectors of {vector.shape[1]} values; expected 3DDFA's 62 and a mean and deviation of each"
            )
        values = vector * deviation + mean
        return cls(values[:, :12].view(-1, 3, 4), values[:, 12:52], values[:, 52:])

    def vector(self, *, mean: Float[Tensor, "M"], deviation: Float[Tensor, "M"]) -> Float[Tensor, "B N"]:
        """The inverse of `of_vector`: the network output for these parameters."""
        values = torch.cat([self.projection.flatten(1), self.shape, self.expression], dim=1)
        return (values - mean) / deviation

    def project(self, points: Float[Tensor, "B V 3"]) -> Float[Tensor, "B V 3"]:
        """Project points of its model (micrometres) into the crop: x right, y down, z towards the camera, pixels.

        3DDFA counts columns from 1 and rows from below, and gives (x - 1, 120 - y, z - 1) with pixel centres at whole
        numbers; here they are at half ones.
        """
        moved = torch.einsum("bij,bvj->bvi", self.projection[..., :3], points) + self.projection[:, None, :, 3]
        x, y, z = moved.unbind(-1)
        return torch.stack([x - 0.5, self.CROP_PX + 0.5 - y, z - 1], dim=-1)

    def rotation_and_scale(self) -> tuple[Float[Tensor, "B 3 3"], Float[Tensor, "B"]]:
        """The rotation nearest to sR, and s: right-handed, +x right, +y up, +z to the viewer, as for all poses in mien.

        The two first rows carry the scale; the third is made from them, so that a mirrored third row cannot flip it.
        """
        first, second = self.projection[:, 0, :3], self.projection[:, 1, :3]
        scale = (first.norm(dim=-1) + second.norm(dim=-1)) / 2
        third = torch.cross(first, second, dim=-1) / scale[:, None]
        U, _, Vh = torch.linalg.svd(torch.stack([first, second, third], dim=1))
        return U @ Vh, scale

    def deviations(
        self, shape_deviation: Float[Tensor, "40"], expression_deviation: Float[Tensor, "10"]
    ) -> tuple[Float[Tensor, "B 40"], Float[Tensor, "B 10"]]:
        """Identity and expression as coefficients of a converted model that has 3DDFA's components.

        The deviations, micrometres, are those by which that model's components were scaled. Identities also belong to
        the Basel Face Model 2009, with the first values of its `shapeEV`. Expressions belong to 3DDFA's own file
        (w_exp) only; convert it as a generic .npz. Those of Exp_Pca.bin are other components of the same faces.
        """
        return self.shape / shape_deviation, self.expression / expression_deviation
