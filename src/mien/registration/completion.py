"""Completes the missing parts of a face model by rules; each rule leaves a note in the model.

- landmarks, contour strips, MediaPipe's 468 points: the packaged model's, through the registration
- albedo: the packaged model's at the matched points; out of its reach the mean colour of its skin
- part masks: the same; out of its reach "skin" on the head's own surface, "mouth" on separate surfaces
- ARKit's 52 blendshapes: the packaged model's offsets at the matched points, fading out beyond its reach
- UV map: see `uv_layout`; mirror table: the nearest vertex to the mirrored position
- expressions: a model without expressions gets ARKit's blendshapes as its expressions
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mien.geometry import Matches, nearest, vertex_normals
from mien.morphable import MorphableModel
from mien.morphable.formats.arkit import ARKIT_NAMES
from mien.morphable.formats.source import SourceModel
from mien.morphable.landmark_tables import PARTS
from mien.morphable.model import ExpressionKind
from mien.registration.nonrigid_icp import Registration, register
from mien.registration.uv_layout import connected_parts, unwrapped
from mien.typing import Bool, Float, Int, Tensor

FADE_M = (0.003, 0.015)
"""Distances to the registered model at which the transfer of its values begins to fade and ends."""


@dataclass(frozen=True)
class _Reach:
    """Position of the source's vertices relative to the registered packaged model."""

    registration: Registration
    matches: Matches
    share: Float[Tensor, "V"]
    """1 for vertices on it, 0 beyond its reach."""
    part: Int[Tensor, "V"]
    """Number of the connected surface; 0 is the head."""

    @property
    def is_apart(self) -> Bool[Tensor, "V"]:
        """Vertices of surfaces other than the head's, beyond the registered model's reach: teeth, gums, eyeballs."""
        return (self.part != 0) & (self.share < 0.5)

    def spread(self, values: Float[Tensor, "R C"], beyond: Float[Tensor, "V #C"]) -> Float[Tensor, "V C"]:
        """Values of the packaged model (R vertices) on the source's vertices, and `beyond` out of reach."""
        return beyond + self.share[:, None] * (self.matches.of(values) - beyond)


def complete(source: SourceModel, reference: MorphableModel) -> MorphableModel:
    """Make a complete model from the parts that a file has.

    Args:
        source: The model as read from its file.
        reference: The packaged model, from which missing parts are transferred.

    Returns:
        A model with all parts; its `notes` describe the completed ones.

    Raises:
        ConfigError: The source cannot be registered to the reference.
    """
    mean, triangles = torch.from_numpy(source.mean), torch.from_numpy(source.triangles)
    reach = _reach(register(reference, mean, triangles, source.landmarks), mean)
    notes = [f"registered to {reference.name}: {1000 * reach.registration.rms_m:.2f} mm RMS over its skin"]
    arrays = {"mean": mean, "triangles": triangles, "identity_basis": torch.from_numpy(source.identity_basis)}
    arrays |= _landmarks(source, reach, notes)
    arrays |= _masks(source, reach)
    arrays |= _albedo(source, reach, notes)
    arrays |= _uv_and_mirror(source, mean, triangles, arrays["landmarks68"], notes)
    arrays |= _skinning(source)
    expressions = _expressions(source, reach, notes)
    arrays |= expressions.arrays
    return MorphableModel(
        source.name,
        {key: value.contiguous() for key, value in arrays.items()},
        expression_names=expressions.names,
        licence=source.licence,
        expression_kind=expressions.kind,
        blendshape_names=expressions.blendshape_names,
        notes=tuple(notes),
    )


def _reach(registration: Registration, mean: Float[Tensor, "V 3"]) -> _Reach:
    matches = registration.on_reference()
    near, far = (limit * registration.scale for limit in FADE_M)
    t = ((matches.distances - near) / (far - near)).clamp(0, 1)
    # At the edge of the packaged model the nearest point is on its rim, even if close, so values fade faster there.
    t = torch.where(matches.at_border, (2 * t).clamp(max=1), t)
    part = connected_parts(registration.target.triangles, len(mean))
    return _Reach(registration, matches, 1 - t * t * (3 - 2 * t), part)


def _landmarks(source: SourceModel, reach: _Reach, notes: list[str]) -> dict[str, Tensor]:
    registration, reference = reach.registration, reach.registration.reference
    normals = vertex_normals(registration.vertices[None], reference.triangles)[0]

    def vertex_at(own: Int[Tensor, "P"]) -> Int[Tensor, "P"]:
        return registration.onto_target(registration.vertices[own], normals[own]).nearest_corners

    landmarks = vertex_at(reference.landmarks68)
    for point, vertex in source.landmarks.items():
        landmarks[point] = vertex
    if len(source.landmarks) < 68:
        notes.append(f"landmarks: {68 - len(source.landmarks)} of 68 transferred")
    if source.contour_candidates is not None:
        strips = torch.from_numpy(source.contour_candidates)
    else:
        notes.append("contour strips: the packaged model's, transferred")
        own = reference.contour_candidates
        strips = torch.where(own >= 0, vertex_at(own.clamp(min=0).reshape(-1)).view_as(own), -1)
    on_mesh = reference.mediapipe_barycentrics[..., None]
    points, directions = (
        (values[reference.mediapipe_vertices] * on_mesh).sum(1) for values in (registration.vertices, normals)
    )
    dense = registration.onto_target(points, directions)
    return {
        "landmarks68": landmarks,
        "contour_candidates": strips,
        "mediapipe_triangles": dense.triangle_ids,
        "mediapipe_barycentrics": dense.weights,
    }


def _masks(source: SourceModel, reach: _Reach) -> dict[str, Tensor]:
    parts = reach.registration.reference.masks
    apart = reach.is_apart.float()
    beyond = {"skin": 1 - apart, "mouth": apart}
    # A separate surface with eye vertices is an eyeball as a whole.
    eyes = reach.spread(parts.eyes[:, None], torch.zeros(len(apart), 1))[:, 0]
    balls = torch.zeros(int(reach.part.max()) + 2)
    balls = balls.scatter_reduce(0, reach.part + 1, eyes * (reach.part > 0), "amax")
    is_ball = balls[reach.part + 1] > 0.5
    masks = {}
    for name in PARTS:
        if name in source.masks:
            masks[f"mask_{name}"] = torch.from_numpy(source.masks[name])
            continue
        outside = beyond.get(name, torch.zeros_like(apart))
        spread = reach.spread(getattr(parts, name)[:, None], outside[:, None])[:, 0].clamp(0, 1)
        masks[f"mask_{name}"] = torch.where(is_ball, torch.full_like(spread, float(name == "eyes")), spread)
    return masks


def _albedo(source: SourceModel, reach: _Reach, notes: list[str]) -> dict[str, Tensor]:
    """Mean and components: the file's, or the packaged model's.

    Out of the packaged model's reach, they are those of its plain skin; on separate surfaces those inside the mouth.
    """
    if source.albedo_mean is not None:
        basis = source.albedo_basis if source.albedo_basis is not None else np.zeros((0, *source.mean.shape))
        return {"albedo_mean": torch.from_numpy(source.albedo_mean), "albedo_basis": torch.from_numpy(basis).float()}
    notes.append("albedo: the packaged model's, transferred")
    reference = reach.registration.reference
    parts = reference.masks
    plain = parts.skin * (1 - parts.lips) * (1 - parts.brows) * (1 - parts.eyes) * (1 - parts.mouth)
    fields = torch.cat([reference.albedo_mean[None], reference.albedo_basis])
    flat = fields.permute(1, 0, 2).flatten(1)
    skin = (plain[:, None] * flat).sum(0) / plain.sum()
    inside = (parts.mouth[:, None] * flat).sum(0) / parts.mouth.sum().clamp(min=1e-6)
    beyond = torch.where(reach.is_apart[:, None], inside, skin)
    spread = reach.spread(flat, beyond).unflatten(1, (-1, 3)).permute(1, 0, 2)
    return {"albedo_mean": spread[0], "albedo_basis": spread[1:]}


@dataclass(frozen=True)
class _Expressions:
    arrays: dict[str, Tensor]
    names: tuple[str, ...]
    kind: ExpressionKind
    blendshape_names: tuple[str, ...]


def _expressions(source: SourceModel, reach: _Reach, notes: list[str]) -> _Expressions:
    """The file's expressions; if they are not ARKit's, also ARKit's blendshapes, or these instead of none."""
    own = torch.from_numpy(source.expression_basis)
    if set(ARKIT_NAMES) <= set(source.expression_names):
        return _Expressions({"expression_basis": own}, source.expression_names, source.expression_kind, ())
    notes.append("ARKit blendshapes: the packaged model's, transferred")
    blendshapes = _blendshapes(reach)
    if len(own) == 0:
        notes.append("expressions: the file has none; ARKit's transferred blendshapes are used")
        return _Expressions({"expression_basis": blendshapes}, ARKIT_NAMES, "strength", ())
    arrays = {"expression_basis": own, "blendshape_basis": blendshapes}
    return _Expressions(arrays, source.expression_names, source.expression_kind, ARKIT_NAMES)


def _blendshapes(reach: _Reach) -> Float[Tensor, "N V 3"]:
    reference = reach.registration.reference
    by_name = dict(zip(reference.expression_names, reference.expression_basis, strict=True))
    fields = torch.stack([by_name[name] for name in ARKIT_NAMES]) * reach.registration.scale
    flat = fields.permute(1, 0, 2).flatten(1)
    spread = reach.spread(flat, torch.zeros(len(reach.share), 1)).unflatten(1, (-1, 3))
    return spread.permute(1, 0, 2)


def _uv_and_mirror(
    source: SourceModel,
    mean: Float[Tensor, "V 3"],
    triangles: Int[Tensor, "T 3"],
    landmarks68: Int[Tensor, "68"],
    notes: list[str],
) -> dict[str, Tensor]:
    if source.uv is None:
        notes.append("uv: cylindrical unwrap")
    if source.mirror is None:
        notes.append("mirror: nearest vertex to the mirrored position")
    return {
        "uv": unwrapped(mean, triangles, landmarks68) if source.uv is None else torch.from_numpy(source.uv),
        "mirror": _mirror(mean) if source.mirror is None else torch.from_numpy(source.mirror),
    }


def _mirror(mean: Float[Tensor, "V 3"]) -> Int[Tensor, "V"]:
    middle = (mean[:, 0].amin() + mean[:, 0].amax()) / 2
    return nearest(torch.stack([2 * middle - mean[:, 0], mean[:, 1], mean[:, 2]], dim=1), mean)


def _skinning(source: SourceModel) -> dict[str, Tensor]:
    if source.skinning is None:
        return {}
    return {
        "joint_regressor": torch.from_numpy(source.skinning.joint_regressor),
        "skin_weights": torch.from_numpy(source.skinning.weights),
        "pose_basis": torch.from_numpy(source.skinning.pose_basis),
        "joint_parents": torch.from_numpy(source.skinning.parents),
    }
