"""Converts Deep3DFaceRecon's coefficient vectors (Deng et al., CVPRW 2019).

A vector is identity 80, expression 64, albedo 80, angles 3 (pitch, yaw, roll in radians; R = Rz Ry Rx), light 27 as
(3, 9) by colour, translation 3 in decimetres; TensorFlow's version has a 258th value without meaning. Its camera stands
at (0, 0, 10) dm, focal length 1015 pixels over a crop of 224; a point projects to 1015 X / Z + 112 with y up, and row
223 - y; pixel centres are whole numbers there and half ones here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from mien.camera import Camera, Pose
from mien.errors import FormatError
from mien.geometry import rotmat_to_rotvec, triangle_normals
from mien.lighting import shading
from mien.morphable import FaceCoefficients, MorphableModel
from mien.morphable.formats.mat5 import read_mat, write_mat
from mien.typing import Float, Tensor

FOCAL_PX, CROP_PX, CAMERA_DISTANCE_DM = 1015.0, 224, 10.0
DECIMETRE = 0.1
_CENTRE_PX = (112.5, 111.5)  # column 112 and, from below, row 112; plus half a pixel
_KEYS = ("id", "exp", "tex", "angle", "gamma", "trans")
_AMBIENT = 0.8
"""Constant that Deep3DFaceRecon adds to the first harmonic of each colour."""
# Their harmonics over ours, see `mien.lighting`: the same nine functions with other constants, three of them negated.
_FIRST, _SECOND, _THIRD = np.sqrt(np.pi) / 2, np.sqrt(np.pi), 1.5 * np.sqrt(5 * np.pi / 6)
_LINE, _PLANE = 2 / np.sqrt(3), np.sqrt(15) / 4
_OURS = (1.0, _LINE, _LINE, _LINE, _PLANE, _PLANE, np.sqrt(5) / 8, _PLANE, _PLANE / 2)
_THEIRS = (_FIRST, -_SECOND, _SECOND, -_SECOND, _THIRD, -_THIRD, _THIRD / np.sqrt(12), -_THIRD, _THIRD / 2)


@dataclass(frozen=True)
class Deep3dCoefficients:
    """A batch of coefficient vectors in Deep3DFaceRecon's units."""

    identity: Float[Tensor, "B I"]
    expression: Float[Tensor, "B E"]
    albedo: Float[Tensor, "B A"]
    angle: Float[Tensor, "B 3"]
    gamma: Float[Tensor, "B 27"]
    translation: Float[Tensor, "B 3"]

    @classmethod
    def of_vector(cls, vector: Float[Tensor, "B N"]) -> Deep3dCoefficients:
        """Split vectors of 257 or 258 values; FormatError for other lengths."""
        if vector.shape[1] not in (257, 258):
            raise FormatError(f"vectors of {vector.shape[1]} values; expected Deep3DFaceRecon's 257 or 258")
        return cls(*vector[:, :257].split((80, 64, 80, 3, 27, 3), dim=1))

    def vector(self) -> Float[Tensor, "B N"]:
        """One vector per face, 257 values for the full model."""
        return torch.cat([getattr(self, f.name) for f in fields(self)], dim=1)

    @classmethod
    def read(cls, path: Path) -> Deep3dCoefficients:
        """Read the .mat file that its test script saves; FormatError for any other file."""
        arrays = read_mat(path, frozenset(_KEYS))
        missing = [key for key in _KEYS if key not in arrays]
        if missing:
            raise FormatError(f"{path}: lacks {', '.join(missing)}; expected coefficients of Deep3DFaceRecon")
        widths = {"angle": 3, "gamma": 27, "trans": 3}
        for key, array in arrays.items():
            rows = len(arrays["id"])
            if array.ndim != 2 or len(array) != rows or array.shape[1] != widths.get(key, array.shape[1]):
                raise FormatError(
                    f"{path}: {key} is {array.shape}; expected {rows} rows of {widths.get(key, 'values')}"
                )
            if not (np.abs(array) <= np.finfo(np.float32).max).all():
                raise FormatError(f"{path}: {key} holds values that are not finite; expected coefficients in float32")
        return cls(*(torch.from_numpy(np.ascontiguousarray(arrays[key], np.float32)) for key in _KEYS))

    def write(self, path: Path, landmarks68: Float[Tensor, "B 68 2"] | None = None) -> None:
        """Write the same .mat; landmarks are in the crop, y down. Raises OSError."""
        arrays = {key: getattr(self, f.name).numpy() for key, f in zip(_KEYS, fields(self), strict=True)}
        if landmarks68 is not None:
            arrays["lm68"] = landmarks68.numpy()
        write_mat(path, arrays)

    def face(self) -> FaceCoefficients:
        """The faces as coefficients of a converted BFM_model_front.mat, to be viewed by `deep3d_camera`."""
        rotation = rotmat_to_rotvec(_rotmat(self.angle.double())).to(self.angle)
        x, y, z = (self.translation * DECIMETRE).unbind(-1)
        away = CAMERA_DISTANCE_DM * DECIMETRE - z
        pose = Pose(rotation, torch.stack([x, -y, away], dim=-1), torch.ones_like(x))
        gamma = self.gamma.view(-1, 3, 9).clone()
        gamma[..., 0] += _AMBIENT
        lighting = gamma.mT * _light_factors().to(gamma)[:, None]
        return FaceCoefficients(self.identity, self.expression, self.albedo, lighting, pose)

    @classmethod
    def of_face(cls, face: FaceCoefficients) -> Deep3dCoefficients:
        """The inverse of `face`; the scale of the pose must be 1."""
        R = face.pose.rotmat()
        angle = torch.stack(
            [
                torch.atan2(R[:, 2, 1], R[:, 2, 2]),
                -torch.asin(R[:, 2, 0].clamp(-1, 1)),
                torch.atan2(R[:, 1, 0], R[:, 0, 0]),
            ],
            dim=-1,
        )
        x, y, z = face.pose.translation.unbind(-1)
        translation = torch.stack([x, -y, CAMERA_DISTANCE_DM * DECIMETRE - z], dim=-1) / DECIMETRE
        gamma = (face.lighting / _light_factors().to(face.lighting)[:, None]).mT.clone()
        gamma[..., 0] -= _AMBIENT
        return cls(face.identity, face.expression, face.albedo, angle, gamma.flatten(1), translation)


def deep3d_camera(batch: int = 1) -> Camera:
    """Deep3DFaceRecon's fixed camera, in mien's pixel convention."""
    centre = torch.tensor([_CENTRE_PX]).expand(batch, 2)
    return Camera(torch.full((batch,), FOCAL_PX), centre, image_size=(CROP_PX, CROP_PX))


def deep3d_colours(model: MorphableModel, coefficients: Deep3dCoefficients) -> Float[Tensor, "B V 3"]:
    """Shaded vertex colours as Deep3DFaceRecon computes them: normals are unweighted means over faces; not clamped."""
    face = coefficients.face()
    vertices = model.vertices(face.identity, face.expression)
    faces = torch.nn.functional.normalize(triangle_normals(vertices, model.triangles), dim=-1)
    sums = torch.zeros_like(vertices)
    for k in range(3):
        sums = sums.index_add(1, model.triangles[:, k], faces)
    normals = face.pose.to_view_axes(torch.nn.functional.normalize(sums, dim=-1))
    return model.albedo(face.albedo) * shading(normals, face.lighting)


def _light_factors() -> Float[Tensor, "9"]:
    return torch.tensor([theirs / ours for theirs, ours in zip(_THEIRS, _OURS, strict=True)])


def _rotmat(angle: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3 3"]:
    """Rotation matrix Rz Ry Rx from pitch, yaw and roll."""
    (cx, cy, cz), (sx, sy, sz) = angle.cos().unbind(-1), angle.sin().unbind(-1)
    zero, one = torch.zeros_like(cx), torch.ones_like(cx)

    def matrix(*rows: Tensor) -> Tensor:
        return torch.stack(rows, dim=-1).view(-1, 3, 3)

    pitch = matrix(one, zero, zero, zero, cx, -sx, zero, sx, cx)
    yaw = matrix(cy, zero, sy, zero, one, zero, -sy, zero, cy)
    roll = matrix(cz, -sz, zero, sz, cz, zero, zero, zero, one)
    return roll @ yaw @ pitch
