"""face.glb: the face as binary glTF 2.0, with the expressions as named morph targets.

The base mesh is the person's neutral face with its fine relief. The weights are those of the photo's expression, so a
viewer shows the photo's face and an animator can move it. Model space is glTF's own: metres, +Y up, the face towards
+Z. The writer is our own because it needs sparse accessors for the morph targets, which no library that we found writes
(docs/dependencies.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mien import __version__
from mien.export.animation import FaceAnimation, add_animation
from mien.export.face_normals import FaceNormals
from mien.export.glb_file import Glb, glb_extras, pack_glb, texture_document
from mien.export.part_materials import PART_MATERIALS
from mien.export.photo_camera import PhotoCamera
from mien.export.rig import Rig, RigPart, make_rig
from mien.export.tangent_space import tangent_normal_map, vertex_tangents
from mien.io.result_files import FACE, MeshOptions
from mien.morphable import MorphableModel
from mien.result import Reconstruction
from mien.typing import Float


def write_glb(
    reconstruction: Reconstruction,
    model: MorphableModel,
    path: Path,
    *,
    options: MeshOptions = MeshOptions(),  # noqa: B008 (it is frozen)
    rig: Rig | None = None,
    normals: FaceNormals | None = None,
) -> None:
    """Write a face as a GLB file, see `glb_bytes`.

    Args:
        reconstruction: The face.
        model: The face's model.
        path: The file to write.
        options: As in `glb_bytes`.
        rig: As in `glb_bytes`.
        normals: As in `glb_bytes`.

    Raises:
        OSError: The file cannot be written.
    """
    path.write_bytes(glb_bytes(reconstruction, model, options=options, rig=rig, normals=normals))


def glb_bytes(
    reconstruction: Reconstruction,
    model: MorphableModel,
    *,
    options: MeshOptions = MeshOptions(),  # noqa: B008 (it is frozen)
    rig: Rig | None = None,
    normals: FaceNormals | None = None,
    animation: FaceAnimation | None = None,
) -> bytes:
    """Encode a face as a GLB file.

    Morph weights are the fitted coefficients clamped to [0, 1]. The base mesh keeps what the clamp removes, so the
    default view is exactly `vertices_model`.

    Args:
        reconstruction: The face.
        model: The face's model, which gives the morph targets and the eye triangles.
        options: Neutral or not, with the photo's camera or not, and how the morph targets are stored.
        rig: The face's rig, if other files need it too.
        normals: The face's normals, if other files need them too.
        animation: Motion of the face in front of the video's camera; None for a still face at the origin.

    Returns:
        The content of the file.
    """
    rig = rig or make_rig(reconstruction, model, FACE, neutral=options.neutral)
    glb = Glb(options.morphs)
    primitives = [
        add_part(glb, rig, part, material={"material": k}, attributes={"TEXCOORD_0": gltf_uv(part.uv)})
        for k, part in enumerate(rig.layout.parts)
        if part.uv is not None  # as all parts of a face
    ]
    images = [glb.add_texture(reconstruction.texture)]
    if reconstruction.displacement.any():
        images.append(glb.add_normal_map(tangent_normal_map(reconstruction, model, normals=normals)))
        tangents = vertex_tangents(rig.base, rig.base_normals, model)[rig.layout.parts[0].vertices]
        primitives[0]["attributes"]["TANGENT"] = glb.add_vectors(tangents)
    mesh = {
        "name": "face",
        "primitives": primitives,
        "weights": [float(weight) for weight in rig.weights],
        "extras": {"targetNames": list(rig.names)},
    }
    camera = PhotoCamera.of(reconstruction) if options.embed_camera else None
    document = {
        "asset": {"version": "2.0", "generator": f"mien {__version__}", "extras": glb_extras(reconstruction)},
        **scene_document([{"name": "face", "mesh": 0}], camera),
        "meshes": [mesh],
        "materials": _materials(eyes=len(primitives) > 1, relief=len(images) > 1),
        **texture_document(images),
    }
    if animation is not None:
        add_animation(document, glb, animation)
    return pack_glb({**document, **glb.document()}, glb)


def scene_document(nodes: list[dict[str, Any]], camera: PhotoCamera | None) -> dict[str, object]:
    """The parts of the JSON chunk for a scene of one root node, the first one, and of the photo's camera.

    Args:
        nodes: All nodes.
        camera: The camera, at the origin; the root is placed before it. None for a root at the origin and no camera.
    """
    # Another name than the node's: three.js makes names unique, and "face" would be the scene.
    scene = {"name": "scene", "nodes": [0]}
    if camera is None:
        return {"scene": 0, "scenes": [scene], "nodes": nodes}
    scene["nodes"] = [0, len(nodes)]
    placed = [{**nodes[0], **camera.gltf_transform}, *nodes[1:], {"name": "camera", "camera": 0}]
    return {"scene": 0, "scenes": [scene], "nodes": placed, "cameras": [camera.gltf_camera]}


def add_part(
    glb: Glb,
    rig: Rig,
    part: RigPart,
    *,
    material: Mapping[str, object],
    attributes: Mapping[str, Float[np.ndarray, "N C"]],
    targets: Sequence[int] | None = None,
    origin: Float[np.ndarray, "3"] | None = None,
) -> dict[str, Any]:
    """Add a part of a rig with vertices and morph targets of its own.

    Args:
        glb: Where its data go.
        rig: The rig.
        part: The part.
        material: The properties of the primitive that choose its material.
        attributes: What its material needs at each vertex, by the names in glTF.
        targets: The morph targets to add. Default: all.
        origin: Position of the node in model space, metres. Default: the origin.

    Returns:
        The primitive of the mesh.
    """
    rows = part.vertices
    positions = rig.base[rows] if origin is None else rig.base[rows] - origin
    vectors = {"POSITION": positions, "NORMAL": rig.base_normals[rows], **attributes}
    kinds = {"POSITION": rig.position_targets(part), "NORMAL": rig.normal_targets(part)}
    added = glb.add_targets(kinds, range(len(rig.names)) if targets is None else targets)
    primitive: dict[str, Any] = {
        "attributes": {name: glb.add_vectors(values) for name, values in vectors.items()},
        "indices": glb.add_indices(part.triangles),
        **material,
        "targets": added,
    }
    if not np.array_equal(rows, np.arange(len(rows))):
        primitive["extras"] = {"modelVertices": rows.tolist()}
    return primitive


def gltf_uv(uv: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 2"]:
    """glTF's texture coordinates, v down, of those with v up."""
    return np.stack([uv[:, 0], 1 - uv[:, 1]], axis=-1).clip(0, 1)


def _materials(*, eyes: bool, relief: bool) -> list[dict[str, object]]:
    """Skin, with the normal map if there is one, and eyes if there are any."""
    skin = _material("skin")
    if relief:
        skin["normalTexture"] = {"index": 1}
    return [skin, _material("eyes")] if eyes else [skin]


def _material(name: str) -> dict[str, object]:
    # A face is an open surface: without doubleSided it would be invisible from behind.
    surface = {
        "baseColorTexture": {"index": 0},
        "metallicFactor": 0,
        "roughnessFactor": PART_MATERIALS[name].roughness,
    }
    return {"name": name, "doubleSided": True, "pbrMetallicRoughness": surface}
