"""The refiner: corrects a prediction of shape and pose from the crop, unwrapped onto the UV map by that prediction.

    prediction ── model, pose, camera ──► texel positions ── crop ──► UV map ── convolutions ──┐
    prediction, detected points minus the points of the prediction ────────────────────────────┴──► correction

In a crop an eyebrow may be anywhere; on the UV map of a correct prediction it is always at the same texels. The
convolutions therefore look for small displacements at one place each instead of looking for faces, and learn this from
few faces. This is the idea of shape-indexed features (Cao et al. 2012), with the UV map as the index.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mien.camera import Camera, Pose, to_camera_axes
from mien.geometry import vertex_normals
from mien.morphable import MorphableModel
from mien.texture import TexelAtlas
from mien.typing import Float, Tensor

REFINER_SIZE = 128
"""Side of the crop that is unwrapped, pixels; the face is about 85 of them wide."""
ATLAS_SIZE = 64
"""Side of the UV map, texels."""
WIDTHS = (32, 64, 128, 128)
"""Channels after each halving of the UV map."""
NORM_GROUPS = 8
HIDDEN = 512
POINT_UNIT = 0.02
"""Typical distance between detected points and those of a first prediction, in sides of the crop."""
MAX_UNITS = 4.0
"""Inputs are clamped to this many units: photos hold expressions that no synthetic face taught."""
MAX_CORRECTION = 0.4
"""Upper limit of a correction's root mean square, in units. Of 512 held-out synthetic faces one needed clearly more. On
bare frontal heads of another model corrections of 0.5 to 1.6 occurred, with implausible identities."""
CONTRAST_FLOOR = 0.02
"""Added to the contrast of the UV map, so that a black crop gives finite values."""


def crop_size(image_size: int, *, refiner: bool) -> int:
    """Side in pixels below which a crop shows an encoder less than it can use.

    Args:
        image_size: Side of the backbone's input, pixels.
        refiner: Whether the encoder has a refiner, which reads crops of `REFINER_SIZE`.
    """
    return max(image_size, REFINER_SIZE) if refiner else image_size


class Refiner(nn.Module):
    """Network that corrects shape and pose; its corrections are near 0 before training.

    Differentiable in its weights alone: neither the UV map nor the inputs get a gradient.

    Args:
        model: Face model of the encoder.
        units: (N,) units of the coefficients of shape and pose, in the order in which `forward` takes them.
        dropout: Share of UV-map features that are left out in training.
    """

    basis: Tensor
    normals: Tensor
    inside: Tensor
    units: Tensor

    def __init__(self, model: MorphableModel, *, units: Float[Tensor, "N"], dropout: float = 0.0) -> None:
        super().__init__()
        self._keep_geometry(model)
        self.register_buffer("units", units, persistent=False)
        layers: list[nn.Module] = []
        for inputs, outputs in zip((4, *WIDTHS), WIDTHS, strict=False):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=2, padding=1),
                nn.GroupNorm(NORM_GROUPS, outputs),
                nn.SiLU(),
            ]
        side = ATLAS_SIZE // 2 ** len(WIDTHS)
        self.convolutions = nn.Sequential(*layers, nn.Flatten(), nn.LayerNorm(WIDTHS[-1] * side**2))
        self.dropout = nn.Dropout(dropout)
        self.map_layer = nn.Linear(WIDTHS[-1] * side**2, HIDDEN)
        self.state_layer = nn.Linear(len(units) + 2 * len(model.mediapipe_triangles), HIDDEN)
        self.hidden_layer = nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, len(units))
        nn.init.normal_(self.head.weight, std=1e-3)
        nn.init.zeros_(self.head.bias)

    def _keep_geometry(self, model: MorphableModel) -> None:
        """Store the model at the texels and at the 468 points; both are linear in the coefficients, like vertices."""
        atlas = TexelAtlas.of(model, ATLAS_SIZE)
        bases = torch.cat([model.mean[None], model.identity_basis, model.expression_basis])
        inside = atlas.valid.flatten().nonzero()[:, 0]
        texels = atlas.interpolate(bases).flatten(2)[:, :, inside].transpose(1, 2)
        self.register_buffer("basis", torch.cat([texels, model.mediapipe_points(bases)], dim=1), persistent=False)
        normals = atlas.interpolate(vertex_normals(model.mean[None], model.triangles))[0]
        self.register_buffer("normals", normals.flatten(1)[:, inside].T.contiguous(), persistent=False)
        self.register_buffer("inside", inside, persistent=False)

    def forward(
        self,
        crops: Float[Tensor, "B 3 S S"],
        *,
        shape: Float[Tensor, "B N"],
        pose: Pose,
        camera: Camera,
        state: Float[Tensor, "B M"],
        points: Float[Tensor, "B 468 2"],
    ) -> Float[Tensor, "B M"]:
        """Predict the correction to add to `state`.

        Args:
            crops: RGB in [0, 1].
            shape: Identity and expression of the prediction, expression clamped to [0, 1].
            pose: Metric pose of the prediction under `camera`.
            camera: Cameras of the crops.
            state: The prediction's shape and pose as the encoder's heads give them.
            points: Detected points, in sides of the crop from its centre.

        Returns:
            The correction, in the coefficients' own scale; its root mean square in units is at most `MAX_CORRECTION`.
        """
        # In half precision texels would be read a pixel away from their position.
        with torch.no_grad(), torch.autocast(crops.device.type, enabled=False):
            uv_map, points_px = self._unwrap(crops, shape, pose, camera)
            residuals = (points - (points_px / crops.shape[-1] - 0.5)) / POINT_UNIT
            known = (state / self.units).clamp(-MAX_UNITS, MAX_UNITS)
        features = self.map_layer(self.dropout(self.convolutions(uv_map)))
        hidden = features + self.state_layer(torch.cat([known, residuals.flatten(1)], dim=1))
        hidden = hidden + self.hidden_layer(F.silu(hidden))
        correction = self.head(F.silu(hidden))
        length = correction.square().mean(1, keepdim=True).clamp(min=MAX_CORRECTION**2).sqrt()
        return correction * (MAX_CORRECTION / length) * self.units

    def _unwrap(
        self, crops: Float[Tensor, "B 3 S S"], shape: Float[Tensor, "B N"], pose: Pose, camera: Camera
    ) -> tuple[Float[Tensor, "B 4 C C"], Float[Tensor, "B 468 2"]]:
        """The UV map (normalised colours; cosine between normal and direction to the camera), and the points in px."""
        count = len(self.normals)
        weights = torch.cat([torch.ones_like(shape[:, :1]), shape], dim=1)
        surface = pose.to_camera((weights @ self.basis.flatten(1)).unflatten(1, (-1, 3)))
        surface_px = camera.project(surface)
        grid = (surface_px[:, :count] * (2 / crops.shape[-1]) - 1)[:, None]
        colours = F.grid_sample(crops, grid, padding_mode="border", align_corners=False)[:, :, 0]
        centred = colours - colours.mean(2, keepdim=True)
        normalised = centred / (centred.square().mean((1, 2), keepdim=True).sqrt() + CONTRAST_FLOOR)
        # Normals of the mean face, turned with the head: those of the prediction differ little and would cost as much
        # time as everything else here.
        normals = to_camera_axes(self.normals @ pose.rotmat().mT)
        facing = -(normals * F.normalize(surface[:, :count], dim=-1)).sum(-1, keepdim=True)
        uv_map = crops.new_zeros(crops.shape[0], 4, ATLAS_SIZE**2)
        uv_map = uv_map.index_copy(2, self.inside, torch.cat([normalised, facing.transpose(1, 2)], dim=1))
        return uv_map.unflatten(2, (ATLAS_SIZE, ATLAS_SIZE)), surface_px[:, count:]
