"""head.glb: the whole head as binary glTF 2.0, with skin, eyes, teeth, gums, tongue and the 52 expressions.

The skin has one texture, the head's atlas. Eyeballs are nodes of their own, at their centres, so that an engine can
turn them; the looks among the expressions turn them too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mien import __version__
from mien.export.animation import FaceAnimation, add_animation
from mien.export.glb_file import Glb, glb_extras, pack_glb, texture_document
from mien.export.morph_targets import (
    NORMAL_EPSILON,
    POSITION_EPSILON_M,
    EncodedTargets,
    MorphTargets,
    moved_normals,
)
from mien.export.surface import unit_normals
from mien.morphable import HeadModel, HeadPart, MorphableModel, load_head
from mien.morphable.head import EYES, SKIN
from mien.morphable.per_model import per_model
from mien.result import Reconstruction
from mien.texture.head import head_atlas
from mien.typing import Float, Int

_LARGEST_ATLAS = 4096


@dataclass(frozen=True)
class _Material:
    roughness: float
    colour: tuple[float, float, float] | None
    """Linear RGB; None where the atlas gives the colours."""


_MATERIALS = {
    "skin": _Material(0.6, None),
    "eye_left": _Material(0.1, None),
    "eye_right": _Material(0.1, None),
    # Wet: saliva and mucosa. Colours chosen by eye, darker than they are, for the shade of the
    # mouth, which most viewers do not compute.
    "mouth": _Material(0.5, (0.05, 0.01, 0.01)),
    "tongue": _Material(0.35, (0.24, 0.06, 0.05)),
    "teeth": _Material(0.25, (0.46, 0.40, 0.31)),
    "gums": _Material(0.35, (0.20, 0.05, 0.045)),
}


def write_head_glb(
    reconstruction: Reconstruction, model: MorphableModel, path: Path, *, morphs: str = "sparse"
) -> None:
    """Write the whole head as a GLB file, see `head_glb_bytes`.

    Args:
        reconstruction: The face.
        model: The face's model.
        path: The file to write.
        morphs: As in `write_glb`.

    Raises:
        ModelMismatch: The model has no head.
        OSError: The file cannot be written.
    """
    path.write_bytes(head_glb_bytes(reconstruction, model, morphs=morphs))


def head_glb_bytes(
    reconstruction: Reconstruction,
    model: MorphableModel,
    *,
    morphs: str = "sparse",
    animation: FaceAnimation | None = None,
) -> bytes:
    """Encode the whole head as a GLB file.

    As in `glb_bytes`, the base is neutral and the morph weights are those of the photo's expression.

    Args:
        reconstruction: The face.
        model: The face's model.
        morphs: How the morph targets are stored: "sparse", or "dense" for readers that lose sparse data.
        animation: Motion of the head in front of the video's camera; None for a still head at the origin.

    Returns:
        The content of the file.

    Raises:
        ConfigError: `morphs` is neither "sparse" nor "dense".
        ModelMismatch: The model has no head.
    """
    head = load_head(model)
    shape = _neutral_head(reconstruction, model, head)
    glb = Glb(morphs)
    nodes, meshes = _nodes(glb, shape, head, model)
    texture = torch.from_numpy(reconstruction.texture.astype(np.float32)).permute(2, 0, 1)
    size = min(1 << (int(texture.shape[-1] / head.face_width) - 1).bit_length(), _LARGEST_ATLAS)
    atlas = head_atlas(texture, model, head, size=size).permute(1, 2, 0).numpy()
    names = [part.name for part in head.parts]
    document = {
        "asset": {"version": "2.0", "generator": f"mien {__version__}", "extras": glb_extras(reconstruction)},
        "scene": 0,
        "scenes": [{"name": "scene", "nodes": [0]}],
        "nodes": nodes,
        "meshes": meshes,
        "materials": [_material(name) for name in names],
        **texture_document([glb.add_texture(atlas)]),
    }
    if animation is not None:
        add_animation(document, glb, animation)
    return pack_glb({**document, **glb.document()}, glb)


@dataclass(frozen=True)
class _NeutralHead:
    """All vertices of the head without the photo's expression, and the expressions."""

    vertices: Float[np.ndarray, "W 3"]
    normals: Float[np.ndarray, "W 3"]
    weights: Float[np.ndarray, "E"]
    moved: Float[np.ndarray, "E W 3"]
    turned: Float[np.ndarray, "E W 3"]


def _neutral_head(reconstruction: Reconstruction, model: MorphableModel, head: HeadModel) -> _NeutralHead:
    """What the weights leave out stays in the neutral head, so that the default view is exactly the photo's."""
    basis, triangles = per_model(model, _joint_basis)
    identity, expression = (
        torch.from_numpy(x)[None].float() for x in (reconstruction.identity, reconstruction.expression)
    )
    own = head.own_vertices(identity, expression)[0].numpy()
    weights = reconstruction.expression.clip(0, 1).astype(np.float32)
    shown = np.einsum("k,kvd->vd", weights, basis)  # not tensordot, see `gltf`
    vertices = np.concatenate([reconstruction.vertices_model, own]).astype(np.float32) - shown
    normals = unit_normals(vertices, triangles)
    moved = MorphTargets.of(basis, epsilon=POSITION_EPSILON_M)
    turned = moved_normals(moved, vertices=vertices, normals=normals, triangles=triangles, epsilon=NORMAL_EPSILON)
    return _NeutralHead(vertices, normals, weights, basis, turned.dense(len(vertices)))


def _joint_basis(model: MorphableModel) -> tuple[Float[np.ndarray, "E W 3"], Int[np.ndarray, "T 3"]]:
    """The blendshapes at all vertices of the head, and its triangles over them."""
    head = load_head(model)
    basis = torch.cat([model.expression_basis.cpu(), head.expression_basis], dim=1).numpy()
    triangles = torch.cat([part.vertices[part.triangles] for part in head.parts]).numpy().astype(np.int32)
    return basis, triangles


def _nodes(
    glb: Glb, shape: _NeutralHead, head: HeadModel, model: MorphableModel
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The head, and its eyeballs as children at their centres."""
    names, face_count = list(model.expression_names), len(model.mean)
    still = [number for number, part in enumerate(head.parts) if part.name not in EYES]
    everything = np.arange(len(names))
    primitives = [_primitive(glb, shape, head, number, everything, origin=np.zeros(3)) for number in still]
    meshes = [_mesh("head", primitives, names, shape.weights)]
    nodes: list[dict[str, Any]] = [{"name": "head", "mesh": 0, "children": [1, 2]}]
    for name, centre in zip(EYES, head.eye_centres, strict=True):
        number = head.parts.index(head.part(name))
        vertices = head.parts[number].vertices.numpy()
        looks = everything[np.abs(shape.moved[:, vertices]).max((1, 2)) > POSITION_EPSILON_M]
        origin = shape.vertices[face_count + centre].astype(float)
        primitive = _primitive(glb, shape, head, number, looks, origin=origin)
        meshes.append(_mesh(name, [primitive], [names[k] for k in looks], shape.weights[looks]))
        nodes.append({"name": name, "mesh": len(meshes) - 1, "translation": origin.tolist()})
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


def _primitive(
    glb: Glb, shape: _NeutralHead, head: HeadModel, number: int, targets: Int[np.ndarray, "N"], *,
    origin: Float[np.ndarray, "3"],
) -> dict[str, Any]:  # fmt: skip
    """A part with its vertices, relative to the origin of its node, and its morph targets."""
    part = head.parts[number]
    rows = part.vertices.numpy()
    attributes = {
        "POSITION": glb.add_vectors(shape.vertices[rows] - origin),
        "NORMAL": glb.add_vectors(shape.normals[rows]),
    }
    uv = _uv(head, part)
    if uv is not None:
        attributes["TEXCOORD_0"] = glb.add_vectors(uv)
    kinds = {"POSITION": (shape.moved, POSITION_EPSILON_M), "NORMAL": (shape.turned, NORMAL_EPSILON)}
    encoded = {
        name: EncodedTargets.of(MorphTargets.of(field[targets][:, rows], epsilon=limit), vertices=len(rows))
        for name, (field, limit) in kinds.items()
    }
    return {
        "attributes": attributes,
        "indices": glb.add_indices(part.triangles.numpy()),
        "material": number,
        "targets": glb.add_targets(encoded),
    }


def _uv(head: HeadModel, part: HeadPart) -> Float[np.ndarray, "N 2"] | None:
    """glTF's texture coordinates, v down, of a part with the atlas."""
    if part.name == SKIN:
        uv = head.skin_uv
    elif part.name in EYES:
        total = len(part.vertices) + 1  # with the centre
        first = EYES.index(part.name) * total
        uv = head.eye_uv[first : first + total - 1]
    else:
        return None
    u, v = uv.numpy().T
    return np.stack([u, 1 - v], axis=-1).clip(0, 1)


def _material(name: str) -> dict[str, object]:
    material = _MATERIALS[name]
    surface: dict[str, object] = {"metallicFactor": 0, "roughnessFactor": material.roughness}
    if material.colour is None:
        surface["baseColorTexture"] = {"index": 0}
    else:
        surface["baseColorFactor"] = [*material.colour, 1]
    # The neck is open: without doubleSided the head would be invisible from below.
    return {"name": name, "doubleSided": name == SKIN, "pbrMetallicRoughness": surface}
