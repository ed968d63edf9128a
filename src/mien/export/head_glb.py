"""head.glb: the whole head as binary glTF 2.0, with skin, eyes, teeth, gums, tongue and the 52 expressions.

The skin has one texture, the head's atlas, in two looks. Eyeballs are nodes of their own, at their centres, so that an
engine can turn them; the looks among the expressions turn them too.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from mien import __version__
from mien.export.animation import FaceAnimation, add_animation
from mien.export.glb_file import Glb, glb_extras, pack_glb
from mien.export.gltf import add_part, scene_document
from mien.export.head_looks import HeadLooks, head_looks
from mien.export.head_materials import HeadMaterials
from mien.export.photo_camera import PhotoCamera
from mien.export.rig import Rig, make_rig
from mien.io.result_files import HEAD, MeshOptions
from mien.morphable import MorphableModel, load_head
from mien.result import Reconstruction
from mien.typing import Float


def write_head_glb(
    reconstruction: Reconstruction,
    model: MorphableModel,
    path: Path,
    *,
    options: MeshOptions = MeshOptions(),  # noqa: B008 (it is frozen)
    rig: Rig | None = None,
) -> None:
    """Write the whole head as a GLB file, see `head_glb_bytes`.

    Args:
        reconstruction: The face.
        model: The face's model.
        path: The file to write.
        options: As in `head_glb_bytes`.
        rig: As in `head_glb_bytes`.

    Raises:
        ConfigError: `morphs` or `scalp` is unknown.
        ModelMismatch: The model has no head.
        OSError: The file cannot be written.
    """
    path.write_bytes(head_glb_bytes(reconstruction, model, options=options, rig=rig))


def head_glb_bytes(
    reconstruction: Reconstruction,
    model: MorphableModel,
    *,
    options: MeshOptions = MeshOptions(),  # noqa: B008 (it is frozen)
    rig: Rig | None = None,
    looks: HeadLooks | None = None,
    animation: FaceAnimation | None = None,
) -> bytes:
    """Encode the whole head as a GLB file.

    As in `glb_bytes`, the base is neutral and the morph weights are those of the photo's expression. The materials have
    two looks, see `mien.export.head_materials`.

    Args:
        reconstruction: The face.
        model: The face's model.
        options: Neutral or not, with the photo's camera or not, and how the morph targets are stored.
        rig: The head's rig, if other files need it too.
        looks: The head's images, if other files need them too.
        animation: Motion of the head in front of the video's camera; None for a still head at the origin.

    Returns:
        The content of the file.

    Raises:
        ModelMismatch: The model has no head.
    """
    rig = rig or make_rig(reconstruction, model, HEAD, neutral=options.neutral)
    glb = Glb(options.morphs)
    looks = looks or head_looks(reconstruction, model, load_head(model), scalp=options.scalp)
    nodes, content = head_document(glb, reconstruction, model, rig, looks)
    camera = PhotoCamera.of(reconstruction) if options.embed_camera else None
    document = {**content, **scene_document(nodes, camera)}
    if animation is not None:
        add_animation(document, glb, animation)
    return pack_glb({**document, **glb.document()}, glb)


def head_document(
    glb: Glb, reconstruction: Reconstruction, model: MorphableModel, rig: Rig, looks: HeadLooks
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The nodes of a head, its root first, and the parts of the JSON chunk that do not depend on the scene.

    Args:
        glb: Where the data of the meshes go.
        reconstruction: The face.
        model: The face's model.
        rig: The head's rig.
        looks: The head's images.
    """
    materials = HeadMaterials(glb, looks, load_head(model), model)
    nodes, meshes = head_nodes(glb, rig, materials)
    return nodes, {
        "asset": {"version": "2.0", "generator": f"mien {__version__}", "extras": glb_extras(reconstruction)},
        "meshes": meshes,
        **materials.document(),
    }


def head_nodes(glb: Glb, rig: Rig, materials: HeadMaterials) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Nodes and meshes: the head, and as its children the parts that can turn, at their centres."""
    look = functools.partial(materials.attributes, vertices=rig.base, normals=rig.base_normals)
    still = [
        add_part(glb, rig, part, material=materials.of_primitive(part.name), attributes=look(part))
        for part in rig.layout.parts
        if part.centre is None
    ]
    meshes = [_mesh("head", still, list(rig.names), rig.weights)]
    nodes: list[dict[str, Any]] = [{"name": "head", "mesh": 0, "children": []}]
    for part in rig.layout.parts:
        if part.centre is None:
            continue
        moving = np.flatnonzero(np.diff(rig.position_targets(part).plain.starts))
        origin = rig.base[part.centre].astype(float)
        primitive = add_part(
            glb,
            rig,
            part,
            material=materials.of_primitive(part.name),
            attributes=look(part),
            targets=moving.tolist(),
            origin=origin,
        )
        meshes.append(_mesh(part.name, [primitive], [rig.names[k] for k in moving], rig.weights[moving]))
        nodes[0]["children"].append(len(nodes))
        nodes.append({"name": part.name, "mesh": len(meshes) - 1, "translation": origin.tolist()})
    return nodes, meshes


def _mesh(
    name: str, primitives: list[dict[str, Any]], names: list[str], weights: Float[np.ndarray, "N"]
) -> dict[str, Any]:
    return {
        "name": name,
        "primitives": primitives,
        "weights": [float(weight) for weight in weights],
        "extras": {"targetNames": names},
    }
