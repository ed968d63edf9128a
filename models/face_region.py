"""The face cut out of MakeHuman's head: closed eyes' caps, subdivision, a smooth outer boundary, exact mirror."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from makehuman import BaseMesh
from scipy.sparse import coo_matrix, csr_matrix, identity, vstack
from surface import adjacency, boundary_loops, catmull_clark, face_edges

EYE_RINGS = (0.80, 0.50, 0.20)
"""Radii of the rings of an eye cap as fractions of the way from the pole to the lid margin."""
MOUTH_BAG_RINGS = 2
TOP_MM, BOTTOM_MM = 86.0, -123.0
"""Upper and lower end of the face, measured from the middle between the eyes."""
BACK_MM, BACK_AT_EAR_MM = -64.0, -51.0
"""Rear end of the face; it comes forward to stay before the ear, whose front lies at -57 mm."""
EAR_HEIGHT_MM, EAR_SPREAD_MM = -24.0, 34.0
CORNER_MM = 9.0
"""How softly the four sides of the cut run into each other."""
LIP_BAND = 0.62
"""Share of subdivision weight on the lips' inner two rows from which a vertex counts as touching."""
BAG_EDGE = 0.65
"""Share of subdivision weight on the bag's edge from which a vertex lies on it; there it is 0.75, beside it 0.5."""
SNAP = 0.3
"""A vertex closer to the cut than this fraction of an edge is moved onto it: no slivers."""


@dataclass(frozen=True)
class FaceRegion:
    """The face mesh as a linear function of MakeHuman's base vertices."""

    operator: csr_matrix
    """(V, 19158): face vertices = operator @ base vertices, for shapes and for offsets alike."""
    triangles: np.ndarray
    mirror: np.ndarray
    eye_cap: np.ndarray
    """(V,) bool: vertices of the eyeballs inside the lid margin."""
    lid_margin: np.ndarray
    """(V,) bool: first ring of skin around an eye cap."""
    lip_contact: np.ndarray
    """(V,) bool: the band in which closed lips touch."""
    lip_side: np.ndarray
    """(V,) within the contact band: positive on the upper lip, negative on the lower, 0 at the corners."""
    mouth_bag: np.ndarray
    """(V,) bool: behind the lips."""
    bag_edge: np.ndarray
    """(V,) bool: the loop between the mouth bag and the wall that closes it."""


def cut_height(points: np.ndarray) -> np.ndarray:
    """Implicit function of the cut: positive inside the face, zero on its boundary, in millimetres.

    Points are measured from the middle between the eyes. Soft minimum of a top, a bottom and a back side.
    """
    y, z = points[:, 1], points[:, 2]
    at_ear = np.exp(-(((y - EAR_HEIGHT_MM) / EAR_SPREAD_MM) ** 2))
    back = z - (BACK_MM + (BACK_AT_EAR_MM - BACK_MM) * at_ear)
    sides = np.stack([TOP_MM - y, y - BOTTOM_MM, back])
    return -CORNER_MM * np.log(np.exp(-sides / CORNER_MM).sum(0))


def build_region(base: BaseMesh, reference: np.ndarray) -> FaceRegion:
    """Cut the face; `reference` (19158, 3) is the average adult, symmetric, that the cut is measured on."""
    points = from_eyes(base, reference)
    fine = subdivide_head(base, points)
    places = fine.operator @ points
    half_vertices, half_triangles, half_operator = clip_half(
        places, triangulate_half(places, fine.quads), fine.operator, cut_height(places)
    )
    labels = fine.labels[half_vertices]
    order, triangles, mirror = mirror_half(half_operator @ points, half_triangles)
    columns_mirrored = half_operator[:, base.mirror]
    doubled = vstack([half_operator, columns_mirrored]).tocsr()
    labels = np.concatenate([labels, labels])[order]
    return FaceRegion(
        operator=doubled[order],
        triangles=triangles,
        mirror=mirror,
        eye_cap=labels[:, 0] > 0.55,
        lid_margin=(labels[:, 1] > 0.4) & (labels[:, 0] <= 0.55),
        lip_contact=labels[:, 2] > LIP_BAND,
        lip_side=np.where(labels[:, 2] > LIP_BAND, labels[:, 3], 0.0),
        mouth_bag=(labels[:, 4] > 0.3) & (labels[:, 2] <= LIP_BAND),
        bag_edge=labels[:, 5] > BAG_EDGE,
    )


@dataclass(frozen=True)
class FineHead:
    """MakeHuman's head after one subdivision, with eye caps and a mouth bag."""

    operator: csr_matrix
    """(N, 19158): its vertices = operator @ base vertices."""
    quads: np.ndarray
    labels: np.ndarray
    """(N, 6) subdivision weights of: eye caps, lid margins, lips' contact rows, those signed, mouth bag, its edge."""


def from_eyes(base: BaseMesh, reference: np.ndarray) -> np.ndarray:
    """Base vertices measured from the middle between the eyes."""
    eye_vertices = np.unique(base.quads[base.groups == "helper-l-eye"])
    return reference - (reference[eye_vertices].min(0) + reference[eye_vertices].max(0)) / 2 * [0, 1, 1]


def subdivide_head(base: BaseMesh, points: np.ndarray) -> FineHead:
    """Close eyes and mouth of the quads `base.is_head`, and subdivide them."""
    eye_vertices = np.unique(base.quads[base.groups == "helper-l-eye"])
    head = _without_inner_lid(base, points)
    quads, lip_side, bag, bag_edge = _with_mouth_bag(base, head, points)
    quads, extend, cap, lid = _with_eye_caps(base, quads, points, eye_vertices)
    quads, extend, bag = _with_bag_wall(quads, extend, bag, edge=bag_edge, points=points)
    level0 = np.unique(quads)
    compact = np.full(extend.shape[0], -1)
    compact[level0] = np.arange(len(level0))
    subdivide, fine_quads = catmull_clark(compact[quads], len(level0))

    def spread(mask: np.ndarray) -> np.ndarray:
        padded = np.zeros(extend.shape[0])
        padded[: len(mask)] = mask
        return subdivide @ padded[level0]

    edge = np.zeros(len(bag), bool)
    edge[bag_edge] = True
    labels = [spread(mask) for mask in (cap, lid, lip_side != 0, np.sign(lip_side), bag, edge)]
    return FineHead((subdivide @ extend[level0]).tocsr(), fine_quads, np.stack(labels, 1))


def _without_inner_lid(base: BaseMesh, points: np.ndarray) -> np.ndarray:
    """Head quads without the ring that turns inwards behind the lid margin, through the eyeball."""
    quads = base.quads[base.is_head]
    inner = np.zeros(len(points), bool)
    for loop in boundary_loops(quads):
        if len(loop) == 28:
            inner[loop] = True
    return quads[~inner[quads].any(1)]


def _with_mouth_bag(
    base: BaseMesh, head: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Head quads joined by two rings of the mouth cavity.

    Returns the quads, the lips' contact rows (+1 upper, -1 lower lip, a trace at the corners, 0 elsewhere), the
    mask of the bag and its open edge.
    """
    count = len(base.vertices)
    mouth = next(loop for loop in boundary_loops(head) if len(loop) == 38)
    corners = sorted((int(np.argmax(points[mouth, 0])), int(np.argmin(points[mouth, 0]))))
    one, other = mouth[corners[0] + 1 : corners[1]], mouth[corners[1] + 1 :] + mouth[: corners[0]]
    upper, lower = sorted((one, other), key=lambda path: -points[path, 1].mean())
    row = np.zeros(count)
    row[upper], row[lower] = 1.0, -1.0
    in_mouth = np.zeros(count)
    in_mouth[mouth] = 1.0
    neighbours = adjacency(head, count)
    side = neighbours @ row / np.maximum(neighbours @ in_mouth, 1)
    side[mouth] = row[mouth]
    side[[mouth[k] for k in corners]] = 1e-9

    reached = in_mouth > 0
    head_vertices = np.zeros(count, bool)
    head_vertices[np.unique(head)] = True
    cavity = base.quads[base.is_mouth_cavity]
    taken = np.zeros(len(cavity), bool)
    for _ in range(MOUTH_BAG_RINGS):
        taken |= reached[cavity].any(1)
        reached[np.unique(cavity[taken])] = True
    quads = np.concatenate([head, cavity[taken]])
    edge = next(loop for loop in boundary_loops(quads) if len(loop) == 38)
    return quads, side, reached & ~head_vertices, edge


def mouth_bag_quads(base: BaseMesh, points: np.ndarray) -> np.ndarray:
    """The quads of MakeHuman's mouth cavity behind those that belong to the face."""
    in_face, *_ = _with_mouth_bag(base, _without_inner_lid(base, points), points)
    taken = {tuple(quad) for quad in in_face.tolist()}
    cavity = base.quads[base.is_mouth_cavity]
    return cavity[[tuple(quad) not in taken for quad in cavity.tolist()]]


def _with_bag_wall(
    quads: np.ndarray, extend: csr_matrix, bag: np.ndarray, *, edge: list[int], points: np.ndarray
) -> tuple[np.ndarray, csr_matrix, np.ndarray]:
    """Close the bag by a wall behind the lips: an open mouth shows its inside instead of a hole."""
    size, half = len(edge), len(edge) // 2
    start = next(k for k in range(size) if abs(points[edge[k], 0]) < 1e-6)
    edge = edge[start:] + edge[:start]
    rim = extend[edge]
    mean = csr_matrix(np.full((size, size), 1 / size)) @ rim
    first = extend.shape[0]
    ring = first + np.arange(size)
    wall = [[edge[(k + 1) % size], edge[k], ring[k], ring[(k + 1) % size]] for k in range(size)]
    # Both midline vertices lie on the ring, so rungs from k to half - k fill each side without crossing it.
    for k in range(half // 2):
        wall.append([ring[k + 1], ring[k], ring[half - k], ring[half - k - 1]])
        wall.append([ring[-k % size], ring[(-k - 1) % size], ring[half + k + 1], ring[half + k]])
    mask = np.ones(first + size, bool)
    mask[:first] = False
    mask[: len(bag)] |= bag
    return np.concatenate([quads, wall]), vstack([extend, rim * 0.5 + mean * 0.5]).tocsr(), mask


def _with_eye_caps(
    base: BaseMesh, quads: np.ndarray, points: np.ndarray, eye_vertices: np.ndarray
) -> tuple[np.ndarray, csr_matrix, np.ndarray, np.ndarray]:
    """Close both eyes by spherical caps that hang on the eyeball helpers.

    MakeHuman's eyeball (radius 15.5 mm) cuts through its own lids, so the cap lies on a smaller sphere around the
    same centre that just touches the lid margin from inside: the lids slide over it.
    """
    count = len(points)
    eye_quads = base.quads[base.groups == "helper-l-eye"]
    ball = points[eye_vertices]
    centre = (ball.min(0) + ball.max(0)) / 2
    loops = [loop for loop in boundary_loops(quads) if len(loop) == 28]
    loop = next(loop for loop in loops if points[loop, 0].mean() > 0)
    rim = points[loop] - centre
    radius = np.percentile(np.linalg.norm(rim, axis=1), 15) - 0.3
    pole = np.array([0.0, 0.0, 1.0])
    directions = rim / np.linalg.norm(rim, axis=1, keepdims=True)
    rings = []
    for fraction in EYE_RINGS:
        ray = fraction * directions + (1 - fraction) * pole
        rings.append(ray / np.linalg.norm(ray, axis=1, keepdims=True))
    rays = np.concatenate([*rings, pole[None]])
    rows = _rows_on_ball(rays * radius, points, eye_vertices, eye_quads, centre)

    size = len(loop)
    ids = count + np.arange(len(rays))
    new_quads = []
    outer = np.array(loop)
    for ring in range(len(EYE_RINGS)):
        inner = ids[ring * size : (ring + 1) * size]
        new_quads += [[outer[(k + 1) % size], outer[k], inner[k], inner[(k + 1) % size]] for k in range(size)]
        outer = inner
    new_quads += [[outer[(k + 2) % size], outer[(k + 1) % size], outer[k], ids[-1]] for k in range(0, size, 2)]

    def mirrored(vertex: int) -> int:
        return int(base.mirror[vertex]) if vertex < count else vertex + len(rays)

    right_quads = [[mirrored(v) for v in quad][::-1] for quad in new_quads]
    extend = vstack([identity(count, format="csr"), rows, rows[:, base.mirror]]).tocsr()
    cap = np.zeros(count + 2 * len(rays), bool)
    cap[count:] = True
    lid = np.zeros_like(cap)
    lid[loop] = True
    lid[base.mirror[loop]] = True
    return np.concatenate([quads, new_quads, right_quads]), extend, cap, lid


def _rows_on_ball(
    offsets: np.ndarray, points: np.ndarray, eye_vertices: np.ndarray, eye_quads: np.ndarray, centre: np.ndarray
) -> csr_matrix:
    """Weights over the base vertices that put a point at centre + offset and let it ride on the eyeball.

    Each row mixes the helper quad that the ray pierces with the ball's mean vertex so that size, place and
    rotation of the eyeball act on the cap as on the ball itself.
    """
    mean_row = np.full(len(eye_vertices), 1 / len(eye_vertices))
    local = {int(v): k for k, v in enumerate(eye_vertices)}
    corners = np.array([[local[int(v)] for v in quad] for quad in eye_quads])
    ball = points[eye_vertices]
    ball_mean = mean_row @ ball
    rows = []
    for offset in offsets:
        target = centre + offset - ball_mean
        near = corners[np.argsort(-(ball[corners].mean(1) - centre) @ offset)[:4]]
        support = np.unique(near)
        # Smallest weights w over the near vertices with sum w (v - mean) = target; the rest rides on the mean.
        spread = (ball[support] - ball_mean).T
        weight = spread.T @ np.linalg.solve(spread @ spread.T, target)
        row = mean_row * (1 - weight.sum())
        row[support] += weight
        rows.append(row)
    dense = np.array(rows)
    row_index, column_index = np.nonzero(dense)
    return coo_matrix(
        (dense[row_index, column_index], (row_index, eye_vertices[column_index])),
        (len(offsets), len(points)),
    ).tocsr()


def triangulate_half(points: np.ndarray, quads: np.ndarray) -> np.ndarray:
    """Triangles of the quads on the subject's left half, cut along the shorter diagonal."""
    left = quads[points[quads, 0].mean(1) > 0]
    first = np.linalg.norm(points[left[:, 0]] - points[left[:, 2]], axis=1)
    second = np.linalg.norm(points[left[:, 1]] - points[left[:, 3]], axis=1)
    turned = np.where((second < first - 1e-9)[:, None], np.roll(left, -1, axis=1), left)
    return np.stack([turned[:, [0, 1, 2]], turned[:, [0, 2, 3]]], 1).reshape(-1, 3)


def clip_half(
    points: np.ndarray, triangles: np.ndarray, operator: csr_matrix, height: np.ndarray
) -> tuple[np.ndarray, np.ndarray, csr_matrix]:
    """Clip triangles at height 0; returns (origin of every vertex, triangles, operator of the vertices)."""
    height = height.copy()
    on_midline = np.abs(points[:, 0]) < 1e-6
    edges = np.unique(np.sort(face_edges(triangles), axis=1), axis=0)
    crossing = edges[height[edges[:, 0]] * height[edges[:, 1]] < 0]
    best: dict[int, tuple[float, int]] = {}
    for a, b in [*crossing.tolist(), *crossing[:, ::-1].tolist()]:
        if on_midline[a] and not on_midline[b]:
            continue
        share = height[a] / (height[a] - height[b])
        if share < SNAP and (a not in best or share < best[a][0]):
            best[a] = (share, b)
    rows = operator.tolil(copy=True)
    moved = {a: operator[a] * (1 - share) + operator[b] * share for a, (share, b) in best.items()}
    for vertex, row in moved.items():
        rows[vertex] = row
        height[vertex] = 0.0
    origin = list(range(len(points)))
    extra_rows: list[csr_matrix] = []
    cut_points: dict[tuple[int, int], int] = {}
    snapped = rows.tocsr()

    def cut_point(a: int, b: int) -> int:
        key = (min(a, b), max(a, b))
        if key not in cut_points:
            share = height[a] / (height[a] - height[b])
            cut_points[key] = len(origin)
            origin.append(a if height[a] > 0 else b)
            extra_rows.append(snapped[a] * (1 - share) + snapped[b] * share)
        return cut_points[key]

    kept: list[list[int]] = []
    for triangle in triangles.tolist():
        signs = [int(np.sign(height[v])) for v in triangle]
        if max(signs) <= 0:
            continue
        if min(signs) >= 0:
            kept.append(triangle)
            continue
        polygon: list[int] = []
        for k in range(3):
            a, b = triangle[k], triangle[(k + 1) % 3]
            if signs[k] >= 0:
                polygon.append(a)
            if signs[k] * signs[(k + 1) % 3] < 0:
                polygon.append(cut_point(a, b))
        kept += [[polygon[0], polygon[k], polygon[k + 1]] for k in range(1, len(polygon) - 1)]
    clipped = np.array(kept)
    all_rows = vstack([snapped, *extra_rows]).tocsr()
    clipped = _largest_component(clipped, len(origin))
    used = np.unique(clipped)
    compact = np.full(len(origin), -1)
    compact[used] = np.arange(len(used))
    return np.array(origin)[used], compact[clipped], all_rows[used]


def _largest_component(triangles: np.ndarray, vertex_count: int) -> np.ndarray:
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    _, label = connected_components(adjacency(triangles, vertex_count), directed=False)
    return triangles[label[triangles[:, 0]] == np.bincount(label[triangles[:, 0]]).argmax()]


def mirror_half(points: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join a left half with its mirror image: (order into [half; mirrored half], triangles, mirror)."""
    count = len(points)
    on_midline = np.abs(points[:, 0]) < 1e-6
    middle, left = np.flatnonzero(on_midline), np.flatnonzero(~on_midline)
    order = np.concatenate([middle, left, left + count])
    place_left = np.full(count, -1)
    place_left[middle] = np.arange(len(middle))
    place_right = place_left.copy()
    place_left[left] = len(middle) + np.arange(len(left))
    place_right[left] = len(middle) + len(left) + np.arange(len(left))
    both = np.concatenate([place_left[triangles], place_right[triangles][:, ::-1]])
    mirror = np.concatenate(
        [
            np.arange(len(middle)),
            len(middle) + len(left) + np.arange(len(left)),
            len(middle) + np.arange(len(left)),
        ]
    )
    return order, both, mirror
