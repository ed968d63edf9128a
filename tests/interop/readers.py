"""One function per reader: what it finds in a GLB file. Each imports its own packages."""

from __future__ import annotations

import base64
import io
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from tests.interop.content import Content, content

HERE = Path(__file__).parent
NODE_FOLDER = HERE.parent.parent / "build" / "interop-node"
"""Folder of package.json and node_modules, as browser.mjs has it."""


def read_assimp_py(path: str) -> Content:
    import assimp_py

    meshes = assimp_py.import_file(path, 0).meshes
    return content(
        [np.asarray(mesh.vertices) for mesh in meshes],
        triangles=sum(mesh.num_faces for mesh in meshes),
        name=meshes[0].name,
    )


def read_impasse(path: str) -> Content:
    try:
        import impasse
    except BaseException as error:  # AssimpError is no Exception, and cannot be imported without the library
        raise ModuleNotFoundError(str(error)) from None
    try:
        scene = impasse.load(path)
    except impasse.errors.AssimpError as error:
        raise ValueError(str(error)) from None
    meshes = scene.meshes
    skin = np.asarray(meshes[0].vertices)
    targets = meshes[0].anim_meshes
    encoded = bytes(bytearray(np.frombuffer(scene.textures[0].data, np.uint8)))
    return content(
        [np.asarray(mesh.vertices) for mesh in meshes],
        triangles=sum(len(mesh.faces) for mesh in meshes),
        name=meshes[0].name,
        offsets=[np.asarray(target.vertices) - skin for target in targets],
        target_names=[target.name for target in targets],
        uv=v_down(np.asarray(meshes[0].texture_coords[0])),
        image=Image.open(io.BytesIO(encoded)),
    )


def read_open3d(path: str) -> Content:
    import open3d

    mesh = open3d.io.read_triangle_mesh(path)  # warns and returns an empty mesh if it fails
    vertices, triangles = np.asarray(mesh.vertices), np.asarray(mesh.triangles)
    uv = np.zeros((len(vertices), 2))
    uv[triangles.reshape(-1)] = np.asarray(mesh.triangle_uvs)
    image = np.asarray(mesh.textures[0]) if mesh.textures else None
    return content([vertices], triangles=len(triangles), uv=uv, image=image)


def read_pyvista(path: str) -> Content:
    import pyvista
    from vtkmodules.util.numpy_support import vtk_to_numpy

    reader = pyvista.get_reader(path)
    blocks = list(reader.read().recursive_iterator())
    data = dict(blocks[0].point_data) if blocks else {}  # it reports errors on stderr alone
    targets = sum(name.startswith("target") and name.endswith("_position") for name in data)
    image = reader.reader.GetTexture(0).GetVTKTexture().GetInput()
    width, height, _ = image.GetDimensions()
    rows = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)
    return content(
        [block.points for block in blocks],
        triangles=sum(block.n_cells for block in blocks),
        offsets=[data[f"target{index}_position"] for index in range(targets)],
        uv=data["TEXCOORD_0"],
        image=rows[::-1],  # VTK's first row is the lowest, but its v still points down
    )


def read_trimesh(path: str) -> Content:
    import trimesh

    geometry = trimesh.load_scene(path, process=False).geometry
    meshes = list(geometry.values())
    return content(
        [mesh.vertices for mesh in meshes],
        triangles=sum(len(mesh.faces) for mesh in meshes),
        name=next(iter(geometry)),
        target_names=meshes[0].metadata["targetNames"],
        uv=v_down(meshes[0].visual.uv),
        image=meshes[0].visual.material.baseColorTexture.convert("RGB"),
    )


def read_pygfx(path: str) -> Content:
    import pygfx

    scene = pygfx.load_gltf(path).scene
    meshes: list[pygfx.Mesh] = []
    scene.traverse(lambda node: meshes.append(node) if isinstance(node, pygfx.Mesh) else None)
    skin = meshes[0]
    return content(
        [mesh.geometry.positions.data for mesh in meshes],
        triangles=sum(len(mesh.geometry.indices.data) for mesh in meshes),
        name=skin.parent.name,
        offsets=skin.geometry.morph_positions,
        target_names=skin.morph_target_names,
        uv=skin.geometry.texcoords.data,
        image=skin.material.map.texture.data,
    )


def read_blender(path: str) -> Content:
    import bpy

    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.ops.import_scene.gltf(filepath=path)
    faces = [item for item in bpy.data.objects if item.type == "MESH"]
    mesh = faces[0].data
    keys = mesh.shape_keys.key_blocks
    shapes = np.empty((len(keys), len(mesh.vertices), 3), np.float32)
    for key, shape in zip(keys, shapes, strict=True):
        key.data.foreach_get("co", shape.reshape(-1))
    corners = np.empty(len(mesh.loops), np.int32)
    mesh.loops.foreach_get("vertex_index", corners)
    corner_uv = np.empty(2 * len(corners), np.float32)
    mesh.uv_layers[0].data.foreach_get("uv", corner_uv)
    uv = np.zeros((len(mesh.vertices), 2))
    uv[corners] = corner_uv.reshape(-1, 2)
    picture = bpy.data.images["texture"]
    pixels = np.empty(picture.size[0] * picture.size[1] * picture.channels, np.float32)
    picture.pixels.foreach_get(pixels)
    rows = pixels.reshape(picture.size[1], picture.size[0], -1)[::-1]
    return content(
        [shapes[0]],
        triangles=sum(len(polygon.vertices) == 3 for polygon in mesh.polygons),
        name=faces[0].name,
        offsets=list(shapes[1:] - shapes[0]),
        target_names=[key.name for key in keys[1:]],
        uv=v_down(uv),
        image=255 * rows,
    )


def v_down(uv: np.ndarray) -> np.ndarray:
    return uv[:, :2] * (1, -1) + (0, 1)


def read_in_browser(page: str, path: str) -> Content:
    ran = subprocess.run(
        ["node", HERE / "browser.mjs", HERE / page, path], capture_output=True, text=True, check=False, timeout=200
    )
    if ran.returncode:
        raise ValueError(ran.stderr.strip().splitlines()[-1] if ran.stderr.strip() else "node failed")
    found = json.loads(ran.stdout)
    return content(
        found["parts"],
        triangles=found["triangles"],
        name=found["name"],
        offsets=found["offsets"],
        target_names=found["targetNames"],
        uv=np.reshape(found["uv"], (-1, 2)),
        image=Image.open(io.BytesIO(base64.b64decode(found["image"].partition(",")[2]))).convert("RGB"),
    )


def read_three(path: str) -> Content:
    return read_in_browser("three.html", path)


def read_babylon(path: str) -> Content:
    return read_in_browser("babylon.html", path)


def node_version(package: str) -> str:
    return json.loads((NODE_FOLDER / "node_modules" / package / "package.json").read_text())["version"]


@dataclass(frozen=True)
class Reader:
    """A reader, and the package whose version the table has."""

    read: Callable[[str], Content]
    name: str
    package: str
    version: Callable[[str], str] = version
    up: str = "+Y"
    """Key of `FRAMES`."""
    file: str = "face.glb"
    """dense.glb for readers that lose sparse data."""
    may_be_missing: bool = False
    """It has no wheel for some Pythons, or needs a library of the system."""


READERS = (
    Reader(read_assimp_py, "assimp-py", "assimp-py", may_be_missing=True),
    Reader(read_impasse, "impasse", "impasse", may_be_missing=True),
    Reader(read_open3d, "Open3D", "open3d"),
    Reader(read_pyvista, "PyVista", "pyvista", file="dense.glb"),
    Reader(read_trimesh, "trimesh", "trimesh"),
    Reader(read_pygfx, "pygfx", "pygfx"),
    Reader(read_blender, "Blender", "bpy", up="+Z, face to −Y", may_be_missing=True),
    Reader(read_three, "three.js", "three", node_version),
    Reader(read_babylon, "Babylon.js", "babylonjs", node_version, up="+Y, x mirrored"),
)
