"""How closely the model fits twelve heads of ICT-FaceKit, and how far its mean lies from ICT's.

    python models/measure_face_model.py path/to/ict_facekit.npz [MODEL]

Point-to-plane ICP, 14 rounds, ridge 0.02 on the coefficients, matches beyond 20 mm (10 mm from the fifth round on)
ignored, eyes 63 mm apart, all in millimetres. One row for the mean alone, for part of the components and for all. The
model's mean goes through 130 points of ICT's mean, and its spread at 68 of them is ICT's: the heads are new, the
population they are drawn from is not.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from build_face_model import ASSET
from safetensors.numpy import load_file
from scipy.spatial import cKDTree
from surface import boundary_loops, closest_points, similarity, triangle_normals, vertex_areas, vertex_normals

from mien.morphable.landmark_tables import IBUG_LEFT_EYE, IBUG_NOSE_TIP, IBUG_RIGHT_EYE

HEADS, SEED = 12, 7
ICT_FACE_VERTICES = 9409
ROUNDS, RIDGE, POINT_WEIGHT = 14, 0.02, 0.15
SAMPLES = 3000
EYE_DISTANCE = 63.0
START = [30, 33, 36, 39, 42, 45, 48, 54, 27, 8, 31, 35]
"""Landmarks that start the alignment."""


@dataclass(frozen=True)
class Head:
    """A target surface with its 68 points."""

    vertices: np.ndarray
    triangles: np.ndarray
    points: np.ndarray


@dataclass(frozen=True)
class Fit:
    """Distances in millimetres of one fit."""

    mean: float
    median: float
    p95: float
    back: float
    """Mean distance from the head to the model."""
    coefficient_rms: float


@dataclass(frozen=True)
class Model:
    """What the fit needs of the model file."""

    mean: np.ndarray
    identity: np.ndarray
    triangles: np.ndarray
    table: np.ndarray
    region: np.ndarray
    """(V,) bool: skin of the face proper, without neck."""
    sample: np.ndarray


def read_model(path: Path) -> Model:
    arrays = load_file(path)
    mean, table = arrays["mean"].astype(float), arrays["landmarks68"]
    triangles = arrays["triangles"]
    chin, nose = mean[table[8]], mean[table[30]]
    region = (arrays["mask_eyes"] < 0.3) & (arrays["mask_mouth"] < 0.2)
    region &= np.linalg.norm(mean - nose, axis=1) < 100
    region &= ~((mean[:, 1] < chin[1] + 2) & (mean[:, 2] < chin[2] - 25))
    area = vertex_areas(mean, triangles) * region
    sample = np.random.default_rng(0).choice(len(mean), SAMPLES, replace=False, p=area / area.sum())
    identity = np.moveaxis(arrays["identity_basis"].astype(float), 0, 2)
    return Model(mean, identity, triangles, table, region, sample)


def read_heads(path: Path) -> tuple[list[Head], Head]:
    """Random heads and the mean one."""
    pack = np.load(path)
    base = pack["vertices"][:ICT_FACE_VERTICES].astype(float) * 10
    deltas = pack["identity_deltas"][:, :ICT_FACE_VERTICES] * 10.0
    triangles = pack["triangles"]
    triangles = triangles[(triangles < ICT_FACE_VERTICES).all(1)]
    rng = np.random.default_rng(SEED)
    heads = []
    for coefficients in [*rng.normal(size=(HEADS, 100)), np.zeros(100)]:
        vertices = base + np.einsum("k,kvd->vd", coefficients, deltas)
        points = vertices[pack["landmarks68"]] if pack["landmarks68"].max() < ICT_FACE_VERTICES else None
        if points is None:
            raise ValueError("a landmark of the pack lies outside its face part")
        scale = EYE_DISTANCE / np.linalg.norm(points[IBUG_RIGHT_EYE].mean(0) - points[IBUG_LEFT_EYE].mean(0))
        heads.append(Head(vertices * scale, triangles, points * scale))
    return heads[:-1], heads[-1]


def fit(model: Model, head: Head, components: int) -> tuple[np.ndarray, np.ndarray]:
    """The fitted shape (V, 3) in the head's place and the coefficients."""
    tree = cKDTree(head.vertices[head.triangles].mean(1))
    planes = triangle_normals(head.vertices, head.triangles)
    coefficients = np.zeros(components)
    basis = model.identity[:, :, :components]
    sampled = basis[model.sample].reshape(3 * SAMPLES, components)
    scale, rotation, shift = similarity(model.mean[model.table][START], head.points[START])
    for round_ in range(ROUNDS):
        shape = model.mean + basis @ coefficients
        placed = scale * shape[model.sample] @ rotation.T + shift
        hits = closest_points(placed, head.vertices, head.triangles, candidates=6, tree=tree)
        normals = vertex_normals(shape, model.triangles)[model.sample] @ rotation.T
        matched = (normals * planes[hits.triangles]).sum(1) > 0.5
        matched &= hits.distances < (20 if round_ < 4 else 10)
        if round_ % 2 == 0 or not components:
            scale, rotation, shift = similarity(shape[model.sample][matched], hits.points[matched])
        if components:
            wanted = ((hits.points - shift) @ rotation / scale - model.mean[model.sample])[matched]
            plane = (planes[hits.triangles] @ rotation)[matched]
            rows = sampled.reshape(SAMPLES, 3, components)[matched]
            along = np.einsum("vd,vdk->vk", plane, rows)
            flat = rows.reshape(3 * len(rows), components)
            normal_matrix = along.T @ along + POINT_WEIGHT * flat.T @ flat
            right = along.T @ (plane * wanted).sum(1) + POINT_WEIGHT * flat.T @ wanted.ravel()
            coefficients = np.linalg.solve(normal_matrix + RIDGE * matched.sum() * np.eye(components), right)
    return scale * (model.mean + basis @ coefficients) @ rotation.T + shift, coefficients


def evaluate(model: Model, head: Head, components: int) -> Fit:
    shape, coefficients = fit(model, head, components)
    hits = closest_points(shape[model.region], head.vertices, head.triangles)
    close = hits.distances < 12
    area = vertex_areas(model.mean, model.triangles)[model.region][close]
    forward = (hits.distances[close] * area).sum() / area.sum()
    border = np.zeros(len(shape), bool)
    border[boundary_loops(model.triangles)[0]] = True
    near = np.flatnonzero(np.linalg.norm(head.vertices - head.points[IBUG_NOSE_TIP], axis=1) < 95)
    back = closest_points(head.vertices[near], shape, model.triangles)
    corners = model.triangles[back.triangles]
    normals = (vertex_normals(shape, model.triangles)[corners] * back.barycentrics[..., None]).sum(1)
    facing = (normals * vertex_normals(head.vertices, head.triangles)[near]).sum(1) > 0.3
    valid = model.region[corners].all(1) & facing & ~border[corners].any(1) & (back.distances < 12)
    rms = float(np.sqrt((coefficients**2).mean())) if components else 0.0
    return Fit(
        float(forward),
        float(np.median(hits.distances[close])),
        float(np.percentile(hits.distances[close], 95)),
        float(back.distances[valid].mean()),
        rms,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pack", type=Path, help="ict_facekit.npz")
    parser.add_argument("model", type=Path, nargs="?", default=ASSET, help="model file (default: the packaged model)")
    options = parser.parse_args()
    model = read_model(options.model)
    heads, mean_head = read_heads(options.pack)
    print(f"{HEADS} heads, region of {model.region.sum()} vertices; millimetres")
    print("components  mean   median  p95   head-to-model  rms coefficient")
    for components in (0, 80, model.identity.shape[2]):
        fits = [evaluate(model, head, components) for head in heads]
        row = np.mean([[f.mean, f.median, f.p95, f.back, f.coefficient_rms] for f in fits], axis=0)
        print(f"{components:6d}      {row[0]:.3f}  {row[1]:.3f}  {row[2]:.2f}  {row[3]:.3f}          {row[4]:.2f}")
    print(f"mean face to ICT's mean face: {evaluate(model, mean_head, 0).mean:.3f}")


if __name__ == "__main__":
    main()
