"""Where on the face model the kinds of skin lie: smooth weights per vertex, derived from landmarks and masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree
from shading import vertex_normals

IRIS_RADIUS_MM = 5.85  # half of the adult's horizontal visible iris diameter, 11.7 mm (Rüfer et al. 2005)
PUPIL_RADIUS_MM = 1.8  # a room's light (Watson and Yellott 2012)


@dataclass(frozen=True)
class FaceMesh:
    """The parts of the packaged model that the albedo build reads; millimetres, symmetric by `mirror`."""

    vertices: np.ndarray
    triangles: np.ndarray
    mirror: np.ndarray
    landmarks68: np.ndarray
    mesh468: np.ndarray
    """(468, 3) positions of the face-mesh points."""
    identity_basis: np.ndarray
    lips: np.ndarray
    brows: np.ndarray
    eyes: np.ndarray
    neck: np.ndarray
    mouth: np.ndarray

    @property
    def normals(self) -> np.ndarray:
        return vertex_normals(self.vertices, self.triangles)


@dataclass(frozen=True)
class SkinRegions:
    """Weights (V,) in [0, 1]."""

    lips: np.ndarray
    brows: np.ndarray
    eyes: np.ndarray
    mouth: np.ndarray
    cheeks: np.ndarray
    nose: np.ndarray
    under_eye: np.ndarray
    lids: np.ndarray
    beard: np.ndarray
    """Where a beard grows: upper lip, chin, jaw, not the cheeks' apples nor the lips."""
    plain: np.ndarray
    """Skin whose lightness is even in most people; light and tone are measured there."""
    nostrils: np.ndarray
    hair: np.ndarray
    """Forehead above the brows and temples: hair may hang there, and nothing else is dark."""


def _rise(value: np.ndarray, width: float) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(value / width, -40, 40)))


def _blob(vertices: np.ndarray, centre: np.ndarray, radii: tuple[float, float, float]) -> np.ndarray:
    return np.exp(-(((vertices - centre) / radii) ** 2).sum(1))


def skin_regions(mesh: FaceMesh, openness: np.ndarray) -> SkinRegions:
    """Find the regions; `openness` (V,) is the share of the sky that a vertex sees (for the nostrils)."""
    v, mark = mesh.vertices, mesh.vertices[mesh.landmarks68]
    eye_vertices = mesh.eyes > 0.5
    to_eye = cKDTree(v[eye_vertices]).query(v)[0]
    skin = ~eye_vertices & (mesh.mouth < 0.5)
    lids = np.exp(-((to_eye / 6.0) ** 2)) * skin
    left, right = mark[42:48].mean(0), mark[36:42].mean(0)
    under_eye = np.zeros(len(v))
    cheeks = np.zeros(len(v))
    for eye, wing, corner in ((left, mark[35], mark[54]), (right, mark[31], mark[48])):
        under_eye += _blob(v, eye + np.array([0, -11.0, 0]), (13.0, 6.0, 25.0))
        outward = np.sign(eye[0])
        apple = np.array([eye[0] + 7.0 * outward, 0.5 * (wing[1] + eye[1]) - 6.0, corner[2]])
        cheeks += _blob(v, apple, (17.0, 15.0, 40.0))
    nose = _blob(v, mark[30] + [0, -1, -4], (13.0, 10.0, 16.0))
    nose_side = mark[31:36, 1].mean()
    nostrils = _rise(0.42 - openness, 0.04) * _blob(v, mark[33] + [0, 2, -2], (14.0, 9.0, 16.0))
    lips = mesh.lips * (mesh.mouth < 0.5)

    # The beard's upper border falls from the sideburns along the cheek to the corner of the mouth.
    across = np.abs(v[:, 0])
    corner = np.abs(mark[[48, 54], 0]).mean()
    border = mark[33, 1] - 4.0 + np.interp(across, [0, corner * 0.6, corner + 12, 58, 70], [0, -1, -9, 2, 22])
    throat = mark[8, 1] - 10.0 - 0.25 * np.clip(mark[8, 2] - v[:, 2], 0, 40)
    beard = _rise(border - v[:, 1], 2.5) * _rise(v[:, 1] - throat, 4.0) * (1 - lips) * skin
    below_lip = _blob(v, 0.5 * (mark[57] + mark[8]) + [0, 9, 0], (9.0, 5.0, 25.0))
    beard = beard * (1 - 0.35 * below_lip)

    side = np.interp(across, [52, 64], [1, 0])
    plain = skin * (lips < 0.05) * (mesh.brows < 0.05) * (mesh.neck < 0.5) * (to_eye > 7.0)
    plain = plain * side * (nostrils < 0.1) * (v[:, 1] > mark[8, 1] + 4)
    plain = plain * (1 - 0.85 * (beard > 0.3)) * (1 - 0.7 * np.clip(under_eye, 0, 1))
    near_nostril = (v[:, 1] < nose_side + 3) & (v[:, 1] > nose_side - 7) & (across < 16)
    return SkinRegions(
        lips=lips,
        brows=mesh.brows * skin,
        eyes=eye_vertices.astype(float),
        mouth=(mesh.mouth > 0.5).astype(float),
        cheeks=np.clip(cheeks, 0, 1) * skin,
        nose=nose * skin,
        under_eye=np.clip(under_eye, 0, 1) * skin,
        lids=lids,
        beard=beard,
        plain=plain * ~near_nostril,
        nostrils=nostrils,
        hair=_hair_zone(mesh, mark) * skin,
    )


def _hair_zone(mesh: FaceMesh, mark: np.ndarray) -> np.ndarray:
    v = mesh.vertices
    brow = mark[22:27]  # the subject's left, from the nose outwards; the right is its mirror image
    over = np.interp(np.abs(v[:, 0]), brow[:, 0], brow[:, 1])
    above = _rise(v[:, 1] - over - 5.5, 0.8)
    aside = _rise(np.abs(v[:, 0]) - brow[-1, 0] - 3.5, 0.8) * _rise(v[:, 1] - mark[33, 1], 3.0)
    return np.maximum(above, aside)


@dataclass(frozen=True)
class EyeParts:
    """Weights (V,) of the eye caps' parts, soft at their borders, zero on skin."""

    iris: np.ndarray
    limbus: np.ndarray
    pupil: np.ndarray
    corner: np.ndarray
    """Nearness to the canthi, where the white is redder and darker."""
    inner_ring: np.ndarray


def eye_parts(mesh: FaceMesh, along: float, up: float) -> EyeParts:
    """Place iris and pupil on the eye caps, their centres at the given shares of the opening (`pupil_fractions`).

    They come from photographs of a straight gaze, not from spheres through the caps: shaping the mean face to
    people's measures bends the caps, and a millimetre makes a squint.
    """
    v = mesh.vertices
    caps = mesh.eyes > 0.5
    iris, limbus, pupil, corner, inner = (np.zeros(len(v)) for _ in range(5))
    mark = v[mesh.landmarks68]
    for side, canthi, lids in ((1, (42, 45), (43, 44, 46, 47)), (-1, (39, 36), (37, 38, 40, 41))):
        mine = np.flatnonzero(caps & (np.sign(v[:, 0]) == side))
        inward, outward = mark[list(canthi)]
        upper, lower = mark[list(lids[:2]), 1].mean(), mark[list(lids[2:]), 1].mean()
        centre = np.array([inward[0] + along * (outward[0] - inward[0]), lower + up * (upper - lower)])
        away = np.linalg.norm(v[mine, :2] - centre, axis=1)
        iris[mine] = _rise(IRIS_RADIUS_MM - away, 0.28)
        limbus[mine] = np.exp(-(((away - IRIS_RADIUS_MM + 0.55) / 0.6) ** 2))
        pupil[mine] = _rise(PUPIL_RADIUS_MM - away, 0.22)
        inner[mine] = np.exp(-(((away - PUPIL_RADIUS_MM - 1.0) / 0.9) ** 2))
        gap = np.min([np.linalg.norm(v[mine] - c, axis=1) for c in (inward, outward)], 0)
        corner[mine] = np.exp(-((gap / 5.0) ** 2))
    return EyeParts(iris=iris, limbus=limbus, pupil=pupil, corner=corner, inner_ring=inner)
