"""The same face on another topology: a reconstruction carried over to another model.

reconstruction ── closest points between the two registered means ──► where each vertex of the target belongs
target model ── ridge regression on these places ──► coefficients
places ── minus the model's surface ──► what the coefficients cannot hold; eyeballs, teeth and scalp go along with it
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.errors import ConfigError
from mien.evaluation.shape import DistanceSummary
from mien.geometry import Matcher, Matches, Similarity, Surface, align_points, submesh, vertex_areas, vertex_normals
from mien.morphable import MorphableModel
from mien.morphable.landmark_tables import IBUG_INNER
from mien.registration.nonrigid_icp import register
from mien.registration.uv_layout import connected_parts
from mien.result import Reconstruction
from mien.typing import Float, Int, Tensor

POSITION_SIGMA_M = 1e-3
"""How far a registered place may be off; against the prior of one standard deviation a coefficient."""
SAMPLES = 4000
"""Vertices that decide the coefficients: neighbours say the same."""
_ITERATIONS = 3
_MEASURED = 1500
"""Points of the skin that the surface error is taken over."""
_FOLLOW_SIGMA_M, _FOLLOW_REACH_M = 0.01, 0.05
"""What is no skin takes the mean offset of the skin within this distance, and none beyond the reach."""
_CHUNK = 2048
_SEAM_RINGS = 2
"""Rings of vertices around the skin's edge over which the field is smoothed."""


@dataclass(frozen=True)
class Transfer:
    """A face on another model's mesh, in the model space of the reconstruction, metres."""

    model: MorphableModel
    vertices: Float[Tensor, "V 3"]
    identity: Float[Tensor, "I"]
    expression: Float[Tensor, "E"]
    landmark_error_m: float
    """Mean distance of the 51 inner landmarks of the two faces."""
    surface_error: DistanceSummary
    """From the reconstruction's skin to the transferred surface, metres."""


def transfer(face: Reconstruction, own: MorphableModel, target: MorphableModel) -> Transfer:
    """Carry a reconstruction made with the model `own` over to `target`.

    ConfigError if the reconstruction is not of that model, or the two cannot be registered.
    """
    if len(face.vertices_model) != len(own.mean):
        raise ConfigError(
            f"the reconstruction has {len(face.vertices_model)} vertices, the model {own.name!r} {len(own.mean)}; "
            "load the model that it was made with"
        )
    vertices = torch.from_numpy(face.vertices_model)
    landmarks = dict(enumerate(target.landmarks68.tolist()))
    registration = register(own, target.mean, target.triangles, landmarks)
    matches = registration.on_reference()
    surfaces = connected_parts(target.triangles, len(target.mean)) + 1
    trusted = _trust(own, matches, scale=registration.scale)
    skin = torch.bincount(surfaces, trusted).argmax()
    # An eyeball's front lies close to the lids' skin and is none: only the surface with the face on it is.
    trusted = trusted * (surfaces == skin)
    wanted = matches.of(vertices)
    coefficients, similarity = _fitted(target, wanted, trusted)
    identity, expression = coefficients.split(target.counts[:2])
    fitted = similarity(target.vertices(identity[None], expression[None]))[0]
    offsets = _onto_surface(fitted, target, vertices, own, trusted)
    moved = fitted + _followed(fitted, offsets, trusted, triangles=target.triangles, surfaces=surfaces)
    return Transfer(
        target, moved, identity, expression,
        landmark_error_m=_landmark_error(moved, vertices, own, target),
        surface_error=_surface_error(moved, vertices, own, target),
    )  # fmt: skip


def _trust(own: MorphableModel, matches: Matches, *, scale: float) -> Float[Tensor, "V"]:
    """How surely each target vertex belongs to a point of the face: 1 on its skin, 0 beyond it or inside it."""
    parts = own.masks
    skin = ((1 - parts.mouth) * (1 - parts.eyes))[:, None]
    near = (1.5 - matches.distances / (0.006 * scale)).clamp(0, 1)
    return near * matches.of(skin)[:, 0] * ~matches.at_border


def _fitted(
    target: MorphableModel, wanted: Float[Tensor, "V 3"], trusted: Float[Tensor, "V"]
) -> tuple[Float[Tensor, "K"], Similarity]:
    """Ridge regression of the coefficients and the similarity between the two model spaces, in turns."""
    sure = (trusted > 0.5).nonzero()[:, 0]
    chosen = sure[:: max(len(sure) // SAMPLES, 1)]
    basis = torch.cat([target.identity_basis, target.expression_basis])[:, chosen].double()
    sigma = torch.ones(len(basis), dtype=torch.float64)
    sigma[target.counts[0] :] = 0.25 if target.expression_kind == "strength" else 1.0
    columns = basis.flatten(1)
    normal = columns @ columns.T / POSITION_SIGMA_M**2 + torch.diag(sigma**-2)
    factor = torch.linalg.cholesky(normal)
    mean, goal = target.mean[chosen].double(), wanted[chosen].double()
    low, high = target.expression_range
    coefficients = torch.zeros(len(basis), dtype=torch.float64)
    for _ in range(_ITERATIONS):
        shape = mean + torch.einsum("k,kvd->vd", coefficients, basis)
        back = align_points(goal[None], shape[None])
        residual = back(goal[None])[0] - mean
        right = (columns @ residual.flatten() / POSITION_SIGMA_M**2)[:, None]
        coefficients = torch.cholesky_solve(right, factor)[:, 0]
        coefficients[target.counts[0] :] = coefficients[target.counts[0] :].clamp(low, high)
    shape = mean + torch.einsum("k,kvd->vd", coefficients, basis)
    similarity = align_points(shape[None], goal[None])
    single = Similarity(similarity.scale.float(), similarity.rotation.float(), similarity.translation.float())
    return coefficients.float(), single


def _onto_surface(
    fitted: Float[Tensor, "V 3"],
    target: MorphableModel,
    vertices: Float[Tensor, "R 3"],
    own: MorphableModel,
    trusted: Float[Tensor, "V"],
) -> Float[Tensor, "V 3"]:
    """From the fitted surface to the reconstruction's, where the two lie close and face the same way."""
    normals = vertex_normals(fitted[None], target.triangles)[0]
    own_matcher = Matcher(vertices, own.triangles)
    found = own_matcher(fitted, normals)
    offsets = found.of(vertices) - fitted
    facing = (found.of(own_matcher.normals) * normals).sum(1) > 0.5
    counted = (facing & ~found.at_border & (found.distances < 0.008)).float() * (trusted > 0)
    return _smoothed(offsets * counted[:, None], counted, target.triangles)


def _smoothed(
    offsets: Float[Tensor, "V 3"], counted: Float[Tensor, "V"], triangles: Int[Tensor, "T 3"]
) -> Float[Tensor, "V 3"]:
    """The offsets where they count; elsewhere the mean of the neighbours', a few rings deep."""
    value, weight = offsets, counted
    for _ in range(3):
        sums, sizes = _neighbour_sums(value, weight, triangles)
        spread = sums / sizes.clamp(min=1e-6)[:, None]
        empty = weight == 0
        value = torch.where(empty[:, None] & (sizes > 0)[:, None], spread, value)
        weight = torch.where(empty & (sizes > 0), torch.ones_like(weight), weight)
    return value


def _neighbour_sums(
    values: Float[Tensor, "V 3"], weights: Float[Tensor, "V"], triangles: Int[Tensor, "T 3"]
) -> tuple[Float[Tensor, "V 3"], Float[Tensor, "V"]]:
    """Sums of values and of weights over the corners of the triangles around each vertex, but for itself."""
    sums, sizes = torch.zeros_like(values), torch.zeros_like(weights)
    for k in range(3):
        for other in ((k + 1) % 3, (k + 2) % 3):
            sums.index_add_(0, triangles[:, k], values[triangles[:, other]])
            sizes.index_add_(0, triangles[:, k], weights[triangles[:, other]])
    return sums, sizes


def _followed(
    fitted: Float[Tensor, "V 3"],
    offsets: Float[Tensor, "V 3"],
    trusted: Float[Tensor, "V"],
    *,
    triangles: Int[Tensor, "T 3"],
    surfaces: Int[Tensor, "V"],
) -> Float[Tensor, "V 3"]:
    """The offsets where they are trusted; elsewhere those of the trusted surface nearby, fading with the distance.

    Eyeballs, teeth and the lips' inner sides are no skin of the reconstruction, but have to go where it goes: a surface
    without any trust as one piece, the others without creases.
    """
    sure = (trusted > 0.5).nonzero()[:, 0]
    if len(sure) == 0:
        return trusted[:, None] * offsets
    sure = sure[:: max(len(sure) // SAMPLES, 1)]
    around = torch.zeros_like(offsets)
    for chunk in (trusted < 1).nonzero()[:, 0].split(_CHUNK):
        distances = torch.cdist(fitted[chunk], fitted[sure])
        near = distances.amin(1, keepdim=True)
        # Relative to the nearest, so that the weights of what lies far off do not all vanish.
        weights = torch.exp((near.square() - distances.square()) / (2 * _FOLLOW_SIGMA_M**2))
        fade = ((_FOLLOW_REACH_M - near) / (_FOLLOW_REACH_M - _FOLLOW_SIGMA_M)).clamp(0, 1)
        around[chunk] = fade * (weights @ offsets[sure]) / weights.sum(1, keepdim=True)
    field = trusted[:, None] * offsets + (1 - trusted)[:, None] * around
    inside = trusted
    for _ in range(_SEAM_RINGS):
        lowest = inside[triangles].amin(1).repeat_interleave(3)
        inside = inside.scatter_reduce(0, triangles.reshape(-1), lowest, "amin")
    for _ in range(2 * _SEAM_RINGS):
        sums, sizes = _neighbour_sums(field, torch.ones_like(inside), triangles)
        field = torch.lerp(sums / sizes.clamp(min=1)[:, None], field, torch.where(sizes > 0, inside, 1.0)[:, None])
    count = torch.bincount(surfaces)
    middle = torch.zeros(len(count), 3).index_add_(0, surfaces, field) / count.clamp(min=1)[:, None]
    alone = torch.bincount(surfaces, trusted) == 0
    alone[0] = False  # vertices without a triangle, each on its own
    return torch.where(alone[surfaces][:, None], middle[surfaces], field)


def _landmark_error(moved: Tensor, vertices: Tensor, own: MorphableModel, target: MorphableModel) -> float:
    distances = (moved[target.landmarks68[IBUG_INNER]] - vertices[own.landmarks68[IBUG_INNER]]).norm(dim=-1)
    return float(distances.mean())


def _surface_error(moved: Tensor, vertices: Tensor, own: MorphableModel, target: MorphableModel) -> DistanceSummary:
    parts = own.masks
    skin = (parts.skin > 0.5) & (parts.eyes < 0.5) & (parts.mouth < 0.5)
    areas = vertex_areas(vertices, submesh(own.triangles, skin))[skin]
    every = max(len(areas) // _MEASURED, 1)
    points, weights = vertices[skin][::every], areas[::every]
    return DistanceSummary.of(
        Surface(moved, target.triangles).near(points, margin=0.03).closest(points).distances, weights
    )
