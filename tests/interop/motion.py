"""Play the animated head of a track in Blender and in three.js, and compare it with the track at five times.

Usage: python -m tests.interop.motion PICTURE FOLDER

FOLDER has head.glb and tracking.npz; PICTURE gets the head in three.js. The exit code is 1 if a program shows another
pose, expression or time. Needs the packages of requirements.txt and package.json, but not mien.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.interop.heads import drawn

TOLERANCE = 2e-4
"""Of positions in metres, of entries of rotations, and of weights: Blender keeps times as 32-bit frame numbers."""
BLENDER_RATE = 25
TO_GLTF = np.diag([1.0, -1.0, -1.0])
"""From camera axes, y down and z into the scene."""
Z_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
"""From glTF's axes to Blender's."""


@dataclass(frozen=True)
class Moment:
    """What a program shows at a time."""

    time_s: float
    rotation: np.ndarray
    translation: np.ndarray
    weights: dict[str, list[float]]
    """Per expression, in each mesh that has it."""


@dataclass(frozen=True)
class Curves:
    """What tracking.npz says."""

    arrays: dict[str, np.ndarray]

    def faults(self, moment: Moment) -> list[str]:
        """Where a program differs from the track."""
        position = self._at(moment.time_s, self.arrays["translation"] @ TO_GLTF)
        turn, _, other = np.linalg.svd(self._at(moment.time_s, self.arrays["rotation"]))
        names = [str(name) for name in self.arrays["expression_names"]]
        expected = dict(zip(names, self._at(moment.time_s, self.arrays["expression"]), strict=True))
        faults = [f"no weight of {name}" for name in names if name not in moment.weights]
        away = {
            "translation": np.abs(moment.translation - position).max(),
            "rotation": np.abs(moment.rotation - turn @ other).max(),
            **{
                name: max(abs(v - expected[name]) for v in moment.weights[name])
                for name in names
                if name in moment.weights
            },
        }
        return faults + [f"{name} off by {error:.4f}" for name, error in away.items() if not error < TOLERANCE]

    def _at(self, time_s: float, values: np.ndarray) -> np.ndarray:
        """Linear between the frames."""
        times, flat = self.arrays["times_s"], values.reshape(len(values), -1)
        return np.array([np.interp(time_s, times, column) for column in flat.T]).reshape(values.shape[1:])

    def duration_s(self) -> float:
        return float(self.arrays["times_s"][-1])


def in_three(folder: Path, picture: Path) -> list[Moment]:
    found = drawn("motion.html", folder / "head.glb", picture)
    moments = []
    for shown in found["moments"]:
        matrix = np.reshape(shown["matrix"], (4, 4)).T
        moments.append(Moment(shown["time"], matrix[:3, :3], matrix[:3, 3], shown["weights"]))
    return moments


def in_blender(folder: Path, frames: list[int]) -> list[Moment]:
    import bpy

    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene: Any = bpy.context.scene
    scene.render.fps = BLENDER_RATE
    bpy.ops.import_scene.gltf(filepath=str(folder / "head.glb"))
    meshes = [item for item in bpy.data.objects if item.type == "MESH" and item.data.shape_keys]
    moments = []
    for frame in frames:
        scene.frame_set(frame)
        weights: dict[str, list[float]] = {}
        for item in meshes:
            for key in item.data.shape_keys.key_blocks[1:]:
                weights.setdefault(key.name, []).append(key.value)
        matrix = np.array(bpy.data.objects["head"].matrix_world)
        rotation = Z_UP.T @ matrix[:3, :3] @ Z_UP
        moments.append(Moment(frame / BLENDER_RATE, rotation, Z_UP.T @ matrix[:3, 3], weights))
    return moments


def main(picture: Path, folder: Path) -> int:
    with np.load(folder / "tracking.npz") as file:
        curves = Curves({name: file[name] for name in file.files})
    frames = np.linspace(0, curves.duration_s() * BLENDER_RATE, 5).astype(int).tolist()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        programs: dict[str, Callable[[], list[Moment]]] = {
            "three.js": lambda: in_three(folder, picture),
            "Blender": lambda: pool.submit(in_blender, folder, frames).result(200),
        }
        failed = False
        for program, play in programs.items():
            moments = play()
            faults = [f"{m.time_s:.2f} s: {', '.join(found)}" for m in moments if (found := curves.faults(m))]
            print(f"motion in {program}: {'; '.join(faults) or f'as tracked at {len(moments)} times'}", flush=True)
            failed |= bool(faults) or len(moments) < 5
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
