"""Registers the packaged model's mean to another model's mean: similarity, landmark warp, then non-rigid ICP.

The displacement D of the reference's vertices minimises sum w_i |p_i + D_i - q_i|² + a sum_edges |D_i - D_j|², where
q_i is the matched point of the target, and the stiffness a decreases from round to round (Amberg, Romdhani and Vetter,
CVPR 2007, with displacements instead of affine maps). Solved by conjugate gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.errors import ConfigError
from mien.geometry import Matcher, Matches, Similarity, align_points, unique_edges, vertex_normals
from mien.morphable import MorphableModel
from mien.morphable.landmark_tables import IBUG_CONTOUR_COUNT
from mien.typing import Float, Int, Tensor

STIFFNESS = (30.0, 10.0, 10.0, 3.0, 3.0, 1.0, 1.0, 0.3, 0.3)
"""Stiffness of each round, relative to a match of weight one."""
LANDMARK_WEIGHT = 5.0
REACH_M = (0.03, 0.02, 0.02, 0.015, 0.015, 0.01, 0.01, 0.006, 0.006)
"""Largest distance of a match in each round."""
LANDMARK_SLACK_M = 0.002
"""Typical disagreement between the landmarks of two models; the warp smooths by it."""
FEWEST_LANDMARKS = 8
LANDMARK_REACH_M = 0.008
"""Largest RMS distance of the landmarks from the reference's. It is at most 4.6 mm for 60 random people and 2.0 mm for
ICT-FaceKit; 10 mm if every vertex number is one too large, 17 mm if left and right are exchanged."""
UPRIGHT_COSINE = 0.7
"""Cosine of the largest rotation allowed between the two meshes."""
_CG_STEPS = 120


@dataclass(frozen=True)
class Registration:
    """The reference's mean, deformed to the target's position and shape."""

    reference: MorphableModel
    """The model that was registered."""
    vertices: Float[Tensor, "R 3"]
    """Its deformed mean, in the target's space, metres."""
    scale: float
    """Size of the target relative to the reference."""
    target: Matcher
    """Finds closest points on the target."""
    rms_m: float
    """RMS distance from the registered skin to the target."""

    def onto_target(self, points: Float[Tensor, "P 3"], normals: Float[Tensor, "P 3"]) -> Matches:
        """Closest points on the target for points of the registered reference with their normals."""
        return self.target(points, normals)

    def on_reference(self) -> Matches:
        """Closest point on the registered reference for each vertex of the target."""
        own = Matcher(self.vertices, self.reference.triangles)
        return own(self.target.vertices, self.target.normals)


def register(
    reference: MorphableModel,
    vertices: Float[Tensor, "V 3"],
    triangles: Int[Tensor, "T 3"],
    landmarks: dict[int, int],
) -> Registration:
    """Register the reference's mean to a mesh that faces +z with +y up.

    Args:
        reference: The packaged model.
        vertices: Vertices of the mesh, metres.
        triangles: Its triangles.
        landmarks: Vertex by iBUG index; at least eight.

    Raises:
        ConfigError: There are fewer than eight landmarks, they do not fit the reference's, or the mesh is turned.
    """
    known = sorted(landmarks)
    if len(known) < FEWEST_LANDMARKS:
        raise ConfigError(
            f"{len(known)} of the 68 landmarks are known; a registration needs {FEWEST_LANDMARKS} or more. "
            "Give them with --landmarks: lines of 'iBUG-number vertex', both from 0."
        )
    own = reference.landmarks68[known]
    goal = vertices[torch.tensor([landmarks[k] for k in known])]
    # The position of contour points differs between annotations, so they are used only if inner points are too few.
    inner = torch.tensor([k >= IBUG_CONTOUR_COUNT for k in known])
    used = inner if int(inner.sum()) >= FEWEST_LANDMARKS else torch.ones_like(inner)
    similarity = align_points(reference.mean[own[used]][None].double(), goal[used][None].double())
    _check_alignment(similarity, reference.mean[own[used]], goal[used])
    start = similarity(reference.mean[None].double())[0].float()
    start = start + _landmark_warp(start, start[own[used]], goal[used])
    matcher = Matcher(vertices, triangles)
    moved = _icp(reference, start, matcher, own[used], goal[used])
    parts = reference.masks
    skin = (parts.skin > 0.5) & (parts.eyes < 0.5) & (parts.mouth < 0.5)
    normals = vertex_normals(moved[None], reference.triangles)[0]
    found = matcher(moved[skin], normals[skin])
    distances = found.distances[~found.at_border]
    return Registration(reference, moved, float(similarity.scale), matcher, float(distances.square().mean().sqrt()))


def _check_alignment(similarity: Similarity, own: Float[Tensor, "L 3"], goal: Float[Tensor, "L 3"]) -> None:
    """ConfigError if the initial alignment is wrong, since the registration would then deform the face."""
    scale = float(similarity.scale)
    offsets = similarity(own[None].double())[0] - goal
    rms_m = float(offsets.square().sum(-1).mean().sqrt()) / scale
    if not rms_m <= LANDMARK_REACH_M:
        raise ConfigError(
            f"landmarks lie {1000 * rms_m:.1f} mm (RMS) from their expected positions; a registration needs "
            f"{1000 * LANDMARK_REACH_M:.0f} mm or less. Check that iBUG numbers (0 to 67, starting at the subject's "
            "right jaw) and vertices are counted from 0."
        )
    rotation = similarity.rotation[0]
    if min(float(rotation[1, 1]), float(rotation[2, 2])) < UPRIGHT_COSINE:
        raise ConfigError(
            "the mesh does not face +z with +y up; rotate it before the conversion so that +x is the subject's left"
        )


def _landmark_warp(
    points: Float[Tensor, "R 3"], sources: Float[Tensor, "L 3"], goal: Float[Tensor, "L 3"]
) -> Float[Tensor, "R 3"]:
    """Biharmonic spline through the displacements of the landmarks, smoothed by the slack; affine far away."""
    centres, offsets = sources.double(), (goal - sources).double()
    count, centre = len(centres), centres.mean(0)

    def features(p: Tensor) -> Tensor:
        return torch.cat([torch.cdist(p, centres), torch.ones_like(p[:, :1]), p - centre], dim=1)

    basis = features(centres)
    system = torch.zeros(count + 4, count + 4, dtype=torch.float64)
    system[:count] = basis
    system[count:, :count] = basis[:, count:].T
    system[:count, :count] -= LANDMARK_SLACK_M * torch.eye(count)
    right = torch.cat([offsets, offsets.new_zeros(4, 3)])
    return (features(points.double()) @ torch.linalg.lstsq(system, right).solution).float()


def _icp(
    reference: MorphableModel, start: Tensor, matcher: Matcher, own: Int[Tensor, "L"], goal: Float[Tensor, "L 3"]
) -> Float[Tensor, "R 3"]:
    parts = reference.masks
    free = ((parts.mouth < 0.5) & (parts.eyes < 0.5)).nonzero()[:, 0]
    edges = unique_edges(reference.triangles)
    moved = start
    for k, (stiffness, reach) in enumerate(zip(STIFFNESS, REACH_M, strict=True)):
        sampled = free[k % 3 :: 3]  # a third of the vertices is enough: the others follow by stiffness
        normals = vertex_normals(moved[None], reference.triangles)[0]
        found = matcher(moved[sampled], normals[sampled])
        facing = (found.of(matcher.normals) * normals[sampled]).sum(1) > 0.5
        counted = (found.distances < reach) & facing & ~found.at_border
        weights = torch.zeros(len(start))
        weights[sampled] = counted.float()
        targets = torch.zeros_like(start)
        targets[sampled] = found.of(matcher.vertices) - start[sampled]
        weights[own] = LANDMARK_WEIGHT
        targets[own] = goal - start[own]
        moved = start + _smooth_solution(weights, targets, edges, stiffness=stiffness, guess=moved - start)
    return moved


def _smooth_solution(
    weights: Float[Tensor, "R"],
    targets: Float[Tensor, "R 3"],
    edges: Int[Tensor, "E 2"],
    *,
    stiffness: float,
    guess: Float[Tensor, "R 3"],
) -> Float[Tensor, "R 3"]:
    """Conjugate gradients on (W + a L) D = W Q, with Jacobi preconditioning."""
    a, b = edges.T
    degrees = torch.bincount(edges.reshape(-1), minlength=len(weights)).float()
    diagonal = (weights + stiffness * degrees)[:, None].clamp(min=1e-6)

    def applied(x: Tensor) -> Tensor:
        across = stiffness * (x[a] - x[b])
        return (weights[:, None] * x).index_add(0, a, across).index_add(0, b, -across)

    x = guess.clone()
    residual = weights[:, None] * targets - applied(x)
    direction = residual / diagonal
    power = (residual * direction).sum()
    for _ in range(_CG_STEPS):
        image = applied(direction)
        step = power / (direction * image).sum().clamp(min=1e-30)
        x = x + step * direction
        residual = residual - step * image
        scaled = residual / diagonal
        new_power = (residual * scaled).sum()
        if float(new_power) < 1e-16:
            break
        direction, power = scaled + new_power / power * direction, new_power
    return x
