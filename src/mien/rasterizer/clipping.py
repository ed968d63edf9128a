"""Cuts triangles at the near plane, before any backend rasterizes them.

A triangle with corners on both sides of z = near is replaced by its part beyond the plane: one triangle, or two if that
part has four corners. The new corners lie on the old edges. For an edge from A to B across the plane,

    P = A + t (B - A),    t = (near - z_A) / (z_B - z_A),

where edges are straight: in camera space, whose x and y are NDC times z, or on the screen for PyTorch3D's linear depth.
Attributes are mixed by the same t. The NDC of a corner behind the camera have no meaning on the screen, but they still
determine where its edges leave the image.

The kernels and the specification rasterize the same cut mesh. The specification gets its gradients from autograd, the
kernels from `ClippedMesh.pull_back`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.rasterizer.settings import RasterSettings
from mien.typing import Bool, Float, Int, Tensor

__all__ = ["ClippedMesh", "clip_near"]


@dataclass(frozen=True)
class _CutEdges:
    """Edges from A to B that each get a new corner; positions in float64, because differences lose digits."""

    ends: Int[Tensor, "B E 2"]
    """Vertex indices of A and B."""
    positions: Float[Tensor, "B E 2 3"]
    attributes: Float[Tensor, "B E 2 C"] | None
    near: Float[Tensor, "B 1"]
    crossing: Float[Tensor, "B E"]
    """1 where the edge crosses the plane, else 0; then the new corner is A, and no triangle uses it."""
    linear_depth: bool

    @property
    def fraction(self) -> Float[Tensor, "B E"]:
        """t, the position of the new corner between A and B."""
        z = self.positions[..., 2]
        return self.crossing * (self.near - z[..., 0]) / self._rise

    @property
    def _rise(self) -> Tensor:
        z = self.positions[..., 2]
        return torch.where(self.crossing > 0, z[..., 1] - z[..., 0], 1.0)

    def _scales(self) -> tuple[Tensor, Tensor]:
        """Factors from NDC to the space where edges are straight, for both ends, and back, for the new corner."""
        if self.linear_depth:
            return torch.ones_like(self.positions[..., 2:]), torch.ones_like(self.near[..., None])
        return self.positions[..., 2:], 1 / self.near[..., None]

    def corners(self, dtype: torch.dtype) -> Float[Tensor, "B E 3"]:
        """Positions of the new corners, in NDC."""
        scale, back = self._scales()
        start, end = (self.positions[..., :2] * scale).unbind(2)
        xy = torch.lerp(start, end, self.fraction[..., None]) * back
        most = torch.finfo(dtype).max
        return torch.cat([xy.clamp(-most, most), self.near[..., None].expand(*xy.shape[:2], 1)], -1).to(dtype)

    def mixed_attributes(self) -> Float[Tensor, "B E C"]:
        """Attributes of the new corners."""
        assert self.attributes is not None
        start, end = self.attributes.unbind(2)
        return torch.lerp(start, end, self.fraction[..., None].to(self.attributes.dtype))

    def pull_back(
        self, to_corners: Float[Tensor, "B E 3"], to_mixed: Float[Tensor, "B E C"]
    ) -> tuple[Float[Tensor, "B E 2 3"], Float[Tensor, "B E 2 C"]]:
        """Gradients of both ends from those of the new corners: positions, then attributes."""
        assert self.attributes is not None
        used = self.crossing[..., None]
        scale, back = self._scales()
        straight = self.positions[..., :2] * scale
        to_straight = to_corners[..., :2].double() * back * used
        to_mixed = to_mixed.double() * used
        fraction = torch.stack([1 - self.fraction, self.fraction], -1)  # of A and of B
        steps = straight.diff(dim=2)[:, :, 0], self.attributes.double().diff(dim=2)[:, :, 0]
        to_fraction = sum(
            (gradient * step).sum(-1) for gradient, step in zip((to_straight, to_mixed), steps, strict=True)
        )
        to_xy = to_straight[:, :, None] * fraction[..., None]
        to_z = -(to_fraction / self._rise)[..., None] * fraction
        if not self.linear_depth:
            to_z = to_z + (to_xy * self.positions[..., :2]).sum(-1)
        to_positions = torch.cat([to_xy * scale, to_z[..., None]], -1)
        kind = self.attributes.dtype
        return to_positions.to(kind), (to_mixed[:, :, None] * fraction[..., None]).to(kind)


@dataclass(frozen=True)
class ClippedMesh:
    """A batch of meshes in which no triangle with an area crosses the near plane.

    The n triangles that cross it in at least one image are cut in all images. Triangle `cut[i]` keeps its place for the
    first part; T + i is the second part. If there is no second part, its three corners coincide and it is not visible.
    """

    vertices: Float[Tensor, "B N 3"]
    """The V old vertices, then the two new corners P and Q of each cut triangle."""
    triangles: Int[Tensor, "B S 3"]
    attributes: Float[Tensor, "B N C"] | None
    cut: Int[Tensor, "n"]
    weights: Float[Tensor, "B 2*n 3 3"]
    """Barycentrics of the parts' corners in the whole triangle: all first parts, then all second parts."""
    edges: _CutEdges

    def restore(
        self, ids: Int[Tensor, "B H W"], barycentrics: Float[Tensor, "B H W 3"]
    ) -> tuple[Int[Tensor, "B H W"], Float[Tensor, "B H W 3"]]:
        """Ids and barycentrics with respect to the triangles before the cut."""
        count, total = len(self.cut), self.triangles.shape[1]
        part = torch.full((total,), -1, device=ids.device)
        part[self.cut] = torch.arange(count, device=ids.device)
        part[total - count :] = torch.arange(count, 2 * count, device=ids.device)
        origin = torch.arange(total, dtype=ids.dtype, device=ids.device)
        origin[total - count :] = self.cut.to(ids.dtype)
        hit, drawn = ids >= 0, ids.clamp(min=0).long()
        which = torch.where(hit, part[drawn], -1)
        image = torch.arange(len(ids), device=ids.device)[:, None, None]
        mixed = torch.einsum("...k,...kj->...j", barycentrics, self.weights[image, which.clamp(min=0)])
        return torch.where(hit, origin[drawn], -1), torch.where((which >= 0)[..., None], mixed, barycentrics)

    def pull_back(
        self, vertices_grad: Float[Tensor, "B N 3"], attributes_grad: Float[Tensor, "B N C"]
    ) -> tuple[Float[Tensor, "B V 3"], Float[Tensor, "B V C"]]:
        """Gradients of the old vertices and attributes from those of the new ones, by the chain rule."""
        count = vertices_grad.shape[1] - 2 * len(self.cut)
        to_positions, to_attributes = self.edges.pull_back(vertices_grad[:, count:], attributes_grad[:, count:])
        ends = self.edges.ends.flatten(1)[..., None]

        def add(gradient: Tensor, to_ends: Tensor) -> Tensor:
            return gradient[:, :count].scatter_add(1, ends.expand(-1, -1, gradient.shape[-1]), to_ends.flatten(1, 2))

        return add(vertices_grad, to_positions), add(attributes_grad, to_attributes)


def clip_near(
    vertices: Float[Tensor, "B V 3"],
    triangles: Int[Tensor, "*b T 3"],
    attributes: Float[Tensor, "B V C"] | None,
    near: Float[Tensor, "B"],
    settings: RasterSettings,
    *,
    shapes_only: bool = False,
) -> ClippedMesh | None:
    """Cut all triangles that cross z = near; differentiable in vertices and attributes.

    Args:
        vertices: NDC and depth.
        triangles: (T, 3) for all images or (B, T, 3).
        attributes: C channels per vertex, or None for hard rasterization.
        near: One depth per image.
        settings: `near_clipping` and the definition of depth are used.
        shapes_only: Read no values, so that nothing waits for a GPU. Then all triangles get memory for a second part,
            and indices out of range stay, for the kernels to leave out.

    Returns:
        The cut mesh, or None if no triangle crosses the plane or `settings` turn clipping off.
    """
    batch, count, _ = vertices.shape
    if not settings.near_clipping or 0 in (batch, count, triangles.shape[-2]):
        return None
    if not shapes_only and not bool((vertices.detach()[..., 2].amin(1) < near).any()):
        return None
    triangles = triangles.long().expand(batch, -1, -1)
    crossing = _find_crossing(vertices, triangles, near, shapes_only=shapes_only)
    if len(crossing.cut) == 0:
        return None
    a, b, c = crossing.from_alone.unbind(-1)
    ends = torch.stack([torch.stack([a, b], -1), torch.stack([a, c], -1)], 2).flatten(1, 2)  # all P, then all Q

    def of_ends(values: Tensor) -> Tensor:
        flat = ends.flatten(1)[..., None].expand(-1, -1, values.shape[-1])
        return values.gather(1, flat).unflatten(1, (-1, 2))

    edges = _CutEdges(
        ends=ends,
        positions=of_ends(vertices.double()),
        attributes=None if attributes is None else of_ends(attributes),
        near=near.double()[:, None],
        crossing=crossing.crosses.expand(-1, -1, 2).flatten(1).double(),
        linear_depth=settings.linear_depth,
    )
    return ClippedMesh(
        vertices=torch.cat([vertices, edges.corners(vertices.dtype)], 1),
        triangles=_cut_triangles(triangles, crossing, first_corner=count),
        attributes=None if attributes is None else torch.cat([attributes, edges.mixed_attributes()], 1),
        cut=crossing.cut,
        weights=_weights(edges.fraction.detach(), crossing).to(vertices.dtype),
        edges=edges,
    )


@dataclass(frozen=True)
class _Crossing:
    """The n triangles that are cut."""

    cut: Int[Tensor, "n"]
    crosses: Bool[Tensor, "B n 1"]
    """Whether the triangle crosses the plane in this image."""
    two_beyond: Bool[Tensor, "B n 1"]
    """Whether two corners are beyond the plane, so that a second part is needed."""
    turned: Int[Tensor, "B n 3"]
    """Positions in the triangle of A, the corner that is alone on its side, and of the next two."""
    from_alone: Int[Tensor, "B n 3"]
    """The vertices there, A, B and C: the new corners lie on the edges from A to B and from A to C."""


def _find_crossing(vertices: Tensor, triangles: Tensor, near: Tensor, *, shapes_only: bool) -> _Crossing:
    count = vertices.shape[1]
    known = ((triangles >= 0) & (triangles < count)).all(-1, keepdim=True)
    corners = triangles.clamp(0, count - 1)
    depth = vertices.detach()[..., 2]
    before = depth.gather(1, corners.flatten(1)).view_as(corners) < near[:, None, None]
    crosses = before.any(-1, keepdim=True) & ~before.all(-1, keepdim=True) & known
    everything = torch.arange(triangles.shape[1], device=vertices.device)
    cut = everything if shapes_only else crosses.any(0)[:, 0].nonzero()[:, 0]
    corners, before, crosses = (rows[:, cut] for rows in (corners, before, crosses))
    two_beyond = crosses & (before.sum(-1, keepdim=True) == 1)
    alone = (before == two_beyond).to(torch.uint8).argmax(-1, keepdim=True)
    turned = (alone + torch.arange(3, device=vertices.device)) % 3
    return _Crossing(cut, crosses, two_beyond, turned, corners.gather(2, turned))


def _cut_triangles(triangles: Tensor, crossing: _Crossing, *, first_corner: int) -> Int[Tensor, "B S 3"]:
    """The first parts in the places of the cut triangles, then the second parts; new corners from `first_corner` on."""
    a, b, c = crossing.from_alone.unbind(-1)
    p = (first_corner + 2 * torch.arange(len(crossing.cut), device=a.device)).expand_as(a)
    first = torch.where(crossing.two_beyond, torch.stack([p, b, c], -1), torch.stack([a, p, p + 1], -1))
    second = torch.where(crossing.two_beyond, torch.stack([p, c, p + 1], -1), a[..., None])
    kept = triangles.clone()
    kept[:, crossing.cut] = torch.where(crossing.crosses, first, triangles[:, crossing.cut])
    return torch.cat([kept, second], 1).clamp(-1, 2**31 - 1).int()


def _weights(fraction: Tensor, crossing: _Crossing) -> Tensor:
    """Barycentrics of the parts' corners in the whole triangles."""
    whole = torch.eye(3, dtype=fraction.dtype, device=fraction.device)
    a, b, c = whole[crossing.turned].unbind(2)
    to_p, to_q = fraction.unflatten(1, (-1, 2))[..., None].unbind(2)
    p, q = torch.lerp(a, b, to_p), torch.lerp(a, c, to_q)
    first = torch.where(crossing.two_beyond[..., None], torch.stack([p, b, c], 2), torch.stack([a, p, q], 2))
    first = torch.where(crossing.crosses[..., None], first, whole)
    return torch.cat([first, torch.stack([p, c, q], 2)], 1)
