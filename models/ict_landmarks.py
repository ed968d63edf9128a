"""Landmark statistics of ICT-FaceKit (MIT), reduced to what the calibration needs.

    python models/ict_landmarks.py path/to/ict_facekit.npz

writes models/ict_landmarks.safetensors: mean and standard-deviation directions of the 68 points, and the mean of some
further points where none of the 68 lies: along the jaw, and a few spread over forehead and cheeks. Identities of
ICT-FaceKit are a_i ~ N(0, 1), so the directions are the identity offsets at those vertices.

Li et al., Learning Formation of Physically-Based Face Attributes, CVPR 2020 (arXiv 2004.03458).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

FILE = Path(__file__).with_name("ict_landmarks.safetensors")
MM_PER_UNIT = 10.0
FACE_VERTICES = 9409
"""The first vertices of ICT-FaceKit are the skin of face, head and neck; eyes, teeth and hair follow."""
REACH_MM, HOLES_MM = 95.0, 25.0
SPACING_MM = 18.0


@dataclass(frozen=True)
class LandmarkStatistics:
    """Points in millimetres, aligned without scale: rigid motions of the points are taken out of the directions."""

    mean: np.ndarray
    """(68, 3)"""
    directions: np.ndarray
    """(68, 3, 100); covariance = directions @ directions.T"""
    further_mean: np.ndarray
    """(J, 3) further points of jaw, cheeks and forehead, mean only."""


def read_statistics(path: Path = FILE) -> LandmarkStatistics:
    arrays = {name: array.astype(float) for name, array in load_file(path).items()}
    mean, directions = arrays["mean"], arrays["directions"]
    flat = directions.reshape(mean.size, -1)
    motions = rigid_motions(mean)
    directions = (flat - motions @ (motions.T @ flat)).reshape(directions.shape)
    return LandmarkStatistics(mean, directions, arrays["further_mean"])


def rigid_motions(points: np.ndarray) -> np.ndarray:
    """Orthonormal basis (3 P, 6) of small translations and rotations of points (P, 3)."""
    centred = points - points.mean(0)
    fields = [np.broadcast_to(axis, points.shape) for axis in np.eye(3)]
    fields += [np.cross(axis, centred) for axis in np.eye(3)]
    basis, _ = np.linalg.qr(np.stack([field.ravel() for field in fields], 1))
    return basis


def spread_over_skin(vertices: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Vertices of forehead and cheeks, each the farthest from the 68 points and from those chosen before it."""
    points = vertices[:FACE_VERTICES] * MM_PER_UNIT
    marks = vertices[table] * MM_PER_UNIT
    nose, mouth, eyes, chin = marks[30], marks[48:68].mean(0), marks[36:48].mean(0), marks[8]
    before = points[:, 2] > eyes[2] - 30.0
    outer = np.minimum(*(np.linalg.norm(points - hole, axis=1) for hole in (nose, mouth))) > HOLES_MM
    near = np.linalg.norm(points - nose, axis=1) < REACH_MM
    candidates = np.flatnonzero(before & outer & near & (points[:, 1] > chin[1]))
    distance = np.linalg.norm(points[candidates, None] - marks, axis=2).min(1)
    chosen = []
    while distance.max() > SPACING_MM:
        chosen.append(candidates[distance.argmax()])
        distance = np.minimum(distance, np.linalg.norm(points[candidates] - points[chosen[-1]], axis=1))
    return np.array(chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pack", type=Path, help="ict_facekit.npz")
    pack = np.load(parser.parse_args().pack)
    vertices, deltas, table = pack["vertices"], pack["identity_deltas"], pack["landmarks68"]
    jaw = np.concatenate([pack["jaw_right_extended"], pack["jaw_left_extended"]])
    further = np.concatenate([jaw, spread_over_skin(vertices, table)])
    save_file(
        {
            "mean": np.ascontiguousarray(vertices[table] * MM_PER_UNIT, np.float32),
            "directions": np.ascontiguousarray(np.moveaxis(deltas[:, table] * MM_PER_UNIT, 0, 2), np.float32),
            "further_mean": np.ascontiguousarray(vertices[further] * MM_PER_UNIT, np.float32),
        },
        FILE,
        {"source": "ICT-FaceKit, MIT licence, https://github.com/ICT-VGL/ICT-FaceKit", "unit": "mm"},
    )


if __name__ == "__main__":
    main()
