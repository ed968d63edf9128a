"""How the outer skin follows the face.

The face is given, with coefficients of its own. What it says of skull, ears and neck is the mean of a Gaussian process
given the face (Lüthi et al., Gaussian Process Morphable Models, PAMI 2018): the whole head varies smoothly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from expressions import ARKIT_NAMES, mirror_name
from gaussian_process import gaussian_kernel
from head_region import HeadRegion
from makehuman import MakeHuman
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree
from surface import REFLECT_X, cotangent_laplacian, vertex_areas

HEAD_SCALES = ((90.0, 3.0), (30.0, 1.0))
"""(length, standard deviation) in millimetres of the Gaussian process. Longer ones come nearer to the skulls of
ICT-FaceKit's heads, given their faces, but then heads of random faces vary more in length than people do."""
FACE_NOISE_MM, FACE_POINTS = 1.0, 500
"""How closely the process follows the face at points spread over it."""
REACH_MM = 45.0
"""How far from the seam a change of the face that the process leaves continues into the outer skin."""
HEAD_LENGTH_MM = 192.4
"""From glabella to the back of the head: 197.3 mm of men, 187.5 of women (Zhuang and Bradtmiller 2005)."""
SKULL_MM, NECK_MM = (40.0, -40.0), -100.0
"""Heights over the middle of the face: above the first one the length is measured; the neck, which keeps its depth,
begins at the second one and is reached at the last."""
COLOUR_REACH_MM = 60.0
"""How far from the seam the colours of the face continue into the outer skin."""
FULL_EFFECT_MM = 70.0
"""Distance from the seam at which the skull is scaled fully."""


@dataclass(frozen=True)
class Piece:
    """Some parts of the head with their own vertices, lengths in millimetres."""

    mean: np.ndarray
    """(N, 3)"""
    identity: np.ndarray
    """(K, N, 3)"""
    expression: np.ndarray
    """(52, N, 3)"""
    triangles: np.ndarray
    """(T, 3) over the face's vertices, then its own."""
    parts: np.ndarray
    """(T,) name of each triangle's part."""


class SmoothCompletion:
    """The outer skin of a face: the mean of a Gaussian process, and what it leaves of the face continued smoothly.

    Args:
        vertices: (V + O, 3) the skin of the mean head.
        skin: Its region.
        triangles: Its triangles, the face's first.
        seen: (V,) mask of the face's skin; not the eyes and the inside of the mouth.
    """

    def __init__(self, vertices: np.ndarray, skin: HeadRegion, triangles: np.ndarray, seen: np.ndarray) -> None:
        count = len(seen)
        face, outer = vertices[:count], vertices[count:]
        self._points = _spread(face, np.flatnonzero(seen), first=skin.seam[::2], count=FACE_POINTS)
        own = gaussian_kernel(face[self._points], face[self._points], HEAD_SCALES)
        towards = gaussian_kernel(vertices, face[self._points], HEAD_SCALES)
        gain = np.linalg.solve(own + FACE_NOISE_MM**2 * np.eye(len(own)), towards.T).T
        self._at_face, self._at_outer = gain[:count], gain[count:]
        self._extend = SmoothExtension(np.concatenate([face, outer]), triangles, count)

    def __call__(self, offsets: np.ndarray) -> np.ndarray:
        """Changes (N, O, 3) of the outer skin for changes (N, V, 3) of the face."""
        known = np.moveaxis(offsets[:, self._points], 0, 1).reshape(len(self._points), -1)

        def field(gain: np.ndarray) -> np.ndarray:
            return np.moveaxis((gain @ known).reshape(-1, len(offsets), 3), 1, 0)

        return field(self._at_outer) + self._extend(offsets - field(self._at_face))


def _spread(points: np.ndarray, among: np.ndarray, *, first: np.ndarray, count: int) -> np.ndarray:
    """Indices of points spread over a surface: the first ones, then always the farthest from those taken."""
    taken = list(first)
    distance = cKDTree(points[taken]).query(points[among])[0]
    while len(taken) < count:
        taken.append(int(among[distance.argmax()]))
        distance = np.minimum(distance, np.linalg.norm(points[among] - points[taken[-1]], axis=1))
    return np.array(taken)


class SmoothExtension:
    """Continues changes of the face into the outer skin: the smoothest ones that fade out over `REACH_MM`.

    Args:
        vertices: (V + O, 3) the skin of the mean head.
        triangles: Its triangles.
        face_count: V.
    """

    def __init__(self, vertices: np.ndarray, triangles: np.ndarray, face_count: int) -> None:
        laplacian = cotangent_laplacian(vertices, triangles)
        areas = vertex_areas(vertices, triangles)
        energy = laplacian @ diags(1 / areas) @ laplacian + REACH_MM**-4 * diags(areas)
        outer = energy.tocsr()[face_count:]
        self._to_face = outer[:, :face_count]
        self._factor = splu(outer[:, face_count:].tocsc())

    def __call__(self, offsets: np.ndarray) -> np.ndarray:
        """Changes (N, O, 3) of the outer skin for changes (N, V, 3) of the face."""
        columns = np.moveaxis(offsets, 0, 2).reshape(offsets.shape[1], -1)
        solved = self._factor.solve(-(self._to_face @ columns))
        return np.moveaxis(solved.reshape(-1, 3, len(offsets)), 2, 0)


def head_actions(source: MakeHuman, operator: csr_matrix, mirrored: csr_matrix) -> np.ndarray:
    """The 52 facial actions (52, N, 3) in MakeHuman's millimetres, the same on both sides.

    Args:
        source: MakeHuman's data.
        operator: (N, 19158) vertices = operator @ base vertices.
        mirrored: The same over mirrored base vertices.
    """
    actions = {name: source.facial_action(name) for name in ARKIT_NAMES}
    return np.stack(
        [(operator @ actions[name] + mirrored @ actions[mirror_name(name)] * REFLECT_X) / 2 for name in ARKIT_NAMES]
    )


def skull_scales(shape: np.ndarray, skin: HeadRegion, face_count: int) -> np.ndarray:
    """Factors (O, 3) about the middle of the seam that give the outer skin the length of real heads.

    Args:
        shape: (V + O, 3) the mean head's skin.
        skin: Its region.
        face_count: V.
    """
    outer, middle = shape[face_count:], shape[skin.seam].mean(0)
    far = np.clip(cKDTree(shape[skin.seam]).query(outer)[0] / FULL_EFFECT_MM, 0, 1)
    above_neck = np.clip((outer[:, 1] - NECK_MM) / (SKULL_MM[1] - NECK_MM), 0, 1)
    effect = far**2 * (3 - 2 * far) * above_neck
    skull = shape[:, 1] > SKULL_MM[0]

    def length(factor: float) -> float:
        scaled = shape.copy()
        scaled[face_count:, 2] = middle[2] + (outer[:, 2] - middle[2]) * (1 + effect * (factor - 1))
        return float(np.ptp(scaled[skull, 2]))

    low, high = 0.5, 1.5
    for _ in range(40):
        factor = (low + high) / 2
        low, high = (factor, high) if length(factor) < HEAD_LENGTH_MM else (low, factor)
    scales = np.ones((len(outer), 3))
    scales[:, 2] += effect * (factor - 1)
    return scales


def seam_shares(shape: np.ndarray, skin: HeadRegion, face_count: int) -> np.ndarray:
    """How much of each seam vertex's colour continues to each outer vertex (O, S): the smoothest continuation that
    fades out.

    Args:
        shape: (V + O, 3) the mean head's skin.
        skin: Its region.
        face_count: V.
    """
    laplacian = cotangent_laplacian(shape, skin.triangles)
    areas = vertex_areas(shape, skin.triangles)
    energy = (laplacian + COLOUR_REACH_MM**-2 * diags(areas)).tocsr()[face_count:]
    return splu(energy[:, face_count:].tocsc()).solve(-energy[:, skin.seam].toarray())
