"""Make the model's population agree with real people: scan landmarks first, then caliper dimensions.

Both steps replace the distribution of some linear functions y of the shape x by a measured one and let the rest of
the shape follow as it is conditioned on them: with gain G = Cov(x, y) Cov(y)^-1, the new mean is
mean + G (measured mean - mean of y) and the new x is x - G y + G y_measured (Jeffrey's rule for Gaussians).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from anthropometry import NIOSH, Measures, place_measures, pupils
from face_region import FaceRegion
from gaussian_process import residual_modes, smooth_warp
from ict_landmarks import LandmarkStatistics, read_statistics, rigid_motions
from landmarks import Sites, place_68
from lips import CLEARANCE_MM, LipCloser, build_lip_closer
from population import Population, principal_components
from surface import REFLECT_X, closest_points, similarity, vertex_areas, vertex_normals

ICT_SCALE = 0.985
"""ICT-FaceKit states no unit. Its centimetres make the face 1.5 % larger than the survey's people in the mean of
interpupillary distance, subnasale-sellion, lip length, bizygomatic breadth, nose protrusion and face length."""
LANDMARK_NOISE_MM = 0.8
"""How far a vertex may be from the place that the scans' annotation means: also what the mesh can resolve."""
SIZE_SD = 0.045
"""Spread of overall size that Procrustes alignment took out of MakeHuman's people."""
WARP_ROUNDS = 8
NOSE_TIP, NOSE_TIP_NOISE_MM = 30, 0.3
"""The farthest point of a face is the same on any mesh."""
MEAN_TOLERANCE = 0.3
"""In standard deviations: scans and survey are of different people, and the mean is between the two."""
SLIDING = (*range(17), *range(17, 27))
"""Contour and brows: their place along the surface is a convention, so only their depth is data."""
CHAINS = ((27, 28, 29, 30), (31, 32, 33, 34, 35), (36, 37, 38, 39, 40, 41, 36), (42, 43, 44, 45, 46, 47, 42),
          (48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 48), (60, 61, 62, 63, 64, 65, 66, 67, 60))  # fmt: skip
CHAIN_CORNERS = (27, 30, 31, 33, 35, 36, 39, 42, 45, 48, 51, 54, 57, 60, 62, 64, 66)
"""Points with a meaning of their own. The others of a chain are somewhere between two of these: on our mesh and on the
scans' not at the same share of the way, so that along the chain they are free."""
ALONG_CHAIN_MM = 4.0
SLIDING_NOISE_MM = 1.0
PUPIL_DISTANCE = next(target.mean for target in NIOSH if target.name == "interpupillary distance")
PUPIL_NOISE_MM = 0.3
"""The lids' corners would drag the eyes together or apart; the survey knows where the pupils are."""


@dataclass(frozen=True)
class Calibrated:
    """The model's shape space in millimetres."""

    mean: np.ndarray
    identity: np.ndarray
    """(V, 3, 160)"""
    table: np.ndarray
    """(68,) landmark vertices."""
    measures: Measures
    lips: LipCloser


def calibrate(
    people: Population, region: FaceRegion, sites: Sites, *, components: int
) -> tuple[Population, Calibrated]:
    """The people turned into the scans' axes; mean warped, residual modes added, statistics imposed."""
    scans = read_statistics()
    people = people.turned(_nod(people.mean, region, sites, scans).T)
    mean, anchors = warp_to_scans(people.mean, region, sites, scans)
    lips = build_lip_closer(mean, region.triangles, region.lip_contact, region.lip_side)
    mean = lips.close(mean, clearance=CLEARANCE_MM)
    factor = _prior_factor(people, mean)
    factor = impose_landmark_spread(factor, mean, anchors, region=region, scans=scans)
    table = place_table(mean, region, sites, scans)
    measures = _measures(mean, region, table)
    mean, factor = impose_dimensions(mean, factor, measures, region=region)
    lips = build_lip_closer(mean, region.triangles, region.lip_contact, region.lip_side)
    mean = lips.close(mean, clearance=CLEARANCE_MM)
    factor = np.moveaxis(lips.close(np.moveaxis(factor.reshape(*mean.shape, -1), 2, 0)), 0, 2)
    identity = reduce(factor.reshape(mean.size, -1), mean, region, components)
    # Truncation, closing and symmetry shave a little off the spread: impose it once more on what is left.
    table = place_table(mean, region, sites, scans)
    measures = _measures(mean, region, table)
    flat = identity.reshape(mean.size, -1)
    mean, flat = impose_dimensions(mean, flat, measures, region=region)
    flat = np.moveaxis(lips.close(np.moveaxis(flat.reshape(*mean.shape, -1), 2, 0)), 0, 2).reshape(mean.size, -1)
    identity = reduce(flat, mean, region, components)
    mean = lips.close(mean, clearance=CLEARANCE_MM)
    return people, Calibrated(mean, identity, table, measures, lips)


def _measures(mean: np.ndarray, region: FaceRegion, table: np.ndarray) -> Measures:
    return place_measures(
        mean,
        triangles=region.triangles,
        mirror=region.mirror,
        eye=region.eye_cap,
        hidden=region.mouth_bag | region.lip_contact,
        table=table,
    )


@dataclass(frozen=True)
class Anchors:
    """Places on the mesh of the scans' 68 points."""

    triangles: np.ndarray
    barycentrics: np.ndarray

    def of(self, fields: np.ndarray, triangles: np.ndarray) -> np.ndarray:
        """Values (68, ...) of vertex fields (V, ...)."""
        return np.einsum("pc,pc...->p...", self.barycentrics, fields[triangles[self.triangles]])


def warp_to_scans(
    shape: np.ndarray, region: FaceRegion, sites: Sites, scans: LandmarkStatistics
) -> tuple[np.ndarray, Anchors]:
    """Mean shape through the scans' mean landmarks, and the places of those landmarks on the mesh."""
    target, further = _over(shape, region, sites, scans)
    warped = shape
    fixed = np.setdiff1d(np.arange(68), SLIDING)
    count = len(fixed)
    frames, spread = _chain_frames(target)
    across = list(pupils(region.triangles, region.eye_cap, shape))
    eye_x = np.sign(shape[across, 0]) * PUPIL_DISTANCE / 2
    sliding_points = np.concatenate([target[list(SLIDING)], further])
    for _ in range(WARP_ROUNDS):
        anchors = _anchor(warped, region, sites, target)
        hits = _on_skin(warped, region, sliding_points)
        places = Anchors(
            np.concatenate([anchors.triangles[fixed], hits.triangles]),
            np.concatenate([anchors.barycentrics[fixed], hits.barycentrics]),
        )
        sources = places.of(shape, region.triangles)
        normal = places.of(vertex_normals(warped, region.triangles), region.triangles)[count:]
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        directions = np.concatenate([*np.moveaxis(frames[fixed], 1, 0), normal, np.tile(np.eye(3)[0], (2, 1))])
        points = np.concatenate([np.tile(sources[:count], (3, 1)), sources[count:], shape[across]])
        wanted = np.concatenate([np.tile(target[fixed], (3, 1)), sliding_points, np.outer(eye_x, np.eye(3)[0])])
        noise = np.concatenate([spread[fixed].T.ravel(), np.full(len(normal), SLIDING_NOISE_MM), [PUPIL_NOISE_MM] * 2])
        offsets = ((wanted - points) * directions).sum(1)
        field = smooth_warp(shape, points, offsets, directions=directions, noise=noise)
        warped = shape + (field + field[region.mirror] * REFLECT_X) / 2
    return warped, _anchor(warped, region, sites, target)


def place_table(shape: np.ndarray, region: FaceRegion, sites: Sites, scans: LandmarkStatistics) -> np.ndarray:
    """The 68 vertices: eyes, nose and lips from the mesh, contour and brows where annotators of scans see them."""
    table = place_68(shape, region, sites)
    target, _ = _over(shape, region, sites, scans)
    hits = _on_skin(shape, region, target[list(SLIDING)])
    middle = region.mirror == np.arange(len(shape))
    for landmark, point in zip(SLIDING, hits.points, strict=True):
        mirrored = 16 - landmark if landmark < 17 else 43 - landmark
        if landmark <= mirrored:
            candidates = np.flatnonzero(middle if landmark == mirrored else ~middle & ~region.eye_cap)
            table[landmark] = candidates[np.linalg.norm(shape[candidates] - point, axis=1).argmin()]
            table[mirrored] = region.mirror[table[landmark]]
    return table


def impose_landmark_spread(
    factor: np.ndarray, mean: np.ndarray, anchors: Anchors, *, region: FaceRegion, scans: LandmarkStatistics
) -> np.ndarray:
    """Factor (3V, N + 100) whose 68 landmarks vary as the scans' do; the surface between follows."""
    shaped = factor.reshape(*mean.shape, -1)
    at_landmarks = anchors.of(shaped, region.triangles).reshape(3 * 68, -1)
    # Both populations in the same gauge: no rigid motion of the 68 points. The motion taken out of the points
    # is taken out of the whole face.
    points = anchors.of(mean, region.triangles)
    everywhere = _rigid_fields(mean, points.mean(0))
    local = _rigid_fields(points, points.mean(0))
    motion = np.linalg.lstsq(local, at_landmarks, rcond=None)[0]
    factor = factor - everywhere @ motion
    at_landmarks = at_landmarks - local @ motion
    measured = scans.directions.reshape(3 * 68, -1) * ICT_SCALE
    noise = LANDMARK_NOISE_MM**2 * np.eye(3 * 68)
    gain = factor @ np.linalg.solve(at_landmarks @ at_landmarks.T + noise, at_landmarks).T
    return np.concatenate([factor - gain @ at_landmarks, gain @ measured], 1)


def _rigid_fields(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Translations and rotations (3 P, 6) about a centre."""
    fields = [np.broadcast_to(axis, points.shape) for axis in np.eye(3)]
    fields += [np.cross(axis, points - centre) for axis in np.eye(3)]
    return np.stack([field.ravel() for field in fields], 1)


def impose_dimensions(
    mean: np.ndarray, factor: np.ndarray, measures: Measures, *, region: FaceRegion
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and factor whose caliper dimensions have the survey's means and standard deviations.

    The mean follows in the neighbourhood of the calipers only: elsewhere the scans have placed it. A factor follows as
    people vary.
    """
    wanted = np.array([target.mean for target in NIOSH])
    spread = np.array([target.sd for target in NIOSH])
    count = len(wanted)
    nearby = residual_modes(mean).reshape(mean.size, -1)
    noise = np.diag((MEAN_TOLERANCE * spread) ** 2)
    projected = measures.gradient(mean).reshape(count, -1) @ nearby
    missing = wanted - measures.of(mean)
    step = (nearby @ (projected.T @ np.linalg.solve(projected @ projected.T + noise, missing))).reshape(mean.shape)
    mean = mean + (step + step[region.mirror] * REFLECT_X) / 2
    projected = measures.gradient(mean).reshape(count, -1) @ factor
    covariance = projected @ projected.T
    ratio = spread / np.sqrt(np.diag(covariance))
    gain = factor @ np.linalg.solve(covariance, projected).T
    return mean, factor + gain @ ((ratio - 1)[:, None] * projected)


def reduce(factor: np.ndarray, mean: np.ndarray, region: FaceRegion, components: int) -> np.ndarray:
    """Leading symmetric-in-distribution components (V, 3, K) without rigid motions of the whole face."""
    shaped = factor.reshape(*mean.shape, -1)
    mirrored = shaped[region.mirror] * REFLECT_X[:, None]
    parts = [(shaped + mirrored) / 2, (shaped - mirrored) / 2]
    motions = rigid_motions(mean)
    both = np.concatenate([part.reshape(mean.size, -1) for part in parts], 1)
    both -= motions @ (motions.T @ both)
    weight = np.repeat(np.sqrt(importance(mean, region)), 3)[:, None]
    return (principal_components(both * weight, components) / weight).reshape(*mean.shape, -1)


def importance(mean: np.ndarray, region: FaceRegion) -> np.ndarray:
    """Weight (V,) of each vertex in the choice of components: its area, less for neck, scalp, eyes and mouth's inside.

    Components are orthogonal in this metric, so that they are spent on the surface of the face and not on the many
    vertices of the eyelids or on the neck.
    """
    area = vertex_areas(mean, region.triangles)
    nose = mean[:, 2].argmax()
    far = np.linalg.norm(mean - mean[nose], axis=1)
    outer = np.clip((far - 85.0) / 30.0, 0, 1)
    weight = area * (1 - 0.75 * outer) * np.where(region.eye_cap | region.mouth_bag, 0.25, 1.0)
    # Lids and lips are small and yet what a face is recognised by.
    weight += 0.3 * area.mean()
    return weight / weight.mean()


def _prior_factor(people: Population, mean: np.ndarray) -> np.ndarray:
    """MakeHuman's people, overall size and smooth residuals as one factor (3V, N)."""
    size = (mean - mean.mean(0)).reshape(-1, 1) * SIZE_SD
    parts = [people.components.reshape(mean.size, -1), size, residual_modes(mean).reshape(mean.size, -1)]
    return np.concatenate(parts, 1)


INNER = np.arange(27, 60)


def _nod(shape: np.ndarray, region: FaceRegion, sites: Sites, scans: LandmarkStatistics) -> np.ndarray:
    """Rotation (3, 3) from the scans' axes to the shape's by eyes, nose and mouth; a nod, as both are symmetric."""
    points = shape[place_68(shape, region, sites)[INNER]]
    _, rotation, _ = similarity(scans.mean[INNER] * ICT_SCALE, points, with_scale=False)
    angle = np.arctan2(rotation[2, 1], rotation[1, 1])
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])


def _over(
    shape: np.ndarray, region: FaceRegion, sites: Sites, scans: LandmarkStatistics
) -> tuple[np.ndarray, np.ndarray]:
    """The scans' mean points, at their own scale and in their own axes, shifted onto the shape's inner points."""
    points = shape[place_68(shape, region, sites)[INNER]]
    shift = (points.mean(0) - scans.mean[INNER].mean(0) * ICT_SCALE) * [0, 1, 1]
    return scans.mean * ICT_SCALE + shift, scans.further_mean * ICT_SCALE + shift


def _chain_frames(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal frames (68, 3, 3), one direction a row, and how exactly (68, 3) a point is known along each."""
    frames = np.tile(np.eye(3), (68, 1, 1))
    spread = np.full((68, 3), LANDMARK_NOISE_MM)
    spread[NOSE_TIP] = NOSE_TIP_NOISE_MM
    for chain in CHAINS:
        for before, landmark, after in zip(chain, chain[1:], chain[2:], strict=False):
            if landmark not in CHAIN_CORNERS:
                along = (points[after] - points[before])[:, None]
                frames[landmark] = np.linalg.qr(np.concatenate([along, np.eye(3)[:, :2]], 1))[0].T
                spread[landmark, 0] = ALONG_CHAIN_MM
    return frames, spread


def _on_skin(shape: np.ndarray, region: FaceRegion, points: np.ndarray):
    skin = np.flatnonzero(~(region.eye_cap | region.mouth_bag)[region.triangles].any(1))
    hits = closest_points(points, shape, region.triangles[skin])
    return type(hits)(hits.points, hits.distances, skin[hits.triangles], hits.barycentrics)


def _anchor(shape: np.ndarray, region: FaceRegion, sites: Sites, target: np.ndarray) -> Anchors:
    """Own vertices for eyes, nose and mouth; the closest skin for contour and brows."""
    table = place_68(shape, region, sites)
    hits = _on_skin(shape, region, target)
    triangles, barycentrics = hits.triangles.copy(), hits.barycentrics.copy()
    for landmark in np.setdiff1d(np.arange(68), SLIDING):
        triangle = int(np.flatnonzero((region.triangles == table[landmark]).any(1))[0])
        triangles[landmark] = triangle
        barycentrics[landmark] = region.triangles[triangle] == table[landmark]
    return Anchors(triangles, barycentrics)
