"""Find MediaPipe's 468 mesh points on the mean face by detecting them on renderings with mien.

    python models/locate_mediapipe.py [--model FILE]

renders the mean with painted brows, lips and irises from several sides, detects the points in every picture and writes
the places where they fall on the surface, averaged over the views and made symmetric, to models/mediapipe468.json.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
from build_face_model import ASSET
from landmarks import Sites, read_sites, write_sites
from preview import View, rasterize, render
from safetensors.numpy import load_file
from scipy.interpolate import RBFInterpolator
from scipy.spatial import cKDTree
from surface import REFLECT_X, closest_points, vertex_normals

from mien.morphable.landmark_tables import MEDIAPIPE_MIDLINE
from mien.perception import FaceDetector

YAWS = (-24.0, -12.0, 0.0, 12.0, 24.0)
PITCHES = (-5.0, 5.0)
SIZE, PIXELS_PER_MM = 480, 2.2
SKIN, LIP, BROW, IRIS, SCLERA = (
    np.array(c) for c in ((0.83, 0.64, 0.55), (0.66, 0.36, 0.34), (0.25, 0.17, 0.12), (0.22, 0.14, 0.1), (0.93,) * 3)
)
BROW_HEIGHT_MM = 7.0
OUTLIER_MM = 5.0
STRAY_MM = 3.5
"""A point this far from where its neighbours carry the network's own 3D mesh is where a view put it by mistake."""
WARP_SMOOTHING = 1e3
INNER_MM = 45.0
REFLECT_Y_AND_Z = np.array([1.0, -1.0, -1.0])
FACING = 0.3
"""Points whose surface turns away farther than this cosine are left out of the average."""


def paint(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Vertex colours (V, 3) that give the networks the features they look for."""
    mean, table = arrays["mean"].astype(float), arrays["landmarks68"]
    colours = np.tile(SKIN, (len(mean), 1))
    lips = arrays["mask_lips"].astype(float)[:, None]
    colours = colours * (1 - lips) + LIP * lips
    brow = mean[table[17:22]]
    x = -np.abs(mean[:, 0])
    top = np.interp(x, brow[:, 0], brow[:, 1])
    inside = (x > brow[0, 0] - 1) & (x < brow[-1, 0] + 1) & (mean[:, 2] > brow[0, 2] - 15)
    thickness = np.interp(x, brow[:, 0], BROW_HEIGHT_MM * np.array([0.35, 0.7, 0.9, 1.0, 1.0]))
    hair = inside * np.clip(1.5 - np.abs(mean[:, 1] - top + thickness / 2) / (thickness / 2), 0, 1)[:, None].T[0]
    colours = colours * (1 - 0.8 * hair[:, None]) + BROW * 0.8 * hair[:, None]
    eyes = arrays["mask_eyes"] > 0.5
    colours[eyes] = SCLERA
    for side in (-1, 1):
        ball = np.flatnonzero(eyes & (np.sign(mean[:, 0]) == side))
        pole = mean[ball[mean[ball, 2].argmax()]]
        colours[ball[np.linalg.norm(mean[ball, :2] - pole[:2], axis=1) < 5.7]] = IRIS
    colours[arrays["mask_mouth"] > 0.5] = LIP * 0.4
    return colours


def weighted_median(stack: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Coordinate-wise median (L, 3) of points (N, L, 3) with weights (N, L)."""
    order = stack.argsort(0)
    cumulative = np.take_along_axis(np.repeat(weight[..., None], 3, axis=2), order, axis=0).cumsum(0)
    middle = (cumulative < cumulative[-1] / 2).sum(0)
    return np.take_along_axis(np.take_along_axis(stack, order, axis=0), middle[None], axis=0)[0]


def without_strays(points: np.ndarray, network_mesh: np.ndarray, *, asymmetry: np.ndarray) -> np.ndarray:
    """The points (468, 3), those that disagree with a smooth warp of the network's mesh moved to where it puts them.

    The outline's points slide along the silhouette from view to view, so that averaging puts some of them on the
    cheek. In the network's own 3D mesh they keep their place among their neighbours.
    """
    middle = network_mesh[[1]] * [1, 1, 0]
    # The nose and the mouth bend more than the warp does, and every view sees them well.
    inner = (np.linalg.norm(network_mesh[:, :2] - middle[:, :2], axis=1) < INNER_MM) & (asymmetry < STRAY_MM)
    trusted = inner
    for _ in range(8):
        warp = RBFInterpolator(network_mesh[trusted], points[trusted], smoothing=WARP_SMOOTHING)
        expected = warp(network_mesh)
        trusted = inner | (np.linalg.norm(expected - points, axis=1) < STRAY_MM)
    print(f"{(~trusted).sum()} strays replaced: {np.flatnonzero(~trusted).tolist()}")
    return np.where(trusted[:, None], points, expected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ASSET)
    arguments = parser.parse_args()
    arrays = load_file(arguments.model)
    mean, triangles = arrays["mean"].astype(float), arrays["triangles"]
    mirror_sites = read_sites().mirror
    colours = paint(arrays)
    skin = ~((arrays["mask_eyes"] > 0.5) | (arrays["mask_mouth"] > 0.5))[triangles].any(1)
    perception = FaceDetector()
    found, parts, meshes = [], [], []
    views = 0
    for yaw, pitch in itertools.product(YAWS, PITCHES):
        view = View(yaw=yaw, pitch=pitch, scale=PIXELS_PER_MM, width=SIZE, height=SIZE)
        picture = render(mean, triangles, view, colours=colours, ambient=0.45)
        picture[(picture == 1).all(2)] = 0.45
        faces = perception.detect((picture * 255).astype(np.uint8))
        if not faces:
            print(f"yaw {yaw:.0f} pitch {pitch:.0f}: no face")
            continue
        views += 1
        if yaw == 0:
            meshes.append(faces[0].landmarks468_px * REFLECT_Y_AND_Z / PIXELS_PER_MM)
        index, barycentrics = rasterize(view.project(mean), triangles, height=SIZE, width=SIZE)
        rows, columns = np.nonzero(index >= 0)
        distance, nearest = cKDTree(np.stack([columns + 0.5, rows + 0.5], 1)).query(faces[0].landmarks468_px[:, :2])
        hit = index[rows[nearest], columns[nearest]]
        share = barycentrics[rows[nearest], columns[nearest]][..., None]
        points = (mean[triangles[hit]] * share).sum(1)
        normals = vertex_normals(mean, triangles) @ view.rotation().T
        facing = (normals[triangles[hit]] * share).sum(1)[:, 2]
        part = np.where((distance < 3 * PIXELS_PER_MM) & (facing > FACING), facing**2, 0) * np.cos(np.deg2rad(yaw)) ** 4
        found.append(points)
        parts.append(part)
    stack, weight = np.stack(found), np.stack(parts)
    points = weighted_median(stack, weight)
    near = weight * (np.linalg.norm(stack - points, axis=2) < OUTLIER_MM)
    # Where every view is an outlier of its neighbours the median itself stays.
    near[weight.argmax(0), np.arange(468)] += 1e-9
    points = np.einsum("nl,nld->ld", near, stack) / near.sum(0)[:, None]
    spread = np.sqrt((near * ((stack - points) ** 2).sum(2)).sum(0) / near.sum(0))
    symmetric = (points + points[mirror_sites] * REFLECT_X) / 2
    asymmetry = np.linalg.norm(points - symmetric, axis=1)
    print(
        f"{views} views; spread median {np.median(spread):.2f}, 90 % {np.percentile(spread, 90):.2f} mm; asymmetry "
        f"median {np.median(asymmetry):.2f}, 99 % {np.percentile(asymmetry, 99):.2f}, largest {asymmetry.max():.2f} mm"
    )
    network_mesh = np.mean(meshes, axis=0)
    network_mesh = network_mesh - network_mesh[list(MEDIAPIPE_MIDLINE)].mean(0) * [1, 0, 0]
    network_mesh = (network_mesh + network_mesh[mirror_sites] * REFLECT_X) / 2
    symmetric = without_strays(symmetric, network_mesh, asymmetry=asymmetry)
    symmetric = (symmetric + symmetric[mirror_sites] * REFLECT_X) / 2
    hits = closest_points(symmetric, mean, triangles[skin])
    weights = np.clip(hits.barycentrics, 0, 1)
    write_sites(Sites(np.flatnonzero(skin)[hits.triangles], weights / weights.sum(1, keepdims=True), mirror_sites))


if __name__ == "__main__":
    main()
