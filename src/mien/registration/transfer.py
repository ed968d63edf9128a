"""Transfers a reconstruction to another model, which gives the same face on another topology.

reconstruction ── closest points between the two registered means ──► target position of each vertex
target model ── ridge regression on these positions ──► coefficients
positions ── minus the model's surface ──► offsets beyond the coefficients; eyeballs, teeth and scalp follow them
texture ── closest points between the two surfaces ──► texture in the target's UV map    transfer_face
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
from mien.registration.transfer_face import transferred_face
from mien.registration.uv_layout import connected_parts
from mien.result import Reconstruction
from mien.typing import Float, Int, Tensor

POSITION_SIGMA_M = 1e-3
"""Standard deviation of a registered position, weighed against the prior of one standard deviation per coefficient."""
SAMPLES = 4000
"""Number of vertices that determine the coefficients; neighbouring vertices are redundant."""
_ITERATIONS = 3
_MEASURED = 1500
"""Number of skin points of the surface error."""
_FOLLOW_SIGMA_M, _FOLLOW_REACH_M = 0.01, 0.05
"""Vertices that are not skin take a mean offset of the skin, weighted by a Gaussian of this width, up to the reach."""
_CHUNK = 2048
_SEAM_RINGS = 2
"""Rings of vertices at the edge of the skin over which offsets are smoothed."""


@dataclass(frozen=True)
class Transfer:
    """A face on the mesh of another model."""

    model: MorphableModel
    """The target model."""
    vertices: Float[Tensor, "V 3"]
    """In the model space of the reconstruction, metres."""
    identity: Float[Tensor, "I"]
    """Identity coefficients of the target model."""
    expression: Float[Tensor, "E"]
    """Expression coefficients of the target model."""
    landmark_error_m: float
    """Mean distance of the 51 inner landmarks of the two faces."""
    surface_error: DistanceSummary
    """From the reconstruction's skin to the transferred surface, metres."""
    face: Reconstruction
    """The face as a result of the target model, in its model space, with a texture in its UV map; for all exporters."""


def transfer(face: Reconstruction, own: MorphableModel, target: MorphableModel) -> Transfer:
    """Transfer a reconstruction to another model.

    Args:
        face: The reconstruction.
        own: The model that the reconstruction was made with.
        target: The model to transfer to.

    Returns:
        The face on the target's mesh, and its errors.

    Raises:
        ConfigError: The reconstruction was made with another model, or the two models cannot be registered.
    """
    if len(face.vertices_model) != len(own.mean):
        raise ConfigError(
            f"face has {len(face.vertices_model)} vertices, but the model {own.name!r} has {len(own.mean)}; load the "
            "model that the reconstruction was made with"
        )
    vertices = torch.from_numpy(face.vertices_model)
    landmarks = dict(enumerate(target.landmarks68.tolist()))
    registration = register(own, target.mean, target.triangles, landmarks)
    matches = registration.on_reference()
    surfaces = connected_parts(target.triangles, len(target.mean)) + 1
    trusted = _trust(own, matches, scale=registration.scale)
    skin = torch.bincount(surfaces, trusted).argmax()
    # The front of an eyeball lies close to the skin of the lids; only the surface with most skin is the face.
    trusted = trusted * (surfaces == skin)
    targets = matches.of(vertices)
    coefficients, similarity = _fitted(target, targets, trusted)
    identity, expression = coefficients.split(target.counts[:2])
    fitted = similarity(target.vertices(identity[None], expression[None]))[0]
    offsets = _onto_surface(fitted, target, vertices, own, trusted)
    moved = fitted + _followed(fitted, offsets, trusted, triangles=target.triangles, surfaces=surfaces)
    return Transfer(
        target, moved, identity, expression,
        landmark_error_m=_landmark_error(moved, vertices, own, target),
        surface_error=_surface_error(moved, vertices, own, target),
        face=transferred_face(
            face, own, target, vertices=moved, identity=identity, expression=expression, similarity=similarity
        ),
    )  # fmt: skip


def _trust(own: MorphableModel, matches: Matches, *, scale: float) -> Float[Tensor, "V"]:
    """Confidence that a target vertex corresponds to skin of the face: 1 on the skin, 0 beyond or inside it."""
    parts = own.masks
    skin = ((1 - parts.mouth) * (1 - parts.eyes))[:, None]
    near = (1.5 - matches.distances / (0.006 * scale)).clamp(0, 1)
    return near * matches.of(skin)[:, 0] * ~matches.at_border


def _fitted(
    target: MorphableModel, targets: Float[Tensor, "V 3"], trusted: Float[Tensor, "V"]
) -> tuple[Float[Tensor, "K"], Similarity]:
    """Alternate ridge regression of the coefficients with the similarity between the two model spaces."""
    confident = (trusted > 0.5).nonzero()[:, 0]
    chosen = confident[:: max(len(confident) // SAMPLES, 1)]
    basis = torch.cat([target.identity_basis, target.expression_basis])[:, chosen].double()
    sigma = torch.ones(len(basis), dtype=torch.float64)
    sigma[target.counts[0] :] = 0.25 if target.expression_kind == "strength" else 1.0
    columns = basis.flatten(1)
    normal = columns @ columns.T / POSITION_SIGMA_M**2 + torch.diag(sigma**-2)
    factor = torch.linalg.cholesky(normal)
    mean, goal = target.mean[chosen].double(), targets[chosen].double()
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
    """Offsets from the fitted surface to the reconstruction's, if the two are close and face the same way."""
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
    """Extend the counted offsets to other vertices by means of neighbours, over three rings."""
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
    """Sums of values and weights over the other corners of the triangles around each vertex."""
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
    """Extend trusted offsets to the other vertices, which take those of the nearest skin, fading with distance.

    Eyeballs, teeth and the inner sides of lips are not skin of the reconstruction but must follow it: a surface without
    trusted vertices as one rigid piece, the others without creases.
    """
    confident = (trusted > 0.5).nonzero()[:, 0]
    if len(confident) == 0:
        return trusted[:, None] * offsets
    confident = confident[:: max(len(confident) // SAMPLES, 1)]
    around = torch.zeros_like(offsets)
    for chunk in (trusted < 1).nonzero()[:, 0].split(_CHUNK):
        distances = torch.cdist(fitted[chunk], fitted[confident])
        near = distances.amin(1, keepdim=True)
        # Relative to the nearest vertex, so that weights do not all become zero far away.
        weights = torch.exp((near.square() - distances.square()) / (2 * _FOLLOW_SIGMA_M**2))
        fade = ((_FOLLOW_REACH_M - near) / (_FOLLOW_REACH_M - _FOLLOW_SIGMA_M)).clamp(0, 1)
        around[chunk] = fade * (weights @ offsets[confident]) / weights.sum(1, keepdim=True)
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
