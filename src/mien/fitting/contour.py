"""The occluding contour of a face, the only place where a single photo shows depth directly.

The image of the surface ends where the surface turns away from the camera. For each point of the contour of the model,
the photo is searched across the contour for the place where its colours stop being those of the face, and the point is
pulled there. Edges of the photo do not suffice: those of lips, lids and nostrils are stronger. The method is that of
Romdhani and Vetter (CVPR 2005), with colours instead of edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mien.camera import to_camera_axes
from mien.fitting.problem import ROBUST_SCALE_SQ, FitSettings, FitTargets
from mien.geometry import boundary_vertices, unique_edges, vertex_normals
from mien.losses import geman_mcclure
from mien.morphable import MorphableModel
from mien.morphable.per_model import per_model
from mien.rendering import (
    VISIBILITY_SLACK_M,
    RenderOutput,
    facing_camera,
    sample_image,
    sample_nearest,
    visible_vertices,
)
from mien.typing import Bool, Float, Int, Tensor

REACH_SHARE = 0.06
"""Distance to which the photo is searched on each side of the contour, as a share of the size of the face."""
SAMPLES = 25
"""Number of samples across the contour; they are about a pixel of the crop apart."""
WINDOW = 4
"""Number of samples on each side of a candidate end of the face that are compared."""
UNLIKE = 0.2
"""Colour distance from which a sample is not part of the face: the accuracy of the fitted light near the contour."""
CONTRAST = (0.3, 0.7)
"""Difference of dissimilarity between outside and inside: up to the first value an end is ignored, from the second on
it is certain."""
NEARNESS = 0.3
"""Penalty of an end at the limit of the search against one in its middle, in the same unit."""
AMBIGUITY = 0.1
"""Difference, in the same unit, up to which candidate ends count alike. The end is their mean: the best of them alone
would jump, and with it the shape by up to 1 mm, when the photo changes in its last bit."""
BEHIND_SHARE = 0.02
"""A contour point is used only if there is no face at this distance outside it, as a share of the size of the face.
Where the nose is in front of the cheek, the photo shows no change of colour."""
BOUNDARY_REACH_M = (0.02, 0.04)
"""Distance from the boundary of the mesh: up to the first value the contour in the photo is that of ears, hair or neck,
from the second on it is that of the face."""
UNDERSIDE = (0.3, 0.6)
"""Downward component of the normal of the mean face. Up to the first value there may be background outside the
contour. From the second on there is skin outside it, mostly of the neck, which has the colour of the face and a contour
of its own."""
EFFECTIVE_POINTS = 60.0
"""Number of independent points of a whole contour: like those of landmarks, the errors of neighbouring points are
correlated."""
WHOLE_CONTOUR_M = 0.05
"""Smallest sum of the lengths of the mesh edges that a whole contour crosses. A face seen from the front has a shorter
contour, which counts less."""


@dataclass(frozen=True)
class ContourMesh:
    """The edges of the mesh of a model, and the vertices at which its contour can be compared with a photo."""

    edges: Int[Tensor, "E 2"]
    """Each edge once, as two vertex numbers."""
    trust: Float[Tensor, "V"]
    """Weight per vertex: 0 near the boundary of the mesh, in the eyes and above the neck; 1 elsewhere."""

    @classmethod
    def of(cls, model: MorphableModel) -> ContourMesh:
        """Edges and trust of the mean face of a model, computed once per model."""
        return per_model(model, _contour_mesh)


def _contour_mesh(model: MorphableModel) -> ContourMesh:
    trust = 1 - model.masks.eyes
    boundary = boundary_vertices(model.triangles)
    if len(boundary):
        near, far = BOUNDARY_REACH_M
        distance = torch.cdist(model.mean, model.mean[boundary]).amin(1)
        trust = trust * ((distance - near) / (far - near)).clamp(0, 1)
    down = -vertex_normals(model.mean[None], model.triangles)[0, :, 1]
    side, under = UNDERSIDE
    trust = trust * ((under - down) / (under - side)).clamp(0, 1)
    return ContourMesh(unique_edges(model.triangles), trust)


@dataclass(frozen=True)
class _Contour:
    """Occluding contour of rendered faces: a point on each of N mesh edges from a vertex that faces the camera to one
    that does not."""

    ends: Int[Tensor, "B N 2"]
    """Vertices of the edge."""
    shares: Float[Tensor, "B N 2"]
    """Weights of the two vertices in the point."""
    points_px: Float[Tensor, "B N 2"]
    """Position of the point; the only differentiable field."""
    normals: Float[Tensor, "B N 2"]
    """Unit normals of the contour in the image, outwards; y down."""
    colours: Float[Tensor, "B N 3"]
    """Colour of the face at the point."""
    weights: Float[Tensor, "B N"]
    """Length of the mesh edge times its trust, metres; 0 for padding and for points in front of the face itself."""


@dataclass(frozen=True)
class ContourErrors:
    """Errors of N points of the occluding contour; the energy is half of the weighted sum of their robust squares."""

    ends: Int[Tensor, "B N 2"]
    """Vertices between which each point lies."""
    shares: Float[Tensor, "B N 2"]
    """Weights of the two vertices in the point."""
    normals: Float[Tensor, "B N 2"]
    """Direction in the image along which the error is measured; y down."""
    errors: Float[Tensor, "B N"]
    """Distance from the contour of the photo in standard deviations; differentiable in the rendered vertices."""
    weights: Float[Tensor, "B N"]
    """Number of independent points that the point counts as."""


def contour_energy(
    mesh: ContourMesh, rendered: RenderOutput, targets: FitTargets, settings: FitSettings
) -> Float[Tensor, ""]:
    """Robust squared distance, across the contour, between the contours of the model and of the photo.

    Args:
        mesh: Edges and trust of the model.
        rendered: The rendered faces.
        targets: The photos.
        settings: Gives the standard deviation of the distance.

    Returns:
        Energy, summed over the faces; differentiable in the rendered vertices.
    """
    contour = contour_errors(mesh, rendered, targets, settings)
    return 0.5 * geman_mcclure(contour.errors.square(), scale_sq=ROBUST_SCALE_SQ, weights=contour.weights).sum()


def contour_errors(
    mesh: ContourMesh, rendered: RenderOutput, targets: FitTargets, settings: FitSettings
) -> ContourErrors:
    """The errors of which `contour_energy` is the sum.

    Args:
        mesh: Edges and trust of the model.
        rendered: The rendered faces.
        targets: The photos.
        settings: Gives the standard deviation of the distance.
    """
    contour = _occluding_contour(mesh, rendered, targets)
    size = targets.extent_px[:, None]
    with torch.no_grad():
        distance_px, confidence = _search(contour, targets.crops, reach_px=REACH_SHARE * size)
        ends_px = contour.points_px + contour.normals * distance_px[..., None]
        whole = contour.weights.sum(1, keepdim=True).clamp(min=WHOLE_CONTOUR_M)
        inner_px = contour.points_px - contour.normals * (BEHIND_SHARE * size)[..., None]
        weights = EFFECTIVE_POINTS * contour.weights * confidence / whole * targets.trust(inner_px)
    errors = ((contour.points_px - ends_px) * contour.normals).sum(-1) / (settings.contour_sigma * size)
    return ContourErrors(contour.ends, contour.shares, contour.normals, errors, weights)


def _occluding_contour(mesh: ContourMesh, rendered: RenderOutput, targets: FitTargets) -> _Contour:
    surface = rendered.surface
    crossing, facing = _crossing_edges(mesh, rendered)
    most = int(crossing.sum(1).max())
    chosen = crossing.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
    kept = crossing.gather(1, chosen)
    ends = mesh.edges[chosen]  # B N 2
    # The contour crosses the edge where the interpolated cosine is zero.
    share = facing.gather(1, ends[..., 0]) / (facing.gather(1, ends[..., 0]) - facing.gather(1, ends[..., 1]))
    shares = torch.stack([1 - share, share], dim=-1).where(kept[..., None], 0.5)

    def between(values: Float[Tensor, "B V C"]) -> Float[Tensor, "B N C"]:
        picked = values.gather(1, ends.flatten(1)[..., None].expand(-1, -1, values.shape[-1]))
        return (picked.unflatten(1, (-1, 2)) * shares[..., None]).sum(2)

    points_px = targets.camera.project(between(surface.vertices_camera))
    with torch.no_grad():
        normals = F.normalize(to_camera_axes(between(surface.normals)[..., :2]), dim=-1)
        outside = points_px + normals * (BEHIND_SHARE * targets.extent_px)[:, None, None]
        uncovered = sample_nearest(rendered.triangle_ids, outside) < 0
        first, second = (surface.vertices_camera.gather(1, k[..., None].expand(-1, -1, 3)) for k in ends.unbind(-1))
        weights = kept * uncovered * (first - second).norm(dim=-1) * mesh.trust[ends].amin(-1)
        return _Contour(ends, shares, points_px, normals, between(surface.colours), weights)


@torch.no_grad()
def _crossing_edges(mesh: ContourMesh, rendered: RenderOutput) -> tuple[Bool[Tensor, "B E"], Float[Tensor, "B V"]]:
    """The trusted, visible edges that the occluding contour crosses, and the cosine to the camera at the vertices."""
    facing = facing_camera(rendered.surface)
    visible = visible_vertices(rendered.surface, rendered.vertices_px, rendered.depth, slack_m=VISIBILITY_SLACK_M) > 0
    first, second = mesh.edges.unbind(1)
    crossing = (facing[:, first] * facing[:, second] < 0) & (visible[:, first] | visible[:, second])
    return crossing & (torch.minimum(mesh.trust[first], mesh.trust[second]) > 0), facing


def _search(
    contour: _Contour, crops: Float[Tensor, "B 3 S S"], *, reach_px: Float[Tensor, "B 1"]
) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]]:
    """Find the end of the face in the photo.

    Args:
        contour: Points at which the search is centred.
        crops: The photos.
        reach_px: Distance of the search on each side, pixels.

    Returns:
        Signed distance outwards from each point to the end of the face, pixels, and its confidence, 0 to 1.
    """
    steps = torch.linspace(-1, 1, SAMPLES, device=crops.device)
    offsets = steps * reach_px[..., None]
    points = contour.points_px[:, :, None] + contour.normals[:, :, None] * offsets[..., None]
    colours = sample_image(crops, points.flatten(1, 2)).unflatten(1, points.shape[1:3])
    unlike = ((colours - contour.colours[:, :, None]).square().sum(-1) / UNLIKE**2).clamp(max=1)
    means = unlike.unfold(-1, WINDOW, 1).mean(-1)
    contrast = means[..., WINDOW:] - means[..., :-WINDOW]
    # Between the last sample of the inner window and the first of the outer one.
    ends = (steps[WINDOW - 1 : -WINDOW] + steps[WINDOW : 1 - WINDOW]) / 2
    likely = ((contrast - NEARNESS * ends**2) / AMBIGUITY).softmax(-1)
    low, high = CONTRAST
    confidence = ((likely * contrast).sum(-1) - low) / (high - low)
    return (likely * ends).sum(-1) * reach_px, confidence.clamp(0, 1)
