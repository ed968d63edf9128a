"""Render a reconstructed face in Blender through the camera of its photo, to be laid over the photo.

Usage: blender --background --python examples/06_blender_camera.py -- out/photo/face0 OUT.png
or, with Blender as a Python package (`pip install bpy`): python examples/06_blender_camera.py FOLDER OUT.png

The folder has face.glb and coefficients.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import bpy
from mathutils import Matrix


def place(folder: Path) -> bpy.types.Object:
    """Import the face, place the camera, and return the face."""
    result = json.loads((folder / "coefficients.json").read_text())
    (width, height), camera = result["image_size_px"], result["camera"]
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.ops.import_scene.gltf(filepath=str(folder / "face.glb"))
    face, scene = bpy.data.objects["face"], bpy.context.scene

    lens = bpy.data.cameras.new("photo")
    lens.sensor_fit, lens.sensor_width = "HORIZONTAL", 36
    lens.lens = camera["focal_px"] / width * lens.sensor_width
    lens.shift_x = 0.5 - camera["centre_px"][0] / width
    lens.shift_y = (camera["centre_px"][1] - height / 2) / width
    lens.clip_start = 0.01
    scene.camera = bpy.data.objects.new("photo", lens)
    scene.collection.objects.link(scene.camera)
    scene.render.resolution_x, scene.render.resolution_y = width, height

    # The import turned glTF's y axis up to Blender's z axis.
    view = Matrix(result["matrices"]["view_opengl"]) @ Matrix.Rotation(-1.5707963267948966, 4, "X")
    scale = view.to_scale().x
    face.scale = (scale, scale, scale)
    scene.camera.matrix_world = (view @ Matrix.Scale(1 / scale, 4)).inverted()
    return face


def main(folder: Path, out: str) -> None:
    place(folder)
    scene = bpy.context.scene
    scene.world = bpy.data.worlds.new("white")
    scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (1, 1, 1, 1)
    scene.render.engine, scene.cycles.samples = "CYCLES", 16
    scene.view_settings.view_transform = "Standard"  # the colours of the texture, without a film curve
    scene.render.film_transparent = True
    scene.render.filepath = out
    bpy.ops.render.render(write_still=True)


if __name__ == "__main__":
    main(Path(sys.argv[-2]), sys.argv[-1])
