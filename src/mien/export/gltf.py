"""face.glb: the face as binary glTF 2.0, with the expressions as named morph targets.

The base mesh is the person's neutral face with its fine relief. The weights are those of the photo's expression, so a
viewer shows the photo's face and an animator can move it. Model space is glTF's own: metres, +Y up, the face towards
+Z. The writer is our own because it needs sparse accessors for the morph targets, which no library that we found writes
(docs/dependencies.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mien import __version__
from mien.export.animation import FaceAnimation, add_animation
from mien.export.face_normals import FaceNormals
from mien.export.glb_file import Glb, glb_extras, pack_glb, texture_document
from mien.export.morph_targets import (
    NORMAL_EPSILON,
    POSITION_EPSILON_M,
    EncodedTargets,
    MorphTargets,
    exceeds,
    moved_normals,
)
from mien.export.surface import eye_triangles, unit_normals
from mien.export.tangent_space import tangent_normal_map, vertex_tangents
from mien.morphable import MorphableModel
from mien.morphable.per_model import per_model
from mien.result import Reconstruction
from mien.typing import Bool, Float, Int

_SKIN_ROUGHNESS = 0.6
_EYE_ROUGHNESS = 0.15  # wet


def write_glb(
    reconstruction: Reconstruction,
    model: MorphableModel,
    path: Path,
    *,
    morphs: str = "sparse",
    normals: FaceNormals | None = None,
) -> None:
    """Write a face as a GLB file, see `glb_bytes`.

    Args:
        reconstruction: The face.
        model: The face's model.
        path: The file to write.
        morphs: How the morph targets are stored.
        normals: The face's normals, if other files need them too.

    Raises:
        ConfigError: `morphs` is neither "sparse" nor "dense".
        OSError: The file cannot be written.
    """
    path.write_bytes(glb_bytes(reconstruction, model, morphs=morphs, normals=normals))


def glb_bytes(
    reconstruction: Reconstruction,
    model: MorphableModel,
    *,
    morphs: str = "sparse",
    normals: FaceNormals | None = None,
    animation: FaceAnimation | None = None,
) -> bytes:
    """Encode a face as a GLB file.

    Morph weights are the fitted coefficients clamped to [0, 1]. The base mesh keeps what the clamp removes, so the
    default view is exactly `vertices_model`.

    Args:
        reconstruction: The face.
        model: The face's model, which gives the morph targets and the eye triangles.
        morphs: How the morph targets are stored: "sparse", or "dense" for readers that lose sparse data.
        normals: The face's normals, if other files need them too.
        animation: Motion of the face in front of the video's camera; None for a still face at the origin.

    Returns:
        The content of the file.

    Raises:
        ConfigError: `morphs` is neither "sparse" nor "dense".
    """
    mesh_of_model = _model_mesh(model, reconstruction.triangles)
    morphs_of_face = _face_morphs(reconstruction, model, mesh_of_model)
    base = morphs_of_face.base
    base_normals = unit_normals(base, reconstruction.triangles)
    glb = Glb(morphs)
    primitives = _primitives(glb, reconstruction, mesh_of_model, morphs_of_face, normals=base_normals)
    images = [glb.add_texture(reconstruction.texture)]
    if reconstruction.displacement.any():
        images.append(glb.add_normal_map(tangent_normal_map(reconstruction, model, normals=normals)))
        tangents = vertex_tangents(base, base_normals, model)[mesh_of_model.parts[0].vertices]
        primitives[0]["attributes"]["TANGENT"] = glb.add_vectors(tangents)
    mesh = {
        "name": "face",
        "primitives": primitives,
        "weights": [float(weight) for weight in morphs_of_face.weights],
        "extras": {"targetNames": morphs_of_face.names},
    }
    document = {
        "asset": {"version": "2.0", "generator": f"mien {__version__}", "extras": glb_extras(reconstruction)},
        "scene": 0,
        # Another name than the node's: three.js makes names unique, and "face" would be the scene.
        "scenes": [{"name": "scene", "nodes": [0]}],
        "nodes": [{"name": "face", "mesh": 0}],
        "meshes": [mesh],
        "materials": _materials(eyes=len(primitives) > 1, relief=len(images) > 1),
        **texture_document(images),
    }
    if animation is not None:
        add_animation(document, glb, animation)
    return pack_glb({**document, **glb.document()}, glb)


@dataclass(frozen=True)
class _Part:
    """Skin or eyes: its vertices, by their index in the model, and its triangles, by the position among them."""

    vertices: Int[np.ndarray, "P"]
    places: Int[np.ndarray, "V"]
    """Position of each vertex of the model among `vertices`; -1 if no triangle of the part uses it."""
    triangles: Int[np.ndarray, "T 3"]
    moved: EncodedTargets
    """The model's blendshapes at this part's vertices."""

    def encoded(self, targets: MorphTargets) -> EncodedTargets:
        """Morph targets of the whole mesh at this part's vertices."""
        return EncodedTargets.of(targets.placed(self.places), vertices=len(self.vertices))


@dataclass(frozen=True)
class _ModelMesh:
    """What all faces of a model have in common; about 12 MB for the packaged model."""

    triangles: Int[np.ndarray, "T 3"]
    parts: list[_Part]
    basis: Float[np.ndarray, "N V 3"]
    """Offsets of the model's blendshapes, without the movements that no target stores."""
    moved: MorphTargets
    """The same as lists."""

    @classmethod
    def of(cls, model: MorphableModel, triangles: Int[np.ndarray, "T 3"]) -> _ModelMesh:
        """Divide the triangles of a model into skin and eyes."""
        basis = model.blendshapes[1].detach().cpu().numpy()
        moved = MorphTargets.of(basis, epsilon=POSITION_EPSILON_M)
        basis = basis * exceeds(basis, POSITION_EPSILON_M)[..., None]
        return cls(triangles, _parts(triangles, eye_triangles(model), moved, vertices=len(model.mean)), basis, moved)


def _kept_mesh(model: MorphableModel) -> _ModelMesh:
    return _ModelMesh.of(model, model.triangles.cpu().numpy().astype(np.int32))


def _model_mesh(model: MorphableModel, triangles: Int[np.ndarray, "T 3"]) -> _ModelMesh:
    """The mesh of a model, computed once if the triangles are the model's own."""
    kept = per_model(model, _kept_mesh)
    return kept if np.array_equal(kept.triangles, triangles) else _ModelMesh.of(model, triangles)


def _parts(
    triangles: Int[np.ndarray, "T 3"], eyes: Bool[np.ndarray, "T"], moved: MorphTargets, *, vertices: int
) -> list[_Part]:
    """Skin, and eyes if there are any.

    Vertex i of the skin is vertex i of the model, so that indices of landmarks hold. For this the skin keeps the places
    of vertices that only the eyes use, up to the last vertex of its own.
    """
    parts = []
    for some in (triangles[~eyes], triangles[eyes]):
        if not len(some):
            continue
        used = np.unique(some)
        rows = used if parts else np.arange(used[-1] + 1)
        places = np.full(vertices, -1, np.int32)
        places[used] = np.searchsorted(rows, used)
        of_part = EncodedTargets.of(moved.placed(places), vertices=len(rows))
        parts.append(_Part(rows, places, places[some], of_part))
    return parts


def _primitives(
    glb: Glb,
    reconstruction: Reconstruction,
    mesh: _ModelMesh,
    morphs: _FaceMorphs,
    *,
    normals: Float[np.ndarray, "V 3"],
) -> list[dict[str, Any]]:
    """Skin and eyes, each with vertices and morph targets of its own."""
    turned = moved_normals(
        morphs.moved, vertices=morphs.base, normals=normals, triangles=mesh.triangles, epsilon=NORMAL_EPSILON
    )
    uv = np.stack([reconstruction.uv[:, 0], 1 - reconstruction.uv[:, 1]], axis=-1).clip(0, 1)
    primitives = []
    for material, part in enumerate(mesh.parts):
        rows = part.vertices
        attributes = {
            "POSITION": glb.add_vectors(morphs.base[rows]),
            "NORMAL": glb.add_vectors(normals[rows]),
            "TEXCOORD_0": glb.add_vectors(uv[rows]),
        }
        moved = part.moved if morphs.moved is mesh.moved else part.encoded(morphs.moved)
        targets = glb.add_targets({"POSITION": moved, "NORMAL": part.encoded(turned)})
        indices = glb.add_indices(part.triangles)
        primitives.append({"attributes": attributes, "indices": indices, "material": material, "targets": targets})
        if not np.array_equal(rows, np.arange(len(rows))):
            primitives[-1]["extras"] = {"modelVertices": rows.tolist()}
    return primitives


OWN_EXPRESSION = "expression"
"""Morph target of the photo's expression, for models whose expression coefficients are not blendshapes."""


@dataclass(frozen=True)
class _FaceMorphs:
    """Morph targets of one face."""

    names: list[str]
    weights: Float[np.ndarray, "N"]
    moved: MorphTargets
    base: Float[np.ndarray, "V 3"]
    """The neutral face: with the weights, it is the photo's. It keeps the movements that no target stores."""


def _face_morphs(reconstruction: Reconstruction, model: MorphableModel, mesh: _ModelMesh) -> _FaceMorphs:
    """Names, weights and offsets of the morph targets.

    If the model's expression coefficients are the named blendshapes, they are the weights. If they are principal
    components, all blendshapes have weight zero, and one more target of weight one holds the photo's expression: the
    base is neutral and the default view shows the photo's face.
    """
    names = list(model.blendshapes[0])
    if model.blendshapes[0] == model.expression_names:
        weights = reconstruction.expression.clip(0, 1)
        # np.tensordot gave other last bits for the same face in a process that had done another photo before.
        shown = np.einsum("k,kvd->vd", weights, mesh.basis).astype(np.float32)
        return _FaceMorphs(names, weights, mesh.moved, reconstruction.vertices_model - shown)
    own = np.einsum("k,kvd->vd", reconstruction.expression, model.expression_basis.detach().cpu().numpy())
    moved = mesh.moved.joined(MorphTargets.of(own[None], epsilon=POSITION_EPSILON_M))
    shown = (own * exceeds(own, POSITION_EPSILON_M)[:, None]).astype(np.float32)
    weights = np.append(np.zeros(len(names), np.float32), np.float32(1))
    return _FaceMorphs([*names, OWN_EXPRESSION], weights, moved, reconstruction.vertices_model - shown)


def _materials(*, eyes: bool, relief: bool) -> list[dict[str, object]]:
    """Skin, with the normal map if there is one, and eyes if there are any."""
    skin = _material("skin", roughness=_SKIN_ROUGHNESS)
    if relief:
        skin["normalTexture"] = {"index": 1}
    return [skin, _material("eyes", roughness=_EYE_ROUGHNESS)] if eyes else [skin]


def _material(name: str, *, roughness: float) -> dict[str, object]:
    # A face is an open surface: without doubleSided it would be invisible from behind.
    surface = {"baseColorTexture": {"index": 0}, "metallicFactor": 0, "roughnessFactor": roughness}
    return {"name": name, "doubleSided": True, "pbrMetallicRoughness": surface}
