"""Faces and heads as blendshape rigs: parts, neutral shape, expressions and the default view. Mesh files show them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch

from mien.export.morph_targets import (
    NORMAL_EPSILON,
    POSITION_EPSILON_M,
    EncodedTargets,
    MorphTargets,
    exact_in_view,
    exceeds,
    moved_normals,
)
from mien.export.surface import eye_triangles, unit_normals
from mien.io.result_files import FACE, HEAD
from mien.morphable import HeadModel, HeadPart, MorphableModel, load_head
from mien.morphable.head import EYES, SKIN
from mien.morphable.per_model import per_model
from mien.result import Reconstruction
from mien.typing import Bool, Float, Int

OWN_EXPRESSION = "expression"
"""Morph target of the photo's expression, for models whose expression coefficients are not blendshapes."""


@dataclass(frozen=True)
class RigPart:
    """A part of a rig that has one material."""

    name: str
    """skin and eyes of a face; skin, mouth, tongue, teeth, gums, eye_left and eye_right of a head."""
    vertices: Int[np.ndarray, "P"]
    """Which of the rig's vertices each vertex of the part is."""
    triangles: Int[np.ndarray, "T 3"]
    """Positions in `vertices`, counter-clockwise seen from outside."""
    uv: Float[np.ndarray, "P 2"] | None
    """Texture coordinates, v up; None if the part has one colour."""
    used: Bool[np.ndarray, "P"]
    """Which vertices belong to the part; the others only keep the numbers of those behind them, and stay still."""
    moved: MorphTargets
    """The model's blendshapes at these vertices."""
    centre: int | None = None
    """The vertex of the rig that the part turns about, if it can be turned alone."""

    @functools.cached_property
    def encoded(self) -> EncodedTargets:
        """`moved` as a GLB stores it."""
        return EncodedTargets.of(self.moved, vertices=len(self.vertices))

    def take(self, targets: MorphTargets) -> MorphTargets:
        """Morph targets of the whole rig at this part's vertices."""
        return targets.at(self.vertices, used=self.used)


@dataclass(frozen=True, eq=False)
class RigLayout:
    """What the rigs of all faces of a model have in common; about 12 MB for a face of the packaged model."""

    name: str
    """`FACE` or `HEAD`."""
    triangles: Int[np.ndarray, "T 3"]
    """Triangles of all parts, as numbers of the rig's vertices."""
    parts: tuple[RigPart, ...]
    basis: Float[np.ndarray, "N V 3"]
    """Offsets of the model's blendshapes, without the movements that no target stores."""
    moved: MorphTargets
    """The same as lists."""


@dataclass(frozen=True)
class Rig:
    """A face or a head that can be animated. Its first vertices are those of the face model, in their order."""

    layout: RigLayout
    names: tuple[str, ...]
    """Names of the morph targets."""
    weights: Float[np.ndarray, "N"]
    """Strengths of the morph targets in the default view, 0 to 1."""
    moved: MorphTargets
    """Offsets of the positions."""
    base: Float[np.ndarray, "V 3"]
    """The neutral shape in metres: with the weights, it is `shown`. It keeps movements that no target stores."""
    shown: Float[np.ndarray, "V 3"]
    """The shape in the default view, metres."""

    @functools.cached_property
    def base_normals(self) -> Float[np.ndarray, "V 3"]:
        """Unit normals of `base`."""
        return unit_normals(self.base, self.layout.triangles)

    @functools.cached_property
    def shown_normals(self) -> Float[np.ndarray, "V 3"]:
        """Unit normals of `shown`."""
        return unit_normals(self.shown, self.layout.triangles)

    @functools.cached_property
    def turned(self) -> MorphTargets:
        """Offsets of the unit normals: of each target alone at full weight, corrected where their sum is wrong in the
        default view."""
        mesh = {"vertices": self.base, "normals": self.base_normals, "triangles": self.layout.triangles}
        alone = moved_normals(self.moved, epsilon=NORMAL_EPSILON, **mesh)
        return exact_in_view(alone, self.weights, normals=self.base_normals, shown=self.shown_normals)

    def position_targets(self, part: RigPart) -> EncodedTargets:
        """The offsets of a part's positions."""
        if self.moved is self.layout.moved:
            return part.encoded
        return EncodedTargets.of(part.take(self.moved), vertices=len(part.vertices))

    def normal_targets(self, part: RigPart) -> EncodedTargets:
        """The offsets of a part's normals."""
        return EncodedTargets.of(part.take(self.turned), vertices=len(part.vertices))


def make_rig(reconstruction: Reconstruction, model: MorphableModel, part: str, *, neutral: bool = False) -> Rig:
    """The rig of a face or of a whole head.

    If the model's expression coefficients are the named blendshapes, they are the weights, clamped to [0, 1]; the base
    keeps what the clamp removes, so that the default view is exactly the photo's. If they are principal components, all
    blendshapes have weight zero, and one more target of weight one holds the photo's expression.

    Args:
        reconstruction: The face.
        model: The face's model.
        part: `FACE` or `HEAD`.
        neutral: Whether the default view is neutral instead of the photo's expression.

    Raises:
        ModelMismatch: The head of a model that has none is asked for.
    """
    layout = _face_layout(reconstruction, model) if part == FACE else per_model(model, _head_layout)
    shown = reconstruction.vertices_model
    if part == HEAD:
        head = load_head(model)
        identity, expression = (
            torch.from_numpy(values)[None].float() for values in (reconstruction.identity, reconstruction.expression)
        )
        shown = np.concatenate([shown, head.own_vertices(identity, expression)[0].numpy()]).astype(np.float32)
    rig = _posed(reconstruction, model, layout, shown, neutral=neutral)
    if not neutral:
        return rig
    return Rig(rig.layout, rig.names, np.zeros_like(rig.weights), rig.moved, rig.base, rig.base)


def _posed(
    reconstruction: Reconstruction,
    model: MorphableModel,
    layout: RigLayout,
    shown: Float[np.ndarray, "V 3"],
    *,
    neutral: bool,
) -> Rig:
    """A rig with the photo's expression; if its neutral shape is wanted, the base keeps nothing of the expression."""
    names = tuple(model.blendshapes[0])
    if names == tuple(model.expression_names):
        weights = reconstruction.expression if neutral else reconstruction.expression.clip(0, 1)
        # np.tensordot gave other last bits for the same face in a process that had done another photo before.
        offsets = np.einsum("k,kvd->vd", weights, layout.basis).astype(np.float32)
        return Rig(layout, names, weights, layout.moved, shown - offsets, shown)
    own = np.einsum("k,kvd->vd", reconstruction.expression, model.expression_basis.detach().cpu().numpy())
    moved = layout.moved.joined(MorphTargets.of(own[None], epsilon=POSITION_EPSILON_M))
    offsets = (own * exceeds(own, POSITION_EPSILON_M)[:, None]).astype(np.float32)
    weights = np.append(np.zeros(len(names), np.float32), np.float32(1))
    return Rig(layout, (*names, OWN_EXPRESSION), weights, moved, shown - offsets, shown)


def _face_layout(reconstruction: Reconstruction, model: MorphableModel) -> RigLayout:
    """The layout of a face, computed once per model if triangles and texture coordinates are the model's own."""
    own = np.array_equal(model.triangles.cpu().numpy(), reconstruction.triangles)
    if own and np.array_equal(model.uv.cpu().numpy(), reconstruction.uv):
        return per_model(model, _own_face_layout)
    return _layout_of_face(model, reconstruction.triangles, reconstruction.uv)


def _own_face_layout(model: MorphableModel) -> RigLayout:
    return _layout_of_face(model, model.triangles.cpu().numpy().astype(np.int32), model.uv.cpu().numpy())


def _layout_of_face(
    model: MorphableModel, triangles: Int[np.ndarray, "T 3"], uv: Float[np.ndarray, "V 2"]
) -> RigLayout:
    """Skin, and eyes if there are any.

    Vertex i of the skin is vertex i of the model, so that indices of landmarks hold. For this the skin keeps the places
    of vertices that only the eyes use, up to the last vertex of its own.
    """
    basis = model.blendshapes[1].detach().cpu().numpy()
    moved = MorphTargets.of(basis, epsilon=POSITION_EPSILON_M)
    eyes = eye_triangles(model)
    parts: list[RigPart] = []
    for name, some in (("skin", triangles[~eyes]), ("eyes", triangles[eyes])):
        if len(some):
            used = np.unique(some)
            rows = used if parts else np.arange(used[-1] + 1)
            at_part = np.isin(rows, used)
            rows = rows.astype(np.int32)
            placed = moved.at(rows, used=at_part)
            parts.append(RigPart(name, rows, np.searchsorted(rows, some).astype(np.int32), uv[rows], at_part, placed))
    return RigLayout(FACE, triangles, tuple(parts), _stored(basis), moved)


def _head_layout(model: MorphableModel) -> RigLayout:
    head = load_head(model)
    basis = torch.cat([model.expression_basis.cpu(), head.expression_basis], dim=1).numpy()
    moved = MorphTargets.of(basis, epsilon=POSITION_EPSILON_M)
    centres = {name: len(model.mean) + centre for name, centre in zip(EYES, head.eye_centres, strict=True)}
    parts = tuple(_head_part(head, part, moved, centres.get(part.name)) for part in head.parts)
    triangles = np.concatenate([part.vertices[part.triangles] for part in parts]).astype(np.int32)
    return RigLayout(HEAD, triangles, parts, _stored(basis), moved)


def _head_part(head: HeadModel, part: HeadPart, moved: MorphTargets, centre: int | None) -> RigPart:
    vertices, triangles = part.vertices.numpy().astype(np.int32), part.triangles.numpy().astype(np.int32)
    used = np.isin(np.arange(len(vertices)), triangles)
    return RigPart(part.name, vertices, triangles, _head_uv(head, part), used, moved.at(vertices, used=used), centre)


def _head_uv(head: HeadModel, part: HeadPart) -> Float[np.ndarray, "N 2"] | None:
    """Texture coordinates of a part with the atlas."""
    if part.name == SKIN:
        return head.skin_uv.numpy()
    if part.name in EYES:
        total = len(part.vertices) + 1  # with the centre
        first = EYES.index(part.name) * total
        return head.eye_uv[first : first + total - 1].numpy()
    return None


def _stored(basis: Float[np.ndarray, "N V 3"]) -> Float[np.ndarray, "N V 3"]:
    return basis * exceeds(basis, POSITION_EPSILON_M)[..., None]
