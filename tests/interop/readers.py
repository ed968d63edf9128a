"""One function per reader: what it finds in a GLB file. Each imports its own packages."""

from __future__ import annotations

import base64
import io
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.interop.content import Content, content

HERE = Path(__file__).parent
NODE_FOLDER = HERE.parent.parent / "build" / "interop-node"
"""Folder of package.json and node_modules, as browser.mjs has it."""


def moved(vertices: object, matrix: object) -> np.ndarray:
    """Vertices by a 4 × 4 matrix on columns."""
    points = np.asarray(vertices, float).reshape(-1, 3)
    return points @ np.asarray(matrix, float)[:3, :3].T + np.asarray(matrix, float)[:3, 3]


def nodes_below(node: Any, matrix: np.ndarray) -> Iterator[tuple[Any, np.ndarray]]:
    """A node of Assimp and those below it, with the matrix of each to the scene."""
    matrix = matrix @ np.asarray(node.transformation, float)
    yield node, matrix
    for child in node.children:
        yield from nodes_below(child, matrix)


def read_assimp_py(path: str) -> Content:
    import assimp_py

    scene = assimp_py.import_file(path, 0)
    nodes = list(nodes_below(scene.root_node, np.eye(4)))
    placed = [(scene.meshes[index], matrix) for node, matrix in nodes for index in node.mesh_indices]
    return content(
        largest_first([moved(np.asarray(mesh.vertices), matrix) for mesh, matrix in placed]),
        triangles=sum(mesh.num_faces for mesh, _ in placed),
        name=placed[0][0].name,
        nodes=[node.name for node, _ in nodes],
    )


def largest_first(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Parts with the skin at the front."""
    return sorted(parts, key=len, reverse=True)


def read_impasse(path: str) -> Content:
    try:
        import impasse
    except BaseException as error:  # AssimpError is no Exception, and cannot be imported without the library
        raise ModuleNotFoundError(str(error)) from None
    try:
        scene = impasse.load(path)
    except impasse.errors.AssimpError as error:
        raise ValueError(str(error)) from None
    nodes = list(nodes_below(scene.root_node, np.eye(4)))
    placed = [(mesh, moved(np.asarray(mesh.vertices), matrix)) for node, matrix in nodes for mesh in node.meshes]
    skin = max((mesh for mesh, _ in placed), key=lambda mesh: len(mesh.vertices))
    targets = skin.anim_meshes
    encoded = bytes(bytearray(np.frombuffer(scene.textures[0].data, np.uint8)))
    return content(
        largest_first([vertices for _, vertices in placed]),
        triangles=sum(len(mesh.faces) for mesh, _ in placed),
        name=skin.name,
        offsets=[np.asarray(target.vertices) - np.asarray(skin.vertices) for target in targets],
        target_names=[target.name for target in targets],
        uv=v_down(np.asarray(skin.texture_coords[0])),
        nodes=[str(node.name) for node, _ in nodes],
        image=Image.open(io.BytesIO(encoded)),
    )


def read_open3d(path: str) -> Content:
    import open3d

    mesh = open3d.io.read_triangle_mesh(path)  # warns and returns an empty mesh if it fails
    vertices, triangles = np.asarray(mesh.vertices), np.asarray(mesh.triangles)
    uv, corner_uv = np.zeros((len(vertices), 2)), np.asarray(mesh.triangle_uvs)
    # Parts without a texture have no coordinates, and come last in our files.
    uv[triangles.reshape(-1)[: len(corner_uv)]] = corner_uv
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

    scene = trimesh.load_scene(path, process=False)
    placed = [(scene.geometry[name], matrix) for matrix, name in map(scene.graph.get, scene.graph.nodes_geometry)]
    skin = max((mesh for mesh, _ in placed), key=lambda mesh: len(mesh.vertices))
    return content(
        largest_first([moved(mesh.vertices, matrix) for mesh, matrix in placed]),
        triangles=sum(len(mesh.faces) for mesh, _ in placed),
        name=next(iter(scene.geometry)),
        target_names=skin.metadata["targetNames"],
        uv=v_down(skin.visual.uv),
        image=skin.visual.material.baseColorTexture.convert("RGB"),
    )


def read_pygfx(path: str) -> Content:
    import pygfx

    scene = pygfx.load_gltf(path).scene
    meshes: list[pygfx.Mesh] = []
    names: list[str] = []
    scene.traverse(lambda node: names.append(node.name))
    scene.traverse(lambda node: meshes.append(node) if isinstance(node, pygfx.Mesh) else None)
    skin = max(meshes, key=lambda mesh: len(mesh.geometry.positions.data))
    return content(
        largest_first([moved(mesh.geometry.positions.data, mesh.world.matrix) for mesh in meshes]),
        triangles=sum(len(mesh.geometry.indices.data) for mesh in meshes),
        name=skin.parent.name,
        offsets=skin.geometry.morph_positions,
        target_names=skin.morph_target_names,
        uv=skin.geometry.texcoords.data,
        nodes=names,
        image=skin.material.map.texture.data,
    )


def read_blender(path: str) -> Content:
    import bpy

    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.ops.import_scene.gltf(filepath=path)
    faces = sorted(
        (item for item in bpy.data.objects if item.type == "MESH"),
        key=lambda item: len(item.data.vertices),
        reverse=True,
    )
    parts = []
    for item in faces:
        keys = item.data.shape_keys.key_blocks
        shapes = np.empty((len(keys), len(item.data.vertices), 3), np.float32)
        for key, shape in zip(keys, shapes, strict=True):
            key.data.foreach_get("co", shape.reshape(-1))
        parts.append((shapes, [key.name for key in keys], np.array(item.matrix_world)))
    mesh, (shapes, names, _) = faces[0].data, parts[0]
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
        [moved(own[0], matrix) for own, _, matrix in parts],
        triangles=sum(len(polygon.vertices) == 3 for item in faces for polygon in item.data.polygons),
        name=faces[0].name,
        offsets=list(shapes[1:] - shapes[0]),
        target_names=names[1:],
        uv=v_down(uv),
        nodes=[item.name for item in faces],
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
        nodes=found["nodes"],
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
    dense: bool = False
    """Whether it loses sparse data."""
    may_be_missing: bool = False
    """It has no wheel for some Pythons, or needs a library of the system."""

    def file(self, part: str) -> str:
        """Name of the file that it reads."""
        return f"{part}_dense.glb" if self.dense else f"{part}.glb"


READERS = (
    Reader(read_assimp_py, "assimp-py", "assimp-py", may_be_missing=True),
    Reader(read_impasse, "impasse", "impasse", may_be_missing=True),
    Reader(read_open3d, "Open3D", "open3d"),
    Reader(read_pyvista, "PyVista", "pyvista", dense=True),
    Reader(read_trimesh, "trimesh", "trimesh"),
    Reader(read_pygfx, "pygfx", "pygfx"),
    Reader(read_blender, "Blender", "bpy", up="+Z, face to −Y", may_be_missing=True),
    Reader(read_three, "three.js", "three", node_version),
    Reader(read_babylon, "Babylon.js", "babylonjs", node_version, up="+Y, x mirrored"),
)
