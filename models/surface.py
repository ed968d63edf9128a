"""Triangle and quad surfaces: loops, areas, normals, Laplacians, Catmull-Clark, closest points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, diags, vstack
from scipy.spatial import cKDTree

REFLECT_X = np.array([-1.0, 1.0, 1.0])


def split_quads(quads: np.ndarray) -> np.ndarray:
    """Two triangles for every quad."""
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def face_edges(faces: np.ndarray) -> np.ndarray:
    """Directed edges (F * N, 2) of faces (F, N)."""
    return np.stack([faces, np.roll(faces, -1, axis=1)], -1).reshape(-1, 2)


def boundary_loops(faces: np.ndarray) -> list[list[int]]:
    """Vertex loops along the faces' own edge direction, longest first."""
    edges = {(int(a), int(b)) for a, b in face_edges(faces)}
    following = {a: b for a, b in sorted(edges) if (b, a) not in edges}
    loops: list[list[int]] = []
    visited: set[int] = set()
    for start in following:
        loop: list[int] = []
        vertex = start
        while vertex not in visited:
            visited.add(vertex)
            loop.append(vertex)
            vertex = following[vertex]
        if loop:
            loops.append(loop)
    return sorted(loops, key=len, reverse=True)


def triangle_areas(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2


def vertex_areas(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """A third of the area of the triangles around each vertex."""
    shares = np.repeat(triangle_areas(vertices, triangles) / 3, 3)
    return np.bincount(triangles.ravel(), shares, minlength=len(vertices))


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    face = np.cross(b - a, c - a)
    normals = np.stack(
        [np.bincount(triangles.ravel(), np.repeat(face[:, k], 3), minlength=len(vertices)) for k in range(3)],
        1,
    )
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def triangle_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    normals = np.cross(b - a, c - a)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def adjacency(faces: np.ndarray, vertex_count: int) -> csr_matrix:
    """Symmetric 0/1 matrix of vertices that share an edge."""
    edges = face_edges(faces)
    pairs = np.concatenate([edges, edges[:, ::-1]])
    matrix = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (vertex_count,) * 2).tocsr()
    matrix.data[:] = 1
    return matrix


def cotangent_laplacian(vertices: np.ndarray, triangles: np.ndarray) -> csr_matrix:
    """Positive semi-definite stiffness matrix of linear finite elements."""
    rows, columns, values = [], [], []
    for k in range(3):
        i, j, opposite = triangles[:, k], triangles[:, (k + 1) % 3], triangles[:, (k + 2) % 3]
        u, v = vertices[i] - vertices[opposite], vertices[j] - vertices[opposite]
        cotangent = (u * v).sum(1) / np.maximum(np.linalg.norm(np.cross(u, v), axis=1), 1e-9)
        # A sliver would give a huge or negative weight; bounded so that the matrix stays an M-matrix.
        weight = np.clip(cotangent, 0.02, 20.0) / 2
        rows += [i, j]
        columns += [j, i]
        values += [weight, weight]
    weights = coo_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), (len(vertices),) * 2
    ).tocsr()
    return (diags(np.asarray(weights.sum(1)).ravel()) - weights).tocsr()


def catmull_clark(quads: np.ndarray, vertex_count: int) -> tuple[csr_matrix, np.ndarray]:
    """One subdivision: (matrix of the new vertices over the old, new quads)."""
    face_count = len(quads)
    directed = face_edges(quads)
    key = np.sort(directed, axis=1)
    edges, edge_of = np.unique(key, axis=0, return_inverse=True)
    edge_of = edge_of.reshape(face_count, 4)
    edge_count = len(edges)
    faces_at_edge = np.bincount(edge_of.ravel(), minlength=edge_count)
    on_border = faces_at_edge == 1
    ones = np.ones
    face_point = coo_matrix(
        (np.full(4 * face_count, 0.25), (np.repeat(np.arange(face_count), 4), quads.ravel())),
        (face_count, vertex_count),
    ).tocsr()
    midpoint = coo_matrix(
        (np.full(2 * edge_count, 0.5), (np.repeat(np.arange(edge_count), 2), edges.ravel())),
        (edge_count, vertex_count),
    ).tocsr()
    edge_face = coo_matrix(
        (ones(4 * face_count), (edge_of.ravel(), np.repeat(np.arange(face_count), 4))),
        (edge_count, face_count),
    ).tocsr()
    inner = diags((~on_border).astype(float))
    edge_point = diags(np.where(on_border, 1.0, 0.5)) @ midpoint + inner @ edge_face @ face_point * 0.25

    vertex_face = coo_matrix(
        (ones(4 * face_count), (quads.ravel(), np.repeat(np.arange(face_count), 4))),
        (vertex_count, face_count),
    ).tocsr()
    vertex_edge = coo_matrix(
        (ones(2 * edge_count), (edges.ravel(), np.repeat(np.arange(edge_count), 2))),
        (vertex_count, edge_count),
    ).tocsr()
    border_edges = vertex_edge @ diags(on_border.astype(float))
    at_border = np.asarray(border_edges.sum(1)).ravel() > 0
    valence = np.maximum(np.asarray(vertex_face.sum(1)).ravel(), 1)
    smooth = (
        diags(1 / valence**2) @ vertex_face @ face_point
        + diags(2 / valence**2) @ vertex_edge @ midpoint
        + diags((valence - 3) / valence)
    )
    crease = diags(np.full(vertex_count, 0.5)) + border_edges @ midpoint * 0.25
    vertex_point = diags((~at_border).astype(float)) @ smooth + diags(at_border.astype(float)) @ crease
    matrix = vstack([vertex_point, edge_point, face_point]).tocsr()
    new_quads = np.stack(
        [
            quads,
            vertex_count + edge_of,
            np.broadcast_to((vertex_count + edge_count + np.arange(face_count))[:, None], (face_count, 4)),
            vertex_count + np.roll(edge_of, 1, axis=1),
        ],
        -1,
    ).reshape(-1, 4)
    return matrix, new_quads


@dataclass(frozen=True)
class Hits:
    """Closest points on a triangle surface."""

    points: np.ndarray
    distances: np.ndarray
    triangles: np.ndarray
    barycentrics: np.ndarray


def closest_points(
    queries: np.ndarray,
    vertices: np.ndarray,
    triangles: np.ndarray,
    *,
    candidates: int = 10,
    tree: cKDTree | None = None,
) -> Hits:
    """Closest surface point of every query, among the triangles with the nearest centroids."""
    tree = cKDTree(vertices[triangles].mean(1)) if tree is None else tree
    _, near = tree.query(queries, k=min(candidates, len(triangles)))
    near = near.reshape(len(queries), -1)
    corners = vertices[triangles[near]]
    weights = _closest_barycentrics(queries[:, None], corners)
    points = (weights[..., None] * corners).sum(-2)
    distances = np.linalg.norm(points - queries[:, None], axis=-1)
    best = distances.argmin(1)
    row = np.arange(len(queries))
    return Hits(points[row, best], distances[row, best], near[row, best], weights[row, best])


def _closest_barycentrics(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Barycentric weights (..., 3) of the closest point in each triangle (..., 3, 3)."""
    a, b, c = corners[..., 0, :], corners[..., 1, :], corners[..., 2, :]
    ab, ac, ap = b - a, c - a, points - a
    dot = lambda u, v: (u * v).sum(-1)  # noqa: E731
    d00, d01, d11 = dot(ab, ab), dot(ab, ac), dot(ac, ac)
    d20, d21 = dot(ap, ab), dot(ap, ac)
    denominator = np.maximum(d00 * d11 - d01 * d01, 1e-15)
    v = (d11 * d20 - d01 * d21) / denominator
    w = (d00 * d21 - d01 * d20) / denominator
    inside = np.stack([1 - v - w, v, w], -1)
    best = inside
    best_distance = np.where(
        (inside >= 0).all(-1),
        dot(points - (inside[..., None] * corners).sum(-2), points - (inside[..., None] * corners).sum(-2)),
        np.inf,
    )
    for i, j in ((0, 1), (1, 2), (2, 0)):
        start, direction = corners[..., i, :], corners[..., j, :] - corners[..., i, :]
        t = np.clip(dot(points - start, direction) / np.maximum(dot(direction, direction), 1e-15), 0, 1)
        edge = np.zeros_like(inside)
        edge[..., i], edge[..., j] = 1 - t, t
        offset = points - (start + t[..., None] * direction)
        distance = dot(offset, offset)
        closer = distance < best_distance
        best = np.where(closer[..., None], edge, best)
        best_distance = np.where(closer, distance, best_distance)
    return best


def similarity(
    source: np.ndarray, target: np.ndarray, *, weights: np.ndarray | None = None, with_scale: bool = True
) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale s, rotation R, translation t with `s * source @ R.T + t ~ target` (Umeyama 1991)."""
    weights = np.ones(len(source)) if weights is None else weights
    weights = weights / weights.sum()
    source_mean, target_mean = weights @ source, weights @ target
    a, b = source - source_mean, target - target_mean
    u, s, vt = np.linalg.svd((weights[:, None] * b).T @ a)
    signs = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ np.diag(signs) @ vt
    scale = float((s * signs).sum() / (weights[:, None] * a * a).sum()) if with_scale else 1.0
    return scale, rotation, target_mean - scale * rotation @ source_mean
