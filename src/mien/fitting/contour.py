"""The occluding contour, the face's outline against what lies behind it: where a single photo shows depth directly.

Where the surface turns away from the camera its picture ends. Each point of the model's outline looks across itself for
the place where the photo stops looking like the face, and is drawn there. Edges alone would not do: lips, lids and
nostrils have stronger ones. The method is that of Romdhani and Vetter (CVPR 2005), with colours in place of edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mien.fitting.problem import FitSettings, FitTargets
from mien.geometry import boundary_vertices, unique_edges, vertex_normals
from mien.morphable import MorphableModel
from mien.rendering import (
    VISIBILITY_SLACK_M,
    RenderOutput,
    facing_camera,
    sample_image,
    sample_nearest,
    visible_vertices,
)
from mien.typing import Float, Int, Tensor

REACH_SHARE = 0.06
"""How far to each side of the outline the photo is searched, in parts of the face's size."""
PLACES = 25
"""Samples along that line: about a pixel of the crop apart."""
WINDOW = 4
"""Samples before and behind the end of the face that are compared."""
UNLIKE = 0.2
"""Colour distance from which a sample is no part of the face; the light of the fit is this good beside the outline."""
CONTRAST = (0.3, 0.7)
"""How much less alike the outside must be than the inside, of 1, to be looked at and to be sure of."""
NEARNESS = 0.3
"""What the far end of the search costs beside its middle, in the same measure."""
BEHIND_SHARE = 0.02
"""This far beyond the outline the model itself must not be: a nose before its own cheek ends without a new colour."""
RIM_REACH_M = (0.02, 0.04)
"""Nearer to the end of the mesh than the first the photo's outline is that of ears, hair or neck; from the second on it
is the face's."""
UNDERSIDE = (0.3, 0.6)
"""Downward part of the mean face's normal: up to the first there may be background beyond the outline; from the second
on there is more skin below, that of the neck above all, which has the face's colour and an outline of its own."""
EFFECTIVE_POINTS = 60.0
"""Independent places of a whole outline; their errors go together as those of landmarks do."""
WHOLE_OUTLINE_M = 0.05
"""Summed length of the mesh edges that a whole outline crosses, at the least; seen from the front there may be hardly
any."""


@dataclass(frozen=True)
class ContourMesh:
    """What of a model's mesh can be an outline."""

    edges: Int[Tensor, "E 2"]
    trust: Float[Tensor, "V"]
    """0 where the mesh ends, an eye is or the face looks down on the neck; 1 elsewhere."""

    @classmethod
    def of(cls, model: MorphableModel) -> ContourMesh:
        """Of the mean face."""
        trust = 1 - model.masks.eyes
        rim = boundary_vertices(model.triangles)
        if len(rim):
            near, far = RIM_REACH_M
            away = torch.cdist(model.mean, model.mean[rim]).amin(1)
            trust = trust * ((away - near) / (far - near)).clamp(0, 1)
        down = -vertex_normals(model.mean[None], model.triangles)[0, :, 1]
        side, under = UNDERSIDE
        trust = trust * ((under - down) / (under - side)).clamp(0, 1)
        return cls(unique_edges(model.triangles), trust)


@dataclass(frozen=True)
class _Contour:
    """Where the drawn face ends: a point on each of N mesh edges between a vertex that faces the camera and one that
    does not."""

    points_px: Float[Tensor, "B N 2"]
    """Differentiable; nothing else here is."""
    normals: Float[Tensor, "B N 2"]
    """Outwards in the picture, of unit length."""
    colours: Float[Tensor, "B N 3"]
    weights: Float[Tensor, "B N"]
    """The mesh edge's length times its trust; 0 for what only fills the batch."""


def contour_energy(
    mesh: ContourMesh, drawn: RenderOutput, targets: FitTargets, settings: FitSettings
) -> Float[Tensor, ""]:
    """Robust squared distance, across the outline, between where the model and where the face in the photo ends."""
    contour = _occluding_contour(mesh, drawn, targets)
    if contour.weights.shape[1] == 0:
        return drawn.image.new_zeros(())
    size = targets.extent_px[:, None]
    with torch.no_grad():
        beyond, sureness = _search(contour, targets.crops, reach_px=REACH_SHARE * size)
        ends = contour.points_px + contour.normals * beyond[..., None]
    off = ((contour.points_px - ends) * contour.normals).sum(-1) / (settings.contour_sigma * size)
    robust = off**2 / (1 + off**2 / 9)
    weights = contour.weights
    per_face = (weights * sureness * robust).sum(1) / weights.sum(1).clamp(min=WHOLE_OUTLINE_M)
    return 0.5 * EFFECTIVE_POINTS * per_face.sum()


def _occluding_contour(mesh: ContourMesh, drawn: RenderOutput, targets: FitTargets) -> _Contour:
    surface = drawn.surface
    with torch.no_grad():
        facing = facing_camera(surface)
        seen = visible_vertices(surface, drawn.vertices_px, drawn.depth, slack_m=VISIBILITY_SLACK_M) > 0
        first, second = mesh.edges.unbind(1)
        crossing = (facing[:, first] * facing[:, second] < 0) & (seen[:, first] | seen[:, second])
        crossing &= torch.minimum(mesh.trust[first], mesh.trust[second]) > 0
        most = int(crossing.sum(1).max())
        chosen = crossing.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
        kept = crossing.gather(1, chosen)
        ends = mesh.edges[chosen]  # B N 2
        share = facing.gather(1, ends[..., 0]) / (facing.gather(1, ends[..., 0]) - facing.gather(1, ends[..., 1]))
        shares = torch.stack([1 - share, share], dim=-1).where(kept[..., None], 0.5)

    def between(values: Float[Tensor, "B V C"]) -> Float[Tensor, "B N C"]:
        picked = values.gather(1, ends.flatten(1)[..., None].expand(-1, -1, values.shape[-1]))
        return (picked.unflatten(1, (-1, 2)) * shares[..., None]).sum(2)

    points_px = targets.camera.project(between(surface.vertices_camera))
    with torch.no_grad():
        normals = between(surface.normals)[..., :2] * surface.normals.new_tensor([1.0, -1.0])  # rows run downwards
        normals = F.normalize(normals, dim=-1)
        place = points_px + normals * (BEHIND_SHARE * targets.extent_px)[:, None, None]
        alone = sample_nearest(drawn.triangle_ids, place) < 0
        one, other = (surface.vertices_camera.gather(1, k[..., None].expand(-1, -1, 3)) for k in ends.unbind(-1))
        weights = kept * alone * (one - other).norm(dim=-1) * mesh.trust[ends].amin(-1)
        return _Contour(points_px, normals, between(surface.colours), weights)


def _search(
    contour: _Contour, crops: Float[Tensor, "B 3 S S"], *, reach_px: Float[Tensor, "B 1"]
) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]]:
    """How far outwards the face ends in the photo, pixels, and how sure that is, 0 to 1."""
    steps = torch.linspace(-1, 1, PLACES, device=crops.device)
    offsets = steps * reach_px[..., None]
    places = contour.points_px[:, :, None] + contour.normals[:, :, None] * offsets[..., None]
    seen = sample_image(crops, places.flatten(1, 2)).unflatten(1, places.shape[1:3])
    unlike = ((seen - contour.colours[:, :, None]).square().sum(-1) / UNLIKE**2).clamp(max=1)
    means = unlike.unfold(-1, WINDOW, 1).mean(-1)
    contrast = means[..., WINDOW:] - means[..., :-WINDOW]
    # Between the last sample of the inner window and the first of the outer one.
    ends = (steps[WINDOW - 1 : -WINDOW] + steps[WINDOW : 1 - WINDOW]) / 2
    best = (contrast - NEARNESS * ends**2).argmax(-1)
    low, high = CONTRAST
    sureness = (contrast.gather(-1, best[..., None])[..., 0] - low) / (high - low)
    return ends[best] * reach_px, sureness.clamp(0, 1)
