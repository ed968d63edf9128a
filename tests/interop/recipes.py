"""Run the recipes that put a face over its photo, and compare them with the projection of mien.

Usage: python -m tests.interop.recipes FOLDER [FOLDER ...]

FOLDER is a result of `mien reconstruct`. The exit code is 1 if a landmark is a pixel or more off, or if an outline
overlaps mien's by an IoU below 0.98.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image, ImageDraw

HERE = Path(__file__).parent
EXAMPLES = HERE.parent.parent / "examples"
LARGEST_PX, LEAST_IOU = 1.0, 0.98
TIMEOUT_S = 300
_FINER = 4
"""Drawn pixels per side of a pixel of the outline."""


@dataclass(frozen=True)
class Overlay:
    """What a recipe draws."""

    landmarks: np.ndarray | None = None
    """(68, 2) pixels of the landmark vertices, from the corner of the first pixel."""
    alpha: np.ndarray | None = None
    """(H, W), 0 to 1: how much of each pixel the face covers."""


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def landmark_vertices(folder: Path) -> np.ndarray:
    with np.load(folder / "reconstruction.npz") as arrays:
        return arrays["landmarks68_vertices"]


def alpha_of(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGBA"))[..., 3] / 255


def opencv(folder: Path) -> Overlay:
    return Overlay(landmarks=example("04_opencv").project(folder)[landmark_vertices(folder)] + 0.5)


def opengl(folder: Path) -> Overlay:
    return Overlay(alpha=alpha_of(example("05_opengl").render(folder)))


def blender(folder: Path) -> Overlay:
    recipe = example("06_blender_camera")
    import bpy
    from bpy_extras.object_utils import world_to_camera_view

    with tempfile.TemporaryDirectory() as out:
        recipe.main(folder, f"{out}/face.png")
        alpha = alpha_of(Image.open(f"{out}/face.png"))
    scene, face = bpy.context.scene, bpy.data.objects["face"]
    shown = face.evaluated_get(bpy.context.evaluated_depsgraph_get()).data
    # Blender leaves out vertices without triangles, so the landmarks are found by their places.
    places = np.array([vertex.co for vertex in shown.vertices])
    with np.load(folder / "reconstruction.npz") as arrays:
        corners = np.unique(arrays["triangles"])
    known = obj_vertices(folder)[landmark_vertices(folder)] @ np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    assert len(corners) <= len(places)
    nearest = np.linalg.norm(places[:, None] - known[None], axis=2).argmin(axis=0)
    size = np.array([scene.render.resolution_x, scene.render.resolution_y])
    seen = [world_to_camera_view(scene, scene.camera, face.matrix_world @ shown.vertices[k].co) for k in nearest]
    return Overlay(landmarks=np.array([(place.x, 1 - place.y) for place in seen]) * size, alpha=alpha)


def three(folder: Path) -> Overlay:
    width, height = json.loads((folder / "coefficients.json").read_text())["image_size_px"]
    with tempfile.TemporaryDirectory() as out:
        ran = subprocess.run(
            [
                *("node", HERE / "browser.mjs", HERE / "over_photo.html", folder / "face.glb"),
                *("--screenshot", f"{out}/face.png", str(width), str(height)),
            ],
            capture_output=True, text=True, check=False, timeout=200,
        )  # fmt: skip
        if ran.returncode:
            raise ValueError(ran.stderr)
        alpha = alpha_of(Image.open(f"{out}/face.png"))
    vertices = np.reshape(json.loads(ran.stdout), (-1, 2))
    return Overlay(landmarks=vertices[landmark_vertices(folder)], alpha=alpha)


def embedded(folder: Path, part: str) -> Overlay:
    """The scene of --embed-camera through its own camera, in three.js."""
    width, height = json.loads((folder / "coefficients.json").read_text())["image_size_px"]
    with tempfile.TemporaryDirectory() as out:
        ran = subprocess.run(
            [
                *("node", HERE / "browser.mjs", HERE / "embedded_camera.html", folder / f"{part}_camera.glb"),
                *("--screenshot", f"{out}/face.png", str(width), str(height)),
            ],
            capture_output=True, text=True, check=False, timeout=200,
        )  # fmt: skip
        if ran.returncode:
            raise ValueError(ran.stderr)
        alpha = alpha_of(Image.open(f"{out}/face.png"))
    places = json.loads(ran.stdout)
    landmarks = np.array([places[vertex] for vertex in landmark_vertices(folder).tolist()])
    return Overlay(landmarks=landmarks, alpha=alpha if part == "face" else None)  # the outline is the face's


def embedded_face(folder: Path) -> Overlay:
    return embedded(folder, "face")


def embedded_head(folder: Path) -> Overlay:
    return embedded(folder, "head")


def obj_vertices(folder: Path) -> np.ndarray:
    rows = (line.split() for line in (folder / "face.obj").read_text().splitlines())
    return np.array([row[1:4] for row in rows if row[:1] == ["v"]], float)


def outline(folder: Path) -> np.ndarray:
    """How much of each pixel mien's projection of the mesh covers."""
    with np.load(folder / "reconstruction.npz") as arrays:
        xy, triangles, size = arrays["xy"], arrays["triangles"], arrays["image_size"]
    canvas = Image.new("L", tuple(size * _FINER))
    drawing = ImageDraw.Draw(canvas)
    for corners in xy[triangles] * _FINER:
        drawing.polygon([tuple(corner) for corner in corners], fill=255)
    return np.asarray(canvas.resize(tuple(size), Image.Resampling.BOX)) / 255


def faults(overlay: Overlay, folder: Path) -> tuple[str, bool]:
    """What was measured, and whether it is out of bounds."""
    measured, wrong = [], False
    if overlay.landmarks is not None:
        with np.load(folder / "reconstruction.npz") as arrays:
            off = float(np.linalg.norm(overlay.landmarks - arrays["landmarks68"], axis=1).max())
        measured.append(f"landmarks within {off:.3f} px")
        wrong |= not off < LARGEST_PX
    if overlay.alpha is not None:
        drawn, known = overlay.alpha > 0.5, outline(folder) > 0.5
        iou = float((drawn & known).sum() / (drawn | known).sum())
        measured.append(f"outline IoU {iou:.4f}")
        wrong |= not iou >= LEAST_IOU
    return ", ".join(measured), wrong


RECIPES: tuple[Callable[[Path], Overlay], ...] = (opencv, opengl, blender, three, embedded_face, embedded_head)


def main(folders: Sequence[Path]) -> int:
    failed = False
    for folder, recipe in itertools.product(folders, RECIPES):
        try:
            # Apart, as Blender takes the process for itself.
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                measured, wrong = faults(pool.submit(recipe, folder).result(TIMEOUT_S), folder)
        except Exception as error:
            measured, wrong = f"{type(error).__name__}: {error}", True
        print(f"{folder.name} over its photo in {recipe.__name__}: {measured}{' WRONG' if wrong else ''}", flush=True)
        failed |= wrong
    return int(failed)


if __name__ == "__main__":
    sys.exit(main([Path(argument) for argument in sys.argv[1:]]))
