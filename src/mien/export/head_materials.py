"""Materials of head.glb in two looks, as the variants "relit" and "photo" of KHR_materials_variants.

The first look is also the default, because a viewer that ignores variants lights the scene. The second is unlit: its
colours have the photo's light already. Extensions are only those that Khronos has ratified, and none is required.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mien.export.glb_file import Glb, texture_document
from mien.export.gltf import gltf_uv
from mien.export.head_looks import HeadLooks
from mien.export.part_materials import PART_MATERIALS
from mien.export.rig import RigPart
from mien.export.tangent_space import layout_tangents
from mien.export.uv_layout import UvLayout
from mien.morphable import HeadModel, MorphableModel
from mien.morphable.head import EYES, SKIN
from mien.typing import Float

VARIANTS = ("relit", "photo")

_VARIANTS, _UNLIT, _IOR = "KHR_materials_variants", "KHR_materials_unlit", "KHR_materials_ior"
_DEPTH_M = 0.028
"""The light in the mouth falls to a third over this distance behind the lips."""
_LEAST_LIGHT = 0.25
_ON_LIPS = 0.5


class HeadMaterials:
    """Writes the images of a head and describes its materials.

    Args:
        glb: The file; the images are added to it.
        looks: The images.
        head: The head.
        model: Its face.
    """

    def __init__(self, glb: Glb, looks: HeadLooks, head: HeadModel, model: MorphableModel) -> None:
        self._looks, self._head, self._model = looks, head, model
        self._names = [part.name for part in head.parts]
        images = [(glb.add_texture(looks.relit), "skin_relit"), (glb.add_texture(looks.photo), "skin_photo")]
        images += [(glb.add_texture(looks.eyes_relit), "eyes_relit"), (glb.add_texture(looks.eyes_photo), "eyes_photo")]
        images.append((glb.add_roughness(looks.roughness), "skin_roughness"))
        if looks.normals is not None:
            images.append((glb.add_normal_map(looks.normals), "skin_normals"))
        self._images = [{**image, "name": name} for image, name in images]

    def document(self) -> dict[str, Any]:
        """The parts of the JSON chunk for materials and images."""
        relit = [self._relit(name) for name in self._names]
        photo = [self._photo(name) for name in self._names]
        return {
            "extensionsUsed": [_IOR, _UNLIT, _VARIANTS],
            "extensions": {_VARIANTS: {"variants": [{"name": name} for name in VARIANTS]}},
            "materials": relit + photo,
            **texture_document(self._images),
        }

    def of_primitive(self, name: str) -> dict[str, Any]:
        """The properties of a primitive that choose its material in each look."""
        relit = self._names.index(name)
        materials = (relit, relit + len(self._names))
        mappings = [{"material": material, "variants": [k]} for k, material in enumerate(materials)]
        return {"material": relit, "extensions": {_VARIANTS: {"mappings": mappings}}}

    def attributes(
        self, part: RigPart, *, vertices: Float[np.ndarray, "W 3"], normals: Float[np.ndarray, "W 3"]
    ) -> dict[str, Float[np.ndarray, "N K"]]:
        """The vertex attributes of a part that its materials need, by their names in glTF.

        Args:
            part: The part.
            vertices: All vertices of the head, metres.
            normals: Their unit normals.
        """
        rows = part.vertices
        if part.name == SKIN:
            found = {"TEXCOORD_0": gltf_uv(self._head.skin_uv.numpy())}
            if self._looks.normals is not None:
                layout = UvLayout.from_uv(self._head.skin_uv, torch.from_numpy(part.triangles).long())
                found["TANGENT"] = layout_tangents(vertices[rows], normals[rows], layout)
            return found
        if part.name in EYES:
            return {"TEXCOORD_0": gltf_uv(self._looks.eye_uv[EYES.index(part.name)])}
        lips = vertices[: len(self._model.mean)][self._model.masks.lips.numpy() > _ON_LIPS]
        return {"COLOR_0": _light_in_mouth(vertices[rows], front_m=float(lips[:, 2].max()))}

    def _relit(self, name: str) -> dict[str, Any]:
        surface = PART_MATERIALS[name]
        pbr: dict[str, Any] = {"metallicFactor": 0, "roughnessFactor": surface.roughness} | self._colour(name, look=0)
        material = _material(name, pbr, {_IOR: {"ior": surface.ior}})
        if name == SKIN:
            pbr["roughnessFactor"] = 1  # the map has the values
            pbr["metallicRoughnessTexture"] = {"index": 4}
            if self._looks.normals is not None:
                material["normalTexture"] = {"index": 5}
        return material

    def _photo(self, name: str) -> dict[str, Any]:
        # Values for viewers without KHR_materials_unlit, as its specification recommends them.
        pbr = {"metallicFactor": 0, "roughnessFactor": 0.9} | self._colour(name, look=1)
        return _material(f"{name}_photo", pbr, {_UNLIT: {}}, double_sided=name == SKIN)

    def _colour(self, name: str, *, look: int) -> dict[str, Any]:
        if name == SKIN or name in EYES:
            return {"baseColorTexture": {"index": look if name == SKIN else 2 + look}}
        colour = self._looks.part_colour_in_photo(name) if look else self._looks.part_colour(name)
        return {"baseColorFactor": [*colour, 1]}


def _light_in_mouth(vertices: Float[np.ndarray, "N 3"], *, front_m: float) -> Float[np.ndarray, "N 3"]:
    """Vertex colours that darken what lies deep behind the lips, whose front has this z."""
    depth = (front_m - vertices[:, 2]).clip(0)
    light = _LEAST_LIGHT + (1 - _LEAST_LIGHT) * np.exp(-depth / _DEPTH_M)
    return np.repeat(light[:, None], 3, axis=1).astype(np.float32)


def _material(
    name: str, pbr: dict[str, Any], extensions: dict[str, Any], *, double_sided: bool | None = None
) -> dict[str, Any]:
    # The neck is open: without doubleSided the head would be invisible from below.
    sided = name == SKIN if double_sided is None else double_sided
    return {"name": name, "doubleSided": sided, "pbrMetallicRoughness": pbr, "extensions": extensions}
