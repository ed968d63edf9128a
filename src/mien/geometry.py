"""Pure functions of points, triangles and rotations; no face, no camera, no state."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.arrays import Float, Int, Tensor

# Below this squared angle the sine quotients are taken from their Taylor series: float32 loses them otherwise.
SMALL_ANGLE_SQ = 1e-8


def rotvec_to_rotmat(rotvec: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3 3"]:
    """Rotation matrices of rotation vectors (axis times angle in radians), by Rodrigues' formula.

    Differentiable everywhere, the zero rotation included.
    """
    angle_sq = (rotvec * rotvec).sum(-1)[:, None, None]
    small = angle_sq < SMALL_ANGLE_SQ
    safe_sq = torch.where(small, torch.ones_like(angle_sq), angle_sq)
    angle = safe_sq.sqrt()
    sine_quotient = torch.where(small, 1 - angle_sq / 6, torch.sin(angle) / angle)
    cosine_quotient = torch.where(small, 0.5 - angle_sq / 24, (1 - torch.cos(angle)) / safe_sq)
    K = cross_matrix(rotvec)
    identity = torch.eye(3, dtype=rotvec.dtype, device=rotvec.device)
    return identity + sine_quotient * K + cosine_quotient * (K @ K)


def rotmat_to_rotvec(rotmat: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B 3"]:
    """Rotation vectors of rotation matrices, exact up to half a turn; not meant to be differentiated.

    The axis comes from the quaternion's largest component (Shepperd 1978), so that half turns are safe.
    """
    m = rotmat
    diagonal = m.diagonal(dim1=-2, dim2=-1)
    trace = diagonal.sum(-1)
    squares = torch.cat([trace[:, None], diagonal], dim=-1)
    largest = squares.argmax(dim=-1)
    sums = torch.stack(
        [
            torch.stack([1 + trace, m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]], -1),
            torch.stack(
                [
                    m[:, 2, 1] - m[:, 1, 2],
                    1 + 2 * m[:, 0, 0] - trace,
                    m[:, 0, 1] + m[:, 1, 0],
                    m[:, 0, 2] + m[:, 2, 0],
                ],
                -1,
            ),
            torch.stack(
                [
                    m[:, 0, 2] - m[:, 2, 0],
                    m[:, 0, 1] + m[:, 1, 0],
                    1 + 2 * m[:, 1, 1] - trace,
                    m[:, 1, 2] + m[:, 2, 1],
                ],
                -1,
            ),
            torch.stack(
                [
                    m[:, 1, 0] - m[:, 0, 1],
                    m[:, 0, 2] + m[:, 2, 0],
                    m[:, 1, 2] + m[:, 2, 1],
                    1 + 2 * m[:, 2, 2] - trace,
                ],
                -1,
            ),
        ],
        dim=1,
    )  # each row is the quaternion (w, x, y, z) times four times one of its components
    quaternion = torch.nn.functional.normalize(sums[torch.arange(len(m), device=m.device), largest], dim=-1)
    quaternion = torch.where(quaternion[:, :1] < 0, -quaternion, quaternion)
    sine = quaternion[:, 1:].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, quaternion[:, :1])
    return torch.where(sine > 1e-12, angle / sine.clamp(min=1e-12), torch.full_like(sine, 2.0)) * quaternion[:, 1:]


def compose_rotations(second: Float[Tensor, "B 3"], first: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3"]:
    """The rotation vector of `first` followed by `second`, at most half a turn long.

    Differentiable, the zero rotation included, by way of quaternions.
    """
    a, b = _rotvec_to_quaternion(second), _rotvec_to_quaternion(first)
    scalar = a[:, :1] * b[:, :1] - (a[:, 1:] * b[:, 1:]).sum(-1, keepdim=True)
    vector = a[:, :1] * b[:, 1:] + b[:, :1] * a[:, 1:] + torch.cross(a[:, 1:], b[:, 1:], dim=-1)
    flip = torch.where(scalar < 0, -1.0, 1.0)
    scalar, vector = scalar * flip, vector * flip
    sine_sq = vector.square().sum(-1, keepdim=True)
    small = sine_sq < SMALL_ANGLE_SQ
    sine = torch.where(small, torch.ones_like(sine_sq), sine_sq).sqrt()
    angle_quotient = 2 * torch.atan2(sine, scalar) / sine
    return vector * torch.where(small, 2 / scalar.clamp(min=0.5), angle_quotient)


def _rotvec_to_quaternion(rotvec: Float[Tensor, "B 3"]) -> Float[Tensor, "B 4"]:
    half = rotvec / 2
    angle_sq = half.square().sum(-1, keepdim=True)
    small = angle_sq < SMALL_ANGLE_SQ
    angle = torch.where(small, torch.ones_like(angle_sq), angle_sq).sqrt()
    quotient = torch.where(small, 1 - angle_sq / 6, torch.sin(angle) / angle)
    return torch.cat([torch.where(small, 1 - angle_sq / 2, torch.cos(angle)), half * quotient], dim=-1)


def cross_matrix(vector: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3 3"]:
    """The matrices that take the cross product with each vector."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).view(-1, 3, 3)


def triangle_normals(vertices: Float[Tensor, "B V 3"], triangles: Int[Tensor, "T 3"]) -> Float[Tensor, "B T 3"]:
    """Normals of the triangles, outward for counter-clockwise winding; their length is twice the area."""
    return _normals_at(vertices, _corner_numbers(vertices, triangles))


def vertex_normals(vertices: Float[Tensor, "B V 3"], triangles: Int[Tensor, "T 3"]) -> Float[Tensor, "B V 3"]:
    """Unit normals of the vertices: the area-weighted mean of the adjacent triangles' normals; differentiable.

    A vertex without area around it gets the zero vector.
    """
    places = _corner_numbers(vertices, triangles)
    faces = _normals_at(vertices, places)
    summed = torch.zeros_like(vertices).flatten()
    summed = summed.index_add(0, places.flatten(), faces[:, None].expand(-1, 3, -1, -1).flatten())
    return torch.nn.functional.normalize(summed.view_as(vertices), dim=-1, eps=1e-12)


def _corner_numbers(vertices: Float[Tensor, "B V 3"], triangles: Int[Tensor, "T 3"]) -> Int[Tensor, "B 3 T 3"]:
    """Where in the flattened vertices the coordinates of each triangle's first, second and third corner lie.

    Number by number a CPU adds at five times the speed of whole rows, and in one order whatever its threads do, which
    the gradient of an indexed read does not.
    """
    starts = torch.arange(len(vertices), device=vertices.device)[:, None, None, None] * vertices.shape[1]
    return 3 * (starts + triangles.mT[..., None]) + torch.arange(3, device=vertices.device)


def _normals_at(vertices: Float[Tensor, "B V 3"], places: Int[Tensor, "B 3 T 3"]) -> Float[Tensor, "B T 3"]:
    a, b, c = vertices.flatten().index_select(0, places.flatten()).view(places.shape).unbind(1)
    return torch.cross(b - a, c - a, dim=-1)


def mix_corners(
    values: Float[Tensor, "V C"], corners: Int[Tensor, "*P 3"], weights: Float[Tensor, "*P 3"]
) -> Float[Tensor, "*P C"]:
    """The weighted sum of three vertices' values at each point, as barycentrics interpolate them; differentiable."""
    # One pass over the points, where an indexed read of each corner takes three and memory for all of them.
    mixed = torch.nn.functional.embedding_bag(
        corners.reshape(-1, 3), values, per_sample_weights=weights.reshape(-1, 3), mode="sum"
    )
    return mixed.view(*corners.shape[:-1], -1)


def vertex_areas(vertices: Float[Tensor, "V 3"], triangles: Int[Tensor, "T 3"]) -> Float[Tensor, "V"]:
    """A third of the area of the triangles around each vertex."""
    thirds = triangle_normals(vertices[None], triangles)[0].norm(dim=-1) / 6
    areas = torch.zeros(len(vertices), dtype=vertices.dtype, device=vertices.device)
    return areas.index_add(0, triangles.reshape(-1), thirds.repeat_interleave(3))


def unique_edges(triangles: Int[Tensor, "T 3"]) -> Int[Tensor, "P 2"]:
    """Every edge of the mesh once, the smaller vertex first, in ascending order."""
    return torch.unique(_sides(triangles), dim=0)


def rim_vertices(triangles: Int[Tensor, "T 3"]) -> Int[Tensor, "R"]:
    """The vertices where the mesh ends, ascending: those of edges with one triangle; none on a closed surface."""
    edges, counts = torch.unique(_sides(triangles), dim=0, return_counts=True)
    return torch.unique(edges[counts == 1])


def _sides(triangles: Int[Tensor, "T 3"]) -> Int[Tensor, "3*T 2"]:
    """The edges of every triangle, the smaller vertex first."""
    return torch.cat([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]).sort(dim=1).values


@dataclass(frozen=True)
class Similarity:
    """x ↦ scale · rotation @ x + translation, one per batch element."""

    scale: Float[Tensor, "B"]
    rotation: Float[Tensor, "B 3 3"]
    translation: Float[Tensor, "B 3"]

    def __call__(self, points: Float[Tensor, "B P 3"]) -> Float[Tensor, "B P 3"]:
        """Transform the points."""
        turned = torch.einsum("bij,bpj->bpi", self.rotation, points)
        return self.scale[:, None, None] * turned + self.translation[:, None]


def align_points(
    source: Float[Tensor, "B P 3"],
    target: Float[Tensor, "B P 3"],
    *,
    weights: Float[Tensor, "P"] | None = None,
) -> Similarity:
    """The similarity that takes `source` onto `target` with the least weighted squared error (Umeyama 1991)."""
    w = torch.ones_like(source[0, :, 0]) if weights is None else weights
    w = (w / w.sum())[None, :, None]
    source_mean, target_mean = (w * source).sum(1, keepdim=True), (w * target).sum(1, keepdim=True)
    source, target = source - source_mean, target - target_mean
    U, S, Vh = torch.linalg.svd((w * target).mT @ source)
    sign = torch.ones_like(S)
    sign[:, 2] = torch.sign(torch.linalg.det(U @ Vh))
    rotation = U @ torch.diag_embed(sign) @ Vh
    scale = (S * sign).sum(-1) / (w * source * source).sum((1, 2))
    translation = target_mean[:, 0] - scale[:, None] * torch.einsum("bij,bj->bi", rotation, source_mean[:, 0])
    return Similarity(scale, rotation, translation)
