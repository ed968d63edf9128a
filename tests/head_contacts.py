"""How deep the parts of a head enter each other, and realistic mixtures of facial actions to try."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mien.geometry import closest_barycentrics, vertex_normals
from mien.geometry.matching import triangles_around
from mien.morphable import HeadModel, MorphableModel
from mien.morphable.head import EYES
from mien.typing import Float, Int, Tensor

NEAR_MM = 6.0
"""A point farther from a surface than this is not in it: the sides of a thin lip are never as far apart."""
MOST_POINTS = 400
"""Tried of each part, evenly, for speed: about one in two millimetres."""
LID_MM = 24.0
"""Skin nearer to the centre of an eyeball than this is a lid."""


@dataclass(frozen=True)
class Contact:
    """Points that may touch a surface but not lie behind it."""

    name: str
    points: Int[Tensor, "P"]
    triangles: Int[Tensor, "T 3"]
    """Over their own vertices, as is `around`."""
    vertices: Int[Tensor, "N"]
    around: Int[Tensor, "N D"]
    border: Tensor
    flesh: Int[Tensor, "F 3"] | None
    """Triangles of the shape around the flesh that the surface belongs to. A lip rolled in folds over, and there the
    normal of the closest point does not tell the side; the number of surfaces in front of a point does."""

    @classmethod
    def of(
        cls, name: str, points: Int[Tensor, "P"], triangles: Int[Tensor, "T 3"], flesh: Int[Tensor, "F 3"] | None = None
    ) -> Contact:
        vertices, local = torch.unique(triangles, return_inverse=True)
        edges = torch.cat([local[:, [0, 1]], local[:, [1, 2]], local[:, [2, 0]]]).sort(1).values
        unique, count = torch.unique(edges, dim=0, return_counts=True)
        border = torch.zeros(len(vertices), dtype=torch.bool)
        border[unique[count == 1]] = True
        return cls(name, points, local, vertices, triangles_around(local, len(vertices)), border, flesh)

    def deepest(self, shape: Float[Tensor, "W 3"]) -> float:
        """Depth of the deepest point, millimetres."""
        return float(self.depths(shape).max())

    def depths(self, shape: Float[Tensor, "W 3"]) -> Float[Tensor, "P"]:
        """How far each point lies behind the surface; 0 before it. In the unit of the shape, millimetres."""
        surface, points = shape[self.vertices], shape[self.points]
        normals = vertex_normals(surface[None], self.triangles)[0]
        around = self.around[torch.cdist(points, surface).argmin(1)]
        corners = self.triangles[around.clamp(min=0)]
        weights = closest_barycentrics(points[:, None], surface[corners])
        found = (weights[..., None] * surface[corners]).sum(-2)
        distances = (found - points[:, None]).norm(dim=-1).masked_fill(around < 0, torch.inf)
        best, winner = distances.min(1)
        row = torch.arange(len(points))
        corner, weight = corners[row, winner], weights[row, winner]
        outward = (weight[..., None] * normals[corner]).sum(1)
        behind = -((points - found[row, winner]) * outward).sum(1)
        counts = (best < NEAR_MM) & ~self.border[corner].any(1) & (behind > 0)
        if self.flesh is not None and counts.any():
            counts[counts.clone()] = crossings(points[counts], shape[self.flesh]) % 2 == 1
        return torch.where(counts, behind, 0.0)


def crossings(points: Float[Tensor, "P 3"], triangles: Float[Tensor, "T 3 3"]) -> Int[Tensor, "P"]:
    """How many triangles lie before each point, along +z."""
    low, high = points[:, :2].amin(0), points[:, :2].amax(0)
    around = (triangles[..., :2].amin(1) <= high).all(1) & (triangles[..., :2].amax(1) >= low).all(1)
    a, b, c = triangles[around].double().unbind(1)
    at = points[:, None].double()

    def area(p: Tensor, q: Tensor, r: Tensor) -> Tensor:
        return (q - p)[..., 0] * (r - p)[..., 1] - (q - p)[..., 1] * (r - p)[..., 0]

    whole = area(a, b, c)
    weights = torch.stack([area(at, b, c), area(at, c, a), area(at, a, b)], -1) / whole[:, None]
    height = (weights * torch.stack([a, b, c], 1)[..., 2]).sum(-1)
    return ((weights > 0).all(-1) & (height > at[..., 2])).sum(1)


def contacts_of(model: MorphableModel, head: HeadModel) -> list[Contact]:
    """All pairs of parts that meet: lids and eyeballs, and the parts of the mouth."""
    face_count = len(model.mean)
    mean = 1000 * torch.cat([model.mean, head.mean])
    joint = {part.name: part.vertices[part.triangles] for part in head.parts}
    vertices = {name: torch.unique(triangles) for name, triangles in joint.items()}
    found = []
    is_lid = torch.zeros(len(mean), dtype=torch.bool)
    is_lid[vertices["skin"]] = True
    is_lid[:face_count] &= model.masks.eyes < 0.5
    for name, centre in zip(EYES, head.eye_centres, strict=True):
        near = (mean - mean[face_count + centre]).norm(dim=1) < LID_MM
        found.append(Contact.of(f"lids in {name}", (is_lid & near).nonzero()[:, 0], joint[name]))
    is_lip = torch.zeros(len(mean), dtype=torch.bool)
    is_lip[:face_count] = (model.masks.lips > 0.5) | (model.masks.mouth > 0.5)
    lips = joint["skin"][is_lip[joint["skin"]].all(1)]
    upper_teeth, lower_teeth = vertices["teeth"].chunk(2)  # the rows have the same number of vertices
    is_upper = torch.zeros(len(mean), dtype=torch.bool)
    is_upper[upper_teeth] = True
    crowns = joint["teeth"][is_upper[joint["teeth"]].all(1)]
    flesh = torch.cat([joint["skin"], joint["mouth"]])
    found += [Contact.of(f"{name} in lips", vertices[name], lips, flesh) for name in ("teeth", "gums", "tongue")]
    found += [Contact.of(f"tongue in {name}", vertices["tongue"], joint[name]) for name in ("teeth", "gums")]
    found.append(Contact.of("lower in upper teeth", lower_teeth, crowns))
    return [replace(contact, points=contact.points[:: max(1, len(contact.points) // MOST_POINTS)]) for contact in found]


def random_expression(names: tuple[str, ...], generator: torch.Generator) -> Float[Tensor, "E"]:
    """A mixture as fits of photos show them.

    Three to eight actions, most of them weak (the square of a uniform strength); both sides of a pair together, within
    0.1; both eyes look the same way. Where the tongue comes out, the mouth is open and the lips do nothing else.
    """

    def uniform() -> float:
        return float(torch.rand(1, generator=generator))

    values = dict.fromkeys(names, 0.0)
    single = [name for name in names if not name.endswith(("Left", "Right")) and name != "mouthClose"]
    paired = sorted({name[:-4] for name in names if name.endswith("Left") and not name.startswith(("eyeLook", "jaw"))})
    paired.remove("mouth")  # mouthLeft and mouthRight are no pair
    pool = single + paired
    for k in torch.randperm(len(pool), generator=generator)[: 3 + int(6 * uniform())].tolist():
        strength = uniform() ** 2
        if pool[k] in values:
            values[pool[k]] = strength
        else:
            for side in ("Left", "Right"):
                values[pool[k] + side] = min(max(strength + 0.2 * (uniform() - 0.5), 0.0), 1.0)
    across, up = 2 * uniform() - 1, 2 * uniform() - 1
    for side, inward in (("Left", -across), ("Right", across)):
        values[f"eyeLookIn{side}"], values[f"eyeLookOut{side}"] = max(inward, 0.0) ** 2, max(-inward, 0.0) ** 2
        values[f"eyeLookUp{side}"], values[f"eyeLookDown{side}"] = max(up, 0.0) ** 2, max(-up, 0.0) ** 2
    if values["tongueOut"]:
        values |= {name: 0.0 for name in names if name.startswith(("mouth", "jaw"))}
        values["jawOpen"] = 0.4 + 0.4 * values["tongueOut"]
    return torch.tensor([values[name] for name in names])
