"""head.glb: the whole head as binary glTF 2.0, with skin, eyes, teeth, gums, tongue and the 52 expressions.

The skin has one texture, the head's atlas, in two looks. Eyeballs are nodes of their own, at their centres, so that an
engine can turn them; the looks among the expressions turn them too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mien import __version__
from mien.export.glb_file import Glb, glb_extras, pack_glb
from mien.export.head_looks import head_looks
from mien.export.head_materials import HeadMaterials
from mien.export.morph_targets import (
    NORMAL_EPSILON,
    POSITION_EPSILON_M,
    EncodedTargets,
    MorphTargets,
    moved_normals,
)
from mien.export.surface import unit_normals
from mien.morphable import HeadModel, HeadPart, MorphableModel, load_head
from mien.morphable.head import EYES
from mien.morphable.per_model import per_model
from mien.result import Reconstruction
from mien.texture.scalp import check_scalp
from mien.typing import Float, Int


def write_head_glb(
    reconstruction: Reconstruction,
    model: MorphableModel,
    path: Path,
    *,
    morphs: str = "sparse",
    scalp: str = "hair",
) -> None:
    """Write the whole head as a GLB file, see `head_glb_bytes`.

    Args:
        reconstruction: The face.
        model: The face's model.
        path: The file to write.
        morphs: As in `write_glb`.
        scalp: As in `head_glb_bytes`.

    Raises:
        ConfigError: `morphs` or `scalp` is unknown.
        ModelMismatch: The model has no head.
        OSError: The file cannot be written.
    """
    path.write_bytes(head_glb_bytes(reconstruction, model, morphs=morphs, scalp=scalp))


def head_glb_bytes(
    reconstruction: Reconstruction, model: MorphableModel, *, morphs: str = "sparse", scalp: str = "hair"
) -> bytes:
    """Encode the whole head as a GLB file.

    As in `glb_bytes`, the base is neutral and the morph weights are those of the photo's expression. The materials have
    two looks, see `mien.export.head_materials`.

    Args:
        reconstruction: The face.
        model: The face's model.
        morphs: How the morph targets are stored: "sparse", or "dense" for readers that lose sparse data.
        scalp: What the scalp shows: "hair", short hair in the photo's colour, or "skin", a shaved scalp.

    Returns:
        The content of the file.

    Raises:
        ConfigError: `morphs` is neither "sparse" nor "dense", or `scalp` neither "hair" nor "skin".
        ModelMismatch: The model has no head.
    """
    head = load_head(model)
    looks = head_looks(reconstruction, model, head, scalp=check_scalp(scalp))
    shape = _neutral_head(reconstruction, model, head)
    glb = Glb(morphs)
    materials = HeadMaterials(glb, looks, head, model)
    nodes, meshes = _nodes(glb, shape, head, model, materials)
    document = {
        "asset": {"version": "2.0", "generator": f"mien {__version__}", "extras": glb_extras(reconstruction)},
        "scene": 0,
        "scenes": [{"name": "scene", "nodes": [0]}],
        "nodes": nodes,
        "meshes": meshes,
        **materials.document(),
        **glb.document(),
    }
    return pack_glb(document, glb)


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
    glb: Glb, shape: _NeutralHead, head: HeadModel, model: MorphableModel, materials: HeadMaterials
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The head, and its eyeballs as children at their centres."""
    names, face_count = list(model.expression_names), len(model.mean)
    still = [part for part in head.parts if part.name not in EYES]
    everything = np.arange(len(names))
    primitives = [_primitive(glb, shape, materials, part, everything, origin=np.zeros(3)) for part in still]
    meshes = [_mesh("head", primitives, names, shape.weights)]
    nodes: list[dict[str, Any]] = [{"name": "head", "mesh": 0, "children": [1, 2]}]
    for name, centre in zip(EYES, head.eye_centres, strict=True):
        part = head.part(name)
        looks = everything[np.abs(shape.moved[:, part.vertices.numpy()]).max((1, 2)) > POSITION_EPSILON_M]
        origin = shape.vertices[face_count + centre].astype(float)
        primitive = _primitive(glb, shape, materials, part, looks, origin=origin)
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
    glb: Glb, shape: _NeutralHead, materials: HeadMaterials, part: HeadPart, targets: Int[np.ndarray, "N"], *,
    origin: Float[np.ndarray, "3"],
) -> dict[str, Any]:  # fmt: skip
    """A part with its vertices, relative to the origin of its node, and its morph targets."""
    rows = part.vertices.numpy()
    attributes = {
        "POSITION": glb.add_vectors(shape.vertices[rows] - origin),
        "NORMAL": glb.add_vectors(shape.normals[rows]),
    }
    looks = materials.attributes(part, vertices=shape.vertices, normals=shape.normals)
    attributes |= {name: glb.add_vectors(values) for name, values in looks.items()}
    kinds = {"POSITION": (shape.moved, POSITION_EPSILON_M), "NORMAL": (shape.turned, NORMAL_EPSILON)}
    encoded = {
        name: EncodedTargets.of(MorphTargets.of(field[targets][:, rows], epsilon=limit), vertices=len(rows))
        for name, (field, limit) in kinds.items()
    }
    return {
        "attributes": attributes,
        "indices": glb.add_indices(part.triangles.numpy()),
        **materials.of_primitive(part.name),
        "targets": glb.add_targets(encoded),
    }
