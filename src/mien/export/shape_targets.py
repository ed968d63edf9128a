"""Sliders of a person's shape: directions of the identity coefficients, and morph targets along them.

The model is linear in its identity coefficients, so a morph target moves the vertices of each face by the same offsets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from mien.camera import to_camera_axes
from mien.errors import ConfigError
from mien.export.morph_targets import POSITION_EPSILON_M, MorphTargets
from mien.export.rig import Rig
from mien.morphable import MorphableModel, load_head
from mien.morphable.per_model import per_model
from mien.morphable.phenotypes import Phenotype, phenotype_identity
from mien.result import Reconstruction
from mien.typing import Float

COMPONENTS = 8
"""Number of identity components with a slider, by their size."""
STANDARD_DEVIATIONS = 2.0
"""A component's change at strength 1: 95 % of people lie between −1 and 1."""
_ADULT = 2 / 3
"""An age of 25 years in anny's scale."""
PHENOTYPE_ENDS = {
    "age": (Phenotype(age=1 / 3), Phenotype(age=1.0)),
    "gender": (Phenotype(age=_ADULT, gender=0.0), Phenotype(age=_ADULT, gender=1.0)),
    "weight": (Phenotype(age=_ADULT, muscle=0.0, weight=0.0), Phenotype(age=_ADULT, muscle=0.0, weight=1.0)),
}
"""Both ends of each phenotype's slider; age runs from 12 to 90 years. Weight is that of people with little muscle:
MakeHuman's weight moves the head of others by 0.1 mm, and muscles by 0.2 mm. Its height changes the head's size."""


@dataclass(frozen=True)
class ShapeAxes:
    """The sliders of a model."""

    names: tuple[str, ...]
    """`identity:1` and so on, then `phenotype:age` and the others."""
    identity: Float[np.ndarray, "N I"]
    """Change of the identity coefficients at strength 1, standard deviations; strengths run from −1 to 1."""
    offsets: Float[np.ndarray, "N V 3"]
    """The same for the vertices of the head, metres."""


def shape_axes(model: MorphableModel) -> ShapeAxes:
    """The sliders of a model, computed once per model.

    A phenotype goes from one end of its scale to the other between strengths −1 and 1, along the line between both
    ends.

    Args:
        model: The packaged model, on the CPU.

    Raises:
        ModelMismatch: The model has no head or no phenotypes.
    """
    return per_model(model, _shape_axes)


def with_shape_targets(rig: Rig, model: MorphableModel) -> Rig:
    """A head's rig with a morph target of weight zero for each slider.

    Args:
        rig: The rig of the whole head.
        model: Its model.
    """
    axes = shape_axes(model)
    moved = rig.moved.joined(MorphTargets.of(axes.offsets, epsilon=POSITION_EPSILON_M))
    weights = np.append(rig.weights, np.zeros(len(axes.names), np.float32))
    return Rig(rig.layout, (*rig.names, *axes.names), weights, moved, rig.base, rig.shown)


def reshaped(face: Reconstruction, model: MorphableModel, strengths: Mapping[str, float]) -> Reconstruction:
    """The same face with another shape of its bones and flesh: colours, expression, pose and camera stay.

    Args:
        face: The reconstruction.
        model: The face's model.
        strengths: Strength of each slider by its name, −1 to 1; the others stay at zero.

    Returns:
        The changed face. It keeps the photo's errors and quality, since it says nothing new about the photo.

    Raises:
        ConfigError: A name is unknown or a strength is out of range.
    """
    axes = shape_axes(model)
    weights = np.zeros(len(axes.names), np.float32)
    for name, strength in strengths.items():
        if name not in axes.names:
            raise ConfigError(f"{name}: unknown slider of the shape; use {', '.join(axes.names)}.")
        if not -1 <= strength <= 1:
            raise ConfigError(f"{name}={strength:g} is out of range; use a strength from -1 to 1.")
        weights[axes.names.index(name)] = strength
    shape = face.vertices_model + np.einsum("n,nvd->vd", weights, axes.offsets[:, : len(face.vertices_model)])
    placed = to_camera_axes(face.scale * shape @ face.rotation.T) + face.translation
    xy = face.focal_px * placed[:, :2] / placed[:, 2:] + face.centre_px
    return replace(
        face,
        identity=face.identity + weights @ axes.identity,
        vertices_model=shape.astype(np.float32),
        vertices=placed.astype(np.float32),
        xy=xy.astype(np.float32),
        landmarks68=xy[face.landmarks68_vertices].astype(np.float32),
    )


def _shape_axes(model: MorphableModel) -> ShapeAxes:
    count = model.counts[0]
    components = STANDARD_DEVIATIONS * torch.eye(count)[:COMPONENTS]
    ends = [end for pair in PHENOTYPE_ENDS.values() for end in pair]
    low, high = phenotype_identity(ends, model).unflatten(0, (-1, 2)).unbind(1)
    identity = torch.cat([components, (high - low) / 2])
    basis = torch.cat([model.identity_basis.cpu(), load_head(model).identity_basis], dim=1)
    names = [f"identity:{k + 1}" for k in range(COMPONENTS)] + [f"phenotype:{name}" for name in PHENOTYPE_ENDS]
    return ShapeAxes(tuple(names), identity.numpy(), torch.tensordot(identity, basis, dims=1).numpy())
