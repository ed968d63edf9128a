"""Render a reconstructed face in Blender with four expressions.

Usage: blender --background --python examples/03_blender.py -- out/photo/face0/face.glb out/blender
or, with Blender as a Python package (`pip install bpy`): python examples/03_blender.py FACE.glb FOLDER
"""

from __future__ import annotations

import sys
from math import radians

import bpy

EXPRESSIONS = {
    "neutral": {},
    "surprised": {"jawOpen": 0.7, "browInnerUp": 1.0, "eyeWideLeft": 0.6, "eyeWideRight": 0.6},
    "wink": {"eyeBlinkLeft": 1.0, "mouthSmileLeft": 0.8, "mouthSmileRight": 0.5},
}

glb, folder = sys.argv[-2:]
bpy.ops.wm.read_factory_settings()  # a scene with a cube, a camera and a lamp
bpy.data.objects.remove(bpy.data.objects["Cube"])
bpy.ops.import_scene.gltf(filepath=glb)
face, camera, lamp = (bpy.data.objects[name] for name in ("face", "Camera", "Light"))
sliders = face.data.shape_keys.key_blocks[1:]  # the first key, "Basis", is the neutral face
expressions = {"photo": {slider.name: slider.value for slider in sliders}, **EXPRESSIONS}

# Blender's z axis is up; the face points to -y. Lengths are metres.
camera.location, camera.rotation_euler, camera.data.lens = (0, -0.7, 0), (radians(90), 0, 0), 95
lamp.location, lamp.data.energy, lamp.data.shadow_soft_size = (0.6, -0.8, 0.6), 8, 0.3
scene = bpy.context.scene
scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (0.5, 0.5, 0.5, 1)
for material in face.data.materials:
    material.node_tree.nodes["Principled BSDF"].inputs["Specular IOR Level"].default_value = 0.2

scene.render.engine = "CYCLES"
scene.cycles.samples = 32
scene.view_settings.view_transform = "Standard"  # the colours of the texture, without a film curve
scene.render.resolution_x = scene.render.resolution_y = 360
face.rotation_mode = "XYZ"
face.rotation_euler.z = radians(-20)
for name, strengths in expressions.items():
    for slider in sliders:
        slider.value = strengths.get(slider.name, 0)
    scene.render.filepath = f"{folder}/{name}.png"
    bpy.ops.render.render(write_still=True)
