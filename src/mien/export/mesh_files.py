"""The mesh files of one face; what several of them need is made once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mien.errors import ConfigError
from mien.export.face_normals import FaceNormals
from mien.export.gltf import glb_bytes
from mien.export.head_glb import head_glb_bytes
from mien.export.head_looks import HeadLooks, head_looks
from mien.export.obj import materials_text, obj_text
from mien.export.part_materials import PART_MATERIALS, encoded
from mien.export.photo_camera import PhotoCamera
from mien.export.ply import ply_bytes
from mien.export.rig import Rig, make_rig
from mien.export.surface import unit_normals
from mien.export.tangent_space import tangent_normal_map
from mien.export.usd import usdz_bytes
from mien.export.vrm import vrm_bytes
from mien.io.pixels import to_uint8
from mien.io.png import png_bytes
from mien.io.result_files import FACE, HEAD, MeshOptions
from mien.morphable import MorphableModel, load_head
from mien.rendering import sample_map
from mien.result import Reconstruction
from mien.typing import Float


class MeshFiles:
    """The mesh files of one face.

    Args:
        reconstruction: The face.
        model: The face's model. None is enough for the PLY of a face that is not neutral.
        options: How meshes are written.
        normals: The face's normals, if other files need them too.
    """

    def __init__(
        self,
        reconstruction: Reconstruction,
        model: MorphableModel | None,
        options: MeshOptions,
        *,
        normals: FaceNormals | None = None,
    ) -> None:
        self._face, self._given_model, self._options, self._normals = reconstruction, model, options, normals
        self._rigs: dict[str, Rig] = {}

    def files(self, format_name: str, part: str, *, name: str, texture: str) -> dict[str, bytes]:
        """The files of one mesh: content by name, the mesh itself last.

        Args:
            format_name: One of the values of `MESH_ENDINGS`.
            part: `FACE` or `HEAD`.
            name: Name of the mesh file.
            texture: Name of the texture, if the format has one in a file of its own.

        Raises:
            ModelMismatch: The head of a model that has none is asked for.
        """
        if format_name != "obj":
            return {name: self.content(format_name, part)}
        rig, materials = self._rig(part), Path(name).with_suffix(".mtl").name
        return {
            texture: png_bytes(to_uint8(self._texture(part))),
            materials: materials_text(rig, texture=texture).encode(),
            name: obj_text(rig, materials=materials, options=self._options).encode(),
        }

    def content(self, format_name: str, part: str) -> bytes:
        """The content of a format that is one file.

        Args:
            format_name: `glb`, `ply`, `usd` or `vrm`.
            part: `FACE` or `HEAD`.

        Raises:
            ModelMismatch: The head of a model that has none is asked for.
        """
        encoders: dict[str, Callable[[str], bytes]] = {
            "glb": self._glb,
            "ply": self._ply,
            "usd": self._usd,
            "vrm": self._vrm,
        }
        return encoders[format_name](part)

    def _glb(self, part: str) -> bytes:
        shared = {"options": self._options, "rig": self._rig(part)}
        if part == FACE:
            return glb_bytes(self._face, self._model, normals=self._normals, **shared)
        return head_glb_bytes(self._face, self._model, looks=self._looks, **shared)

    def _usd(self, part: str) -> bytes:
        relief = None
        if part == FACE and self._face.displacement.any():
            relief = tangent_normal_map(self._face, self._model, normals=self._normals)
        camera = PhotoCamera.of(self._face) if self._options.embed_camera else None
        return usdz_bytes(
            self._rig(part), texture=self._texture(part), relief=relief, camera=camera, options=self._options
        )

    def _vrm(self, part: str) -> bytes:
        assert part == HEAD
        return vrm_bytes(self._face, self._model, options=self._options, looks=self._looks)

    def _ply(self, part: str) -> bytes:
        if self._given_model is None:
            vertices, triangles = self._face.vertices_model, self._face.triangles
            normals, colours = unit_normals(vertices, triangles), _sampled(self._face.texture, self._face.uv)
        else:
            rig = self._rig(part)
            vertices, triangles, normals = rig.shown, rig.layout.triangles, rig.shown_normals
            colours = self._colours(part)
        return ply_bytes(vertices, triangles, normals=normals, colours=colours, options=self._options)

    def _colours(self, part: str) -> Float[np.ndarray, "V 3"]:
        """Colours of the rig's vertices; where parts meet, that of the first one, which is the skin."""
        rig = self._rig(part)
        colours = np.zeros((len(rig.shown), 3), np.float32)
        colours[: len(self._face.uv)] = _sampled(self._face.texture, self._face.uv)
        for one in reversed(rig.layout.parts):
            colour = PART_MATERIALS[one.name].colour
            if colour is not None:
                colours[one.vertices] = encoded(colour)
            elif one.uv is not None:
                colours[one.vertices[one.used]] = _sampled(self._texture(part), one.uv)[one.used]
        return colours

    @property
    def _model(self) -> MorphableModel:
        if self._given_model is None:
            raise ConfigError("model=None, but this mesh needs it; give the model that made the face.")
        return self._given_model

    def _rig(self, part: str) -> Rig:
        if part not in self._rigs:
            self._rigs[part] = make_rig(self._face, self._model, part, neutral=self._options.neutral)
        return self._rigs[part]

    def _texture(self, part: str) -> Float[np.ndarray, "S S 3"]:
        return self._looks.photo if part == HEAD else self._face.texture

    @functools.cached_property
    def _looks(self) -> HeadLooks:
        return head_looks(self._face, self._model, load_head(self._model), scalp=self._options.scalp)


def _sampled(texture: Float[np.ndarray, "S S 3"], uv: Float[np.ndarray, "V 2"]) -> Float[np.ndarray, "V 3"]:
    """The colour of a texture at each vertex, sampled bilinearly."""
    maps = torch.from_numpy(texture.astype(np.float32)).permute(2, 0, 1)[None]
    return sample_map(maps, torch.from_numpy(uv))[0].numpy()
