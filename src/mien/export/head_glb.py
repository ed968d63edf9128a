"""head.glb: the whole head as binary glTF 2.0, with skin, eyes, teeth, gums, tongue and the 52 expressions.

The skin has one texture, the head's atlas. Eyeballs are nodes of their own, at their centres, so that an engine can
turn them; the looks among the expressions turn them too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mien import __version__
from mien.export.glb_file import Glb, glb_extras, pack_glb, texture_document
from mien.export.gltf import add_part, scene_document
from mien.export.part_materials import PART_MATERIALS
from mien.export.photo_camera import PhotoCamera
from mien.export.rig import Rig, make_rig
from mien.io.result_files import HEAD, MeshOptions
from mien.morphable import MorphableModel, load_head
from mien.morphable.head import SKIN
from mien.result import Reconstruction
from mien.texture.head import head_atlas
from mien.typing import Float

_LARGEST_ATLAS = 4096


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
) -> bytes:
    """Encode the whole head as a GLB file.

    As in `glb_bytes`, the base is neutral and the morph weights are those of the photo's expression.

    Args:
        reconstruction: The face.
        model: The face's model.
        options: Neutral or not, with the photo's camera or not, and how the morph targets are stored.
        rig: The head's rig, if other files need it too.

    Returns:
        The content of the file.

    Raises:
        ModelMismatch: The model has no head.
    """
    rig = rig or make_rig(reconstruction, model, HEAD, neutral=options.neutral)
    glb = Glb(options.morphs)
    nodes, content = head_document(glb, reconstruction, model, rig)
    camera = PhotoCamera.of(reconstruction) if options.embed_camera else None
    return pack_glb({**content, **scene_document(nodes, camera), **glb.document()}, glb)


def head_document(
    glb: Glb, reconstruction: Reconstruction, model: MorphableModel, rig: Rig
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The nodes of a head, its root first, and the parts of the JSON chunk that do not depend on the scene.

    Args:
        glb: Where the data of the meshes go.
        reconstruction: The face.
        model: The face's model.
        rig: The head's rig.
    """
    nodes, meshes = head_nodes(glb, rig)
    atlas = atlas_of(reconstruction, model)
    return nodes, {
        "asset": {"version": "2.0", "generator": f"mien {__version__}", "extras": glb_extras(reconstruction)},
        "meshes": meshes,
        "materials": [_material(part.name) for part in rig.layout.parts],
        **texture_document([glb.add_texture(atlas)]),
    }


def atlas_of(reconstruction: Reconstruction, model: MorphableModel) -> Float[np.ndarray, "S S 3"]:
    """The texture of the head's skin and eyes; row 0 is v = 1."""
    head = load_head(model)
    texture = torch.from_numpy(reconstruction.texture.astype(np.float32)).permute(2, 0, 1)
    size = min(1 << (int(texture.shape[-1] / head.face_width) - 1).bit_length(), _LARGEST_ATLAS)
    return head_atlas(texture, model, head, size=size).permute(1, 2, 0).numpy()


def head_nodes(glb: Glb, rig: Rig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Nodes and meshes: the head, and as its children the parts that can turn, at their centres."""
    looks = {part.name: {"material": k} for k, part in enumerate(rig.layout.parts)}
    still = [add_part(glb, rig, part, look=looks[part.name]) for part in rig.layout.parts if part.centre is None]
    meshes = [_mesh("head", still, list(rig.names), rig.weights)]
    nodes: list[dict[str, Any]] = [{"name": "head", "mesh": 0, "children": []}]
    for part in rig.layout.parts:
        if part.centre is None:
            continue
        moving = np.flatnonzero(np.diff(part.moved.starts))
        origin = rig.base[part.centre].astype(float)
        primitive = add_part(glb, rig, part, look=looks[part.name], targets=moving.tolist(), origin=origin)
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


def _material(name: str) -> dict[str, object]:
    material = PART_MATERIALS[name]
    surface: dict[str, object] = {"metallicFactor": 0, "roughnessFactor": material.roughness}
    if material.colour is None:
        surface["baseColorTexture"] = {"index": 0}
    else:
        surface["baseColorFactor"] = [*material.colour, 1]
    # The neck is open: without doubleSided the head would be invisible from below.
    return {"name": name, "doubleSided": name == SKIN, "pbrMetallicRoughness": surface}
