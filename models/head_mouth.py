"""What lies behind the lips: mouth cavity, tongue, teeth and gums.

Cavity and tongue are MakeHuman's. Its teeth are two bands; they only show how the jaw moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from expressions import ARKIT_NAMES
from face_region import FaceRegion, mouth_bag_quads
from head_shape import Piece
from head_teeth import teeth_row
from makehuman import BaseMesh
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from surface import adjacency, boundary_loops, catmull_clark, split_quads

MOUTH_NEIGHBOURS, MOUTH_WIDTH_MM, MOUTH_REACH_MM = 8, 6.0, 15.0
"""Vertices of the mouth bag's edge that a vertex of the cavity follows, their weight, and how far into the mouth."""
TONGUE_OUT_MM, TONGUE_RISE_MM, TONGUE_DROOP_MM = 42.0, 6.5, 10.0
"""How far the tip comes forward, how high the tongue rises over the lower teeth, and how far its tip falls again."""
ROLL_BACK_MM = 2.0
"""How far the upper teeth draw back where the upper lip rolls in around them."""
MIDDLE_MM = 0.1
"""A vertex nearer to the middle plane lies on it."""
TONGUE_SIZE, TONGUE_DOWN_MM, TONGUE_TIP_UP_MM = np.array([0.72, 0.8, 0.90]), 5.0, 2.5
"""Size of the tongue relative to MakeHuman's, which is as wide as the teeth, how much lower it rests, and how much
higher its tip, which has to pass over the lower teeth."""


@dataclass(frozen=True)
class MouthCavity:
    """The inside of the mouth, behind the two rings that belong to the face."""

    operator: csr_matrix
    """(N, 19158): its own vertices."""
    triangles: np.ndarray
    """Over the face's vertices, then its own."""
    wall: np.ndarray
    """(T,) triangles of the face that it replaces: the wall that closes the face's mouth."""


def build_mouth_cavity(base: BaseMesh, points: np.ndarray, face: FaceRegion) -> MouthCavity:
    """Subdivide MakeHuman's mouth cavity and join it to the face.

    Args:
        base: MakeHuman's mesh.
        points: (19158, 3) average adult.
        face: The face.
    """
    quads = mouth_bag_quads(base, points)
    inside = np.unique(quads)
    compact = np.full(len(points), -1)
    compact[inside] = np.arange(len(inside))
    matrix, fine = catmull_clark(compact[quads], len(inside))
    columns = csr_matrix((np.ones(len(inside)), (np.arange(len(inside)), inside)), (len(inside), len(points)))
    operator = (matrix @ columns).tocsr()
    triangles = split_quads(fine)
    loop = np.array(boundary_loops(triangles)[0])
    bag = np.flatnonzero(face.bag_edge)
    if len(bag) != len(loop):
        raise ValueError(f"the mouth bag's edge has {len(bag)} vertices in the face and {len(loop)} in the cavity")
    row, column = linear_sum_assignment(cdist((operator @ points)[loop], (face.operator @ points)[bag]))
    edge = bag[column]
    own = np.ones(operator.shape[0], bool)
    own[loop[row]] = False
    joint = np.empty(len(own), int)
    joint[own] = face.operator.shape[0] + np.arange(own.sum())
    joint[loop[row]] = edge
    return MouthCavity(operator[own], joint[triangles], _behind(face))


def _behind(face: FaceRegion) -> np.ndarray:
    """Triangles of the face's mouth that its bag's edge encloses, on the side without lips."""
    inside = np.flatnonzero(face.mouth_bag & ~face.bag_edge)
    neighbours = adjacency(face.triangles, len(face.mouth_bag))
    _, piece = connected_components(neighbours[inside][:, inside])
    at_skin = neighbours[inside] @ ~(face.mouth_bag | face.bag_edge) > 0
    wall = np.zeros(len(face.mouth_bag), bool)
    wall[inside] = ~np.isin(piece, piece[at_skin])
    return wall[face.triangles].any(1)


class MouthFollower:
    """Continues changes of the mouth bag's edge into the cavity behind it.

    Args:
        cavity: (N, 3) the cavity in the mean head.
        edge: (E, 3) the bag's edge.
    """

    def __init__(self, cavity: np.ndarray, edge: np.ndarray) -> None:
        distance, self._near = cKDTree(edge).query(cavity, k=MOUTH_NEIGHBOURS)
        weights = np.exp(-((distance / MOUTH_WIDTH_MM) ** 2)) + 1e-12
        fade = np.exp(-((distance[:, :1] / MOUTH_REACH_MM) ** 2))
        self._weights = weights / weights.sum(1, keepdims=True) * fade

    def __call__(self, offsets: np.ndarray) -> np.ndarray:
        """Changes (K, N, 3) of the cavity for changes (K, E, 3) of the edge."""
        return (offsets[:, self._near] * self._weights[None, :, :, None]).sum(2)


class LipFollower:
    """Moves what lies behind the lips as they move on the whole: one small similarity for each change.

    Args:
        lips: (P, 3) lips and the mouth bag behind them in the mean face.
    """

    def __init__(self, lips: np.ndarray) -> None:
        self._middle = lips.mean(0)
        fields = self._fields(lips)
        self._solve = np.linalg.pinv(np.moveaxis(fields, 0, 2).reshape(-1, len(fields)))

    def __call__(self, offsets: np.ndarray, vertices: np.ndarray) -> np.ndarray:
        """Changes (K, N, 3) of vertices (N, 3) for changes (K, P, 3) of the lips."""
        motions = offsets.reshape(len(offsets), -1) @ self._solve.T
        return np.einsum("km,mnd->knd", motions, self._fields(vertices))

    def _fields(self, points: np.ndarray) -> np.ndarray:
        """(7, N, 3) translations, rotations and growth about the lips' middle."""
        arms = points - self._middle
        moves = [np.broadcast_to(axis, points.shape) for axis in np.eye(3)]
        return np.stack([*moves, *(np.cross(axis, arms) for axis in np.eye(3)), arms])


def shape_tongue(tongue: np.ndarray) -> np.ndarray:
    """MakeHuman's tongue (N, 3), narrow and low enough to rest within the lower teeth."""
    root = np.array([0.0, tongue[:, 1].max(), tongue[:, 2].min()])
    along = (tongue[:, 2] - root[2]) / np.ptp(tongue[:, 2])
    shaped = root + (tongue - root) * TONGUE_SIZE
    shaped[:, 1] += TONGUE_TIP_UP_MM * along**3 - TONGUE_DOWN_MM
    return shaped


def tongue_out(tongue: np.ndarray) -> np.ndarray:
    """Change (N, 3) of a tongue at rest that takes it over the lower teeth and lip of an open mouth."""
    z = tongue[:, 2]
    along = (z - z.min()) / np.ptp(z)
    rise = np.clip((along - 0.25) / 0.45, 0, 1)
    moved = np.zeros_like(tongue)
    moved[:, 1] = TONGUE_RISE_MM * rise**2 * (3 - 2 * rise) - TONGUE_DROOP_MM * along**8
    moved[:, 2] = TONGUE_OUT_MM * along**1.5
    return moved


def follow_affinely(points: np.ndarray, offsets: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Changes (K, N, 3) of vertices under the affine maps that fit changes (K, P, 3) of points best."""
    middle = points.mean(0)
    equations = np.concatenate([np.ones((len(points), 1)), points - middle], 1)
    maps = np.linalg.lstsq(equations, np.moveaxis(offsets, 0, 1).reshape(len(points), -1), rcond=None)[0]
    places = np.concatenate([np.ones((len(vertices), 1)), vertices - middle], 1)
    return np.moveaxis((places @ maps).reshape(len(vertices), len(offsets), 3), 0, 1)


@dataclass(frozen=True)
class MouthRows:
    """Parts of MakeHuman's mouth in the mean head, and how facial actions move them."""

    mean: np.ndarray
    """(N, 3)"""
    actions: np.ndarray
    """(52, N, 3)"""


def mouth_pieces(
    face: FaceRegion, model: dict[str, np.ndarray], *, cavity: MouthRows, tongue: MouthRows, lower_teeth: MouthRows,
    edge_actions: np.ndarray, cavity_triangles: np.ndarray, tongue_triangles: np.ndarray,
) -> list[Piece]:  # fmt: skip
    """Cavity, tongue, upper and lower teeth.

    Args:
        face: The face.
        model: The face model's arrays.
        cavity: MakeHuman's mouth cavity.
        tongue: Its tongue.
        lower_teeth: Its lower band of teeth, which moves as the jaw does.
        edge_actions: (52, E, 3) its facial actions at the mouth bag's edge.
        cavity_triangles: Over the face's vertices, then the cavity's.
        tongue_triangles: Over the tongue's vertices.
    """
    mean, identity, expression = (model[k].astype(float) for k in ("mean", "identity_basis", "expression_basis"))
    lips, edge = mouth_mask(face), face.bag_edge
    follow = LipFollower(mean[lips])
    inside = MouthFollower(cavity.mean, mean[edge])
    missing = identity[:, edge] - follow(identity[:, lips], mean[edge])
    cavity_identity = follow(identity[:, lips], cavity.mean) + inside(missing)
    cavity_moved = cavity.actions + inside(expression[:, edge] - edge_actions)
    parts = np.full(len(cavity_triangles), "mouth")
    pieces = [Piece(cavity.mean, cavity_identity, cavity_moved, cavity_triangles, parts)]

    def on_jaw(vertices: np.ndarray, triangles: np.ndarray, parts: np.ndarray, *, moves: bool) -> Piece:
        moved = follow_affinely(lower_teeth.mean, lower_teeth.actions * moves, vertices)
        return Piece(vertices, follow(identity[:, lips], vertices), moved, triangles + len(mean), parts)

    piece = on_jaw(shape_tongue(tongue.mean), tongue_triangles, np.full(len(tongue_triangles), "tongue"), moves=True)
    out = ARKIT_NAMES.index("tongueOut")
    piece.expression[out] += tongue_out(piece.mean)
    pieces.append(piece)
    contact = mean[face.lip_contact]
    meet = contact[np.abs(contact[:, 0]) < MIDDLE_MM].mean(0)
    for upper in (True, False):
        row = teeth_row(meet, upper=upper)
        names = np.where(row.is_gum[row.triangles].all(1), "gums", "teeth")
        pieces.append(on_jaw(row.vertices, row.triangles, names, moves=not upper))
        if upper:
            pieces[-1].expression[ARKIT_NAMES.index("mouthRollUpper"), :, 2] -= ROLL_BACK_MM
    return pieces


def mouth_mask(face: FaceRegion) -> np.ndarray:
    """(V,) the lips where they touch, and the mouth bag behind them."""
    return face.lip_contact | face.mouth_bag | face.bag_edge
