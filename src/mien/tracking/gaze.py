"""Where the eyes look: the pupils of the model, which follow the irises that the mesh network finds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.morphable import MorphableModel
from mien.morphable.landmark_tables import MEDIAPIPE_EYE_CORNERS, MEDIAPIPE_EYES
from mien.morphable.per_model import per_model
from mien.typing import Float, Tensor

LOOK_NAMES = tuple(f"eyeLook{way}{side}" for way in ("Down", "In", "Out", "Up") for side in ("Left", "Right"))
"""ARKit's blendshapes that turn the eyes."""
LOOK_SIGMA = 0.5
"""Standard deviation of their strength. With that of the other expressions, eyes looked too little to the side."""
IRIS_SIGMA = 0.02
"""Error of the position of an iris, as a share of the eye's width."""
SHUT, OPEN = 0.1, 0.2
"""Opening of an eye, over its width, below which its iris is a guess, and from which on it is seen."""
TURNING_RADIUS_M = 0.0105
"""Distance of the pupil, as it is seen through the cornea, from the point about which a human eye turns: that point is
13.5 mm behind the cornea, and the entrance pupil 3 mm behind it. The model's eyeballs are larger, see docs/head.md."""


@dataclass(frozen=True)
class Pupils:
    """The pupils of a model: right eye first, as everywhere in MediaPipe's order."""

    mean: Float[Tensor, "2 3"]
    """On the mean face, metres."""
    identity_basis: Float[Tensor, "2 3 I"]
    expression_basis: Float[Tensor, "2 3 E"]
    looks: Tensor
    """(E,) which expressions turn the eyes."""

    @classmethod
    def of(cls, model: MorphableModel) -> Pupils | None:
        """Those of a model; None if it has no eyeballs or no blendshapes that turn them."""
        return per_model(model, _find)


def _find(model: MorphableModel) -> Pupils | None:
    caps = [(model.masks.eyes > 0.5) & side for side in (model.mean[:, 0] < 0, model.mean[:, 0] > 0)]
    looks = torch.tensor([name in LOOK_NAMES for name in model.expression_names], dtype=torch.bool)
    if min(int(cap.sum()) for cap in caps) < 4 or int(looks.sum()) < len(LOOK_NAMES):
        return None
    vertices = torch.stack([_pupil(model, cap.nonzero()[:, 0]) for cap in caps])
    identity, expression = (
        basis[:, vertices].double().permute(1, 2, 0) for basis in (model.identity_basis, model.expression_basis)
    )
    return Pupils(model.mean[vertices].double(), identity, expression, looks)


def _pupil(model: MorphableModel, cap: Tensor) -> Tensor:
    """The vertex of an eyeball's cap in front of the middle of its sphere."""
    points = model.mean[cap].double()
    equations = torch.cat([2 * points, torch.ones_like(points[:, :1])], dim=1)
    centre = torch.linalg.lstsq(equations, points.square().sum(1, keepdim=True)).solution[:3, 0]
    return cap[(points[:, :2] - centre[:2]).square().sum(1).argmin()]


def eye_openness(points_px: Float[Tensor, "T 468 2"]) -> Float[Tensor, "T 2"]:
    """How far the iris of each eye is seen, 0 to 1, right eye first."""
    width = torch.stack([(points_px[:, a] - points_px[:, b]).norm(dim=-1) for a, b in MEDIAPIPE_EYE_CORNERS], dim=1)
    middle = torch.stack([(points_px[:, eye[12]] - points_px[:, eye[4]]).norm(dim=-1) for eye in MEDIAPIPE_EYES], dim=1)
    return ((middle / width.clamp(min=1.0) - SHUT) / (OPEN - SHUT)).clamp(0, 1)


def iris_sigma_px(points_px: Float[Tensor, "T 468 2"]) -> Float[Tensor, "T 1"]:
    """Standard deviation of the position of an iris, pixels: in a turned face, as in the wider eye."""
    widths = [(points_px[:, a] - points_px[:, b]).norm(dim=-1) for a, b in MEDIAPIPE_EYE_CORNERS]
    return IRIS_SIGMA * torch.stack(widths, dim=1).amax(1, keepdim=True).clamp(min=1.0)


def gaze_angles(model: MorphableModel, expression: Float[Tensor, "T E"]) -> Float[Tensor, "T 2 2"]:
    """Directions of the eyes relative to the head.

    Args:
        model: The morphable model.
        expression: Expression coefficients.

    Returns:
        Yaw to the subject's left and pitch upwards of the left eye, then of the right one, radians. Zeros for a model
        without looks.
    """
    pupils = Pupils.of(model)
    if pupils is None:
        return expression.new_zeros(len(expression), 2, 2)
    looks = expression.double() * pupils.looks
    moved = torch.einsum("pik,tk->tpi", pupils.expression_basis, looks)[..., :2] / TURNING_RADIUS_M
    return moved.clamp(-1, 1).asin().flip(1).to(expression)
