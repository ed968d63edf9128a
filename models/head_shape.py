"""How the rest of the head follows the face.

The face is given, with coefficients of its own. What it says of the outer skin is the mean of a Gaussian process given
the face: the whole head varies smoothly. What it says of tongue, teeth and mouth is the mean of these given the face in
MakeHuman's population (Albrecht et al., Posterior shape models, Med. Image Anal. 2013).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from expressions import ARKIT_NAMES, mirror_name
from face_region import FaceRegion
from gaussian_process import gaussian_kernel
from head_region import HeadRegion
from makehuman import MakeHuman
from population import sample_people
from scipy.sparse import csr_matrix, diags, vstack
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree
from surface import REFLECT_X, cotangent_laplacian, similarity, vertex_areas

COMPONENTS = 250
"""Components of the population's faces; they explain all but 1e-4 of the variance."""
MODEL_ERROR_MM = 2.0
"""Difference between real faces and the population, per coordinate of `ERROR_VERTICES` independent places. With 0.5 mm,
necks and skulls of random heads are twice as varied as the population's."""
ERROR_VERTICES = 300
HEAD_SCALES = ((90.0, 3.0), (30.0, 1.0))
"""(length, standard deviation) in millimetres of the Gaussian process. On heads of ICT-FaceKit, given their faces, larger
scales come nearer to the skulls, but heads of random faces then vary more in length than people do."""
FACE_NOISE_MM, FACE_POINTS = 1.0, 500
"""How closely the process follows the face at points spread over it."""
REACH_MM = 45.0
"""How far from the seam a change of the face that the process leaves continues into the outer skin."""
MOUTH_NEIGHBOURS, MOUTH_WIDTH_MM, MOUTH_REACH_MM = 8, 6.0, 15.0
"""Vertices of the mouth bag's edge that a vertex of the cavity follows, their weight, and how far into the mouth."""
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
class HeadPopulation:
    """Random heads, each aligned so that its face fits the model's mean face."""

    mean: np.ndarray
    """(V + R, 3) millimetres: the face, then the rest."""
    face_components: np.ndarray
    """(K, 3 V) orthonormal."""
    variances: np.ndarray
    """(K,) of the components."""
    rest_components: np.ndarray
    """(K, 3 R): mean change of the rest per unit of a component."""

    def rest_of(self, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What changes of the face say of the rest.

        Args:
            offsets: (N, V, 3) changes of the face.

        Returns:
            (N, R, 3) changes of the rest, and (N, V, 3) the part of `offsets` that the population does not explain.
        """
        scores = offsets.reshape(len(offsets), -1) @ self.face_components.T
        scores *= self.variances / (self.variances + ERROR_VERTICES * MODEL_ERROR_MM**2)
        explained = scores @ self.face_components
        rest = scores @ self.rest_components
        return rest.reshape(len(offsets), -1, 3), offsets - explained.reshape(offsets.shape)


def sample_heads(
    source: MakeHuman, face: FaceRegion, rest: csr_matrix, base_vertices: np.ndarray, *, mean_face: np.ndarray,
    seed: int,
) -> HeadPopulation:  # fmt: skip
    """Draw random adults and analyse them.

    Args:
        source: MakeHuman's data.
        face: The face's region.
        rest: (R, 19158) the head's other vertices = rest @ base vertices.
        base_vertices: MakeHuman's neutral mesh.
        mean_face: (V, 3) the model's mean face.
        seed: Seed of the people.
    """
    whole = replace(face, operator=vstack([face.operator, rest]).tocsr())
    people = sample_people(source, whole, base_vertices, np.random.default_rng(seed)).astype(np.float32)
    count = len(mean_face)
    for k, person in enumerate(people):
        scale, rotation, shift = similarity(person[:count].astype(float), mean_face)
        people[k] = scale * person @ rotation.T + shift
    mean = people.mean(0, dtype=float)
    faces = (people[:, :count] - mean[:count].astype(np.float32)).reshape(len(people), -1)
    others = (people[:, count:] - mean[count:].astype(np.float32)).reshape(len(people), -1)
    values, vectors = np.linalg.eigh((faces @ faces.T).astype(float))
    values, vectors = values[: -COMPONENTS - 1 : -1], vectors[:, : -COMPONENTS - 1 : -1]
    components = (vectors / np.sqrt(values)).T @ faces
    return HeadPopulation(mean, components, values / len(people), (vectors / np.sqrt(values)).T @ others)


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
