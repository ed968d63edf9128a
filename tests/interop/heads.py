"""Open heads as VRM in three-vrm and as USDZ in Blender, and draw twelve expressions of each in three.js.

Usage: python -m tests.interop.heads OUT FOLDER [FOLDER ...]

FOLDER has head.glb, head.vrm and head.usdz; OUT gets NAME_expressions.png and NAME_vrm.png. The exit code is 1 if a
reader finds something else than the file has.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tests.interop.content import Glb, Obj

HERE = Path(__file__).parent
REQUIRED_BONES = 15
GAZE_RANGE = (0.3, 1.0)
"""Strength of lookLeft for a gaze of 10°: the eyes of the packaged head turn by 10° to 30°."""
TOLERANCE_M = 1e-5


def drawn(page: str, file: Path, picture: Path) -> Any:
    """What a page returns for a file, with a screenshot."""
    command = ["node", HERE / "browser.mjs", HERE / page, file, "--screenshot", picture, "960", "900"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    if ran.returncode:
        raise ValueError(ran.stderr.strip())
    return json.loads(ran.stdout)


def vrm_faults(folder: Path, picture: Path) -> list[str]:
    """What three-vrm finds otherwise than the file has it."""
    found = drawn("expressions.html", folder / "head.vrm", picture)
    extension = Glb(folder / "head.vrm").document["extensions"]["VRMC_vrm"]
    expected = {
        "version": "1",
        "bones": set(extension["humanoid"]["humanBones"]),
        "presets": set(extension["expressions"]["preset"]),
        "custom": set(extension["expressions"]["custom"]),
    }
    faults = [
        f"{name}: {sorted(found[name])} instead of {sorted(value)}"
        for name, value in expected.items()
        if (set(found[name]) if isinstance(value, set) else found[name]) != value
    ]
    if len(expected["bones"]) < REQUIRED_BONES:
        faults.append("too few bones")
    faults += [f"the expression {name} moves nothing" for name, sum_ in found["moved"].items() if not sum_ > 0]
    if not GAZE_RANGE[0] < found["lookLeft"] <= GAZE_RANGE[1]:
        faults.append(f"a gaze of 10° to the left gives lookLeft {found['lookLeft']:.2f}")
    return faults


def usd_faults(folder: Path) -> list[str]:
    """What Blender's importer of USD finds otherwise than head.obj and head.glb have it."""
    import bpy

    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.ops.wm.usd_import(filepath=str(folder / "head.usdz"))
    bpy.context.scene.frame_set(0)  # the weights are a sample in time
    obj, glb = Obj.read(folder / "head.obj"), Glb(folder / "head.glb")
    meshes = {item.name: item for item in bpy.data.objects if item.type == "MESH"}
    parts = {material["name"].split(" ")[0] for material in glb.document["materials"]}
    faults = [f"no part {name}" for name in sorted(parts - set(meshes))]
    triangles = sum(len(item.data.polygons) for item in meshes.values())
    if triangles != len(obj.corners):
        faults.append(f"{triangles} triangles instead of {len(obj.corners)}")
    names = {key.name for item in meshes.values() for key in item.data.shape_keys.key_blocks[1:]}
    unknown = names - set(glb.document["meshes"][0]["extras"]["targetNames"])
    if unknown or len(names) < len(glb.document["meshes"][0]["extras"]["targetNames"]):
        faults.append(f"{len(names)} shape keys, unknown {sorted(unknown)}")
    depsgraph = bpy.context.evaluated_depsgraph_get()
    places = []
    for item in meshes.values():
        shown = item.evaluated_get(depsgraph)
        matrix = np.array(shown.matrix_world)
        used = {index for polygon in shown.data.polygons for index in polygon.vertices}
        points = np.array([shown.data.vertices[index].co for index in sorted(used)])
        places.append(points @ matrix[:3, :3].T + matrix[:3, 3])
    box = np.concatenate(places) @ np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    drawn_vertices = obj.vertices[np.unique(obj.corners)]
    error = max(np.abs(box.min(0) - drawn_vertices.min(0)).max(), np.abs(box.max(0) - drawn_vertices.max(0)).max())
    if not error < TOLERANCE_M:
        faults.append(f"the box with the photo's expression is off by {1000 * error:.3f} mm")
    return faults


def main(out: Path, folders: Sequence[Path]) -> int:
    failed = False
    for folder in folders:
        name = folder.parent.name if folder.name == "face0" else folder.name
        drawn("expressions.html", folder / "head.glb", out / f"{name}_expressions.png")
        checks = {"three-vrm": vrm_faults(folder, out / f"{name}_vrm.png")}
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            checks["USDZ in Blender"] = pool.submit(usd_faults, folder).result(200)
        for reader, faults in checks.items():
            print(f"{name} in {reader}: {', '.join(faults) or 'as it should be'}", flush=True)
            failed |= bool(faults)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]]))
