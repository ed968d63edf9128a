"""How a head looks: images of its skin and eyes in two looks, its relief and gloss, and colours of its other parts.

The look "relit" has the photo's light removed, for an engine to light. The look "photo" is the photo's, to be shown as
it is. Other formats than glTF can use the same images.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from mien.export.part_materials import PART_MATERIALS
from mien.export.srgb import decode_srgb, encode_srgb
from mien.export.tangent_space import tangent_normal_map
from mien.geometry import vertex_normals
from mien.io.result_files import Scalp
from mien.lighting import LUMA, shading
from mien.morphable import HeadModel, MorphableModel, load_head
from mien.morphable.head import EYES
from mien.morphable.per_model import per_model
from mien.rendering import sample_map
from mien.result import Reconstruction
from mien.texture import TexelAtlas
from mien.texture.eyes import EyeMap, EyeTexture, eye_texture, seen_of_eye
from mien.texture.fill import box_mean
from mien.texture.head import HeadAtlas, continued_over_head, far_colour
from mien.texture.relight import DARKEST, filled_shade, luma, remove_light
from mien.texture.scalp import SurfaceNoise, hair_brightness, hair_cover, within_hairline_mm
from mien.texture.tint import PhotoTint
from mien.typing import Float, Tensor

SMALLEST_ATLAS, LARGEST_ATLAS = 1024, 4096
"""Sides of the skin's atlas in texels."""
_EYE_SHARE = 4
"""The side of the face's texture over that of an eyeball's."""
_SMALLEST_EYE = 128
_ROUGHNESS_SHARE = 4
"""The side of the atlas over that of the roughness map, which is smooth."""
_FINE_M, _COARSE_M = 1.1e-3, 3.2e-3
"""Distances over which the mottling of skin changes: pores, and patches."""
HAIR_M, WAVES_M = 0.45e-3, 9e-3
"""Distance of hairs in the texture, and of the hairline's waves."""
_SMOOTH_RADIUS = 96
"""Skin counts as smooth, and gets mottling, by its variation over the side of the face's map over this number, 2 mm."""
_MOTTLING = (0.006, 0.05)
"""Range of the standard deviation of log brightness of skin over these distances."""
_OUTLINE = 32
"""Directions around the outline whose mean light the back of a head has."""
_SEEN = 0.9
"""Texels with a larger share of seen skin show the photo's mottling."""

_ON_BROWS, _BROW_QUANTILE = 0.5, 0.3
"""Hair of the brows: the darker part of the texels where their mask is above the first value."""

_ROUGHNESS = {"skin": 0.55, "lips": 0.38, "gloss": 0.43, "hair": 0.85}
_GLOSSY_SPOTS_M = (((0.0, -0.012, 0.062), 0.014), ((0.0, 0.062, 0.033), 0.034), ((0.0, -0.092, 0.042), 0.014))
"""Nose tip, forehead and chin of the mean face, which sebum makes glossier, and the radius of each."""


@dataclass(frozen=True)
class HeadLooks:
    """The images of one head. Colours are sRGB-encoded, row 0 is v = 1."""

    relit: Float[np.ndarray, "A A 3"]
    """The skin without the photo's light."""
    photo: Float[np.ndarray, "A A 3"]
    """The skin as photographed."""
    normals: Float[np.ndarray, "N N 3"] | None
    """Tangent-space normals of the skin; None for a face without relief."""
    roughness: Float[np.ndarray, "R R"]
    """Roughness of the skin, 0 to 1."""
    eyes_relit: Float[np.ndarray, "E F 3"]
    """Both eyeballs without the photo's light, the left one on the left."""
    eyes_photo: Float[np.ndarray, "E F 3"]
    eye_uv: tuple[Float[np.ndarray, "L 2"], Float[np.ndarray, "M 2"]]
    """Texture coordinates of the left and of the right eyeball in these images, v up."""
    tint: PhotoTint | None
    """That of a photo without colours."""
    light: Float[np.ndarray, "3"]
    """Mean light on the face."""

    def part_colour(self, name: str) -> tuple[float, float, float]:
        """Linear colour of a part without texture, in white light."""
        linear = torch.tensor(PART_MATERIALS[name].colour)
        if self.tint is not None:
            linear = decode_srgb(self.tint(encode_srgb(linear)[:, None, None])[:, 0, 0])
        red, green, blue = linear.tolist()
        return red, green, blue

    def part_colour_in_photo(self, name: str) -> tuple[float, float, float]:
        """The same in the photo's light."""
        lit = encode_srgb(torch.tensor(self.part_colour(name))) * torch.from_numpy(self.light)
        red, green, blue = decode_srgb(lit).tolist()
        return red, green, blue


def head_looks(
    reconstruction: Reconstruction,
    model: MorphableModel,
    head: HeadModel,
    *,
    scalp: Scalp = "hair",
    smallest_atlas: int = SMALLEST_ATLAS,
) -> HeadLooks:
    """Make the images of a head.

    Args:
        reconstruction: The face.
        model: The face's model, on the CPU.
        head: Its head.
        scalp: What the scalp shows.
        smallest_atlas: The least side of the skin's atlas; a small one is quicker and shows coarser hair.
    """
    with torch.no_grad():
        painter = _LooksPainter(reconstruction, model, head)
        return painter.looks(scalp, size=atlas_size(reconstruction.texture.shape[0], head, smallest=smallest_atlas))


@dataclass(frozen=True)
class RelitFace:
    """The texture of a face without the photo's light."""

    texture: Float[Tensor, "3 S S"]
    """sRGB-encoded colours in white light; row 0 is v = 1."""
    hair: Float[Tensor, "3"]
    """Colour of the hair in white light."""
    tint: PhotoTint | None
    """That of a photo without colours."""


def relit_face(reconstruction: Reconstruction, model: MorphableModel, head: HeadModel) -> RelitFace:
    """Remove the light from a face's texture, as in the look "relit".

    Args:
        reconstruction: The face.
        model: The face's model, on the CPU.
        head: Its head.
    """
    with torch.no_grad():
        return _LooksPainter(reconstruction, model, head).relit_face()


def atlas_size(texture_size: int, head: HeadModel, *, smallest: int = SMALLEST_ATLAS) -> int:
    """Side of the atlas that keeps the texels of a face's texture, a power of two."""
    side = 1 << (int(texture_size / head.face_width) - 1).bit_length()
    return max(smallest, min(side, LARGEST_ATLAS))


class _LooksPainter:
    """Paints the images of one head."""

    def __init__(self, reconstruction: Reconstruction, model: MorphableModel, head: HeadModel) -> None:
        self._face, self._model, self._head = reconstruction, model, head
        self._texture = torch.from_numpy(reconstruction.texture.astype(np.float32)).permute(2, 0, 1)[None]
        self._side = self._texture.shape[-1]
        self._atlas = per_model(model, _face_atlas, self._side)
        self._tint = PhotoTint.of(self._texture, self._atlas.valid[None, None].float())
        self._posed = torch.from_numpy(reconstruction.vertices_model)
        identity, expression = (
            torch.from_numpy(values)[None].float() for values in (reconstruction.identity, reconstruction.expression)
        )
        self._own = head.own_vertices(identity, expression)[0]
        self._rotation = torch.from_numpy(reconstruction.rotation)

    def looks(self, scalp: Scalp, *, size: int) -> HeadLooks:
        model = self._model
        atlas = per_model(model, _head_atlas, size)
        shade = self._face_shade()
        relit_face = self._relit_face(shade)
        relit, photo = self._skin(atlas, relit_face)
        relit, photo = self._with_hair(atlas, relit, photo, hair=self._hair_colour(relit_face), scalp=scalp)
        left, right = (self._eye(name, shade) for name in EYES)
        maps = [torch.cat(pair, dim=-1) for pair in ((left[1].relit, right[1].relit), (left[1].photo, right[1].photo))]
        half = np.array([0.5, 1.0], np.float32)
        eye_uv = (left[0].uv.numpy() * half, right[0].uv.numpy() * half + np.array([0.5, 0.0], np.float32))
        return HeadLooks(
            relit=_pixels(self._tinted(relit)),
            photo=_pixels(self._tinted(photo)),
            normals=self._normals(),
            roughness=per_model(model, _roughness, max(atlas.size // _ROUGHNESS_SHARE, 256), scalp).numpy(),
            eyes_relit=_pixels(self._tinted(maps[0])),
            eyes_photo=_pixels(self._tinted(maps[1])),
            eye_uv=eye_uv,
            tint=self._tint,
            light=self._mean_light(shade).numpy(),
        )

    def relit_face(self) -> RelitFace:
        face = self._relit_face(self._face_shade())
        hair = self._tinted(self._hair_colour(face)[:, None, None])[:, 0, 0]
        return RelitFace(self._tinted(face[0]).clamp(0, 1), hair.clamp(0, 1), self._tint)

    def _tinted(self, colours: Float[Tensor, "3 H W"]) -> Float[Tensor, "3 H W"]:
        return colours if self._tint is None else self._tint(colours)

    def _light_on(self, normals: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        light = shading((normals @ self._rotation.T)[None], torch.from_numpy(self._face.lighting)[None])[0]
        if self._tint is None:
            return light
        return (light @ light.new_tensor(LUMA)[:, None]).expand(-1, 3)

    def _light_around(self, normals: Float[Tensor, "W 3"]) -> Float[Tensor, "W 3"]:
        """Light on a whole head: what faces away from the camera has the light of the outline, which a photo shows."""
        x, y, z = (normals @ self._rotation.T).unbind(-1)
        sideways = (x.square() + y.square()).sqrt()
        angles = torch.linspace(0, 2 * torch.pi, _OUTLINE + 1)[:-1]
        outline = torch.stack([angles.cos(), angles.sin(), torch.zeros(_OUTLINE)], dim=-1) @ self._rotation
        mean = self._light_on(outline).mean(0)
        onto = torch.stack([x, y, z.clamp(min=0)], dim=-1)
        light = self._light_on(F.normalize(onto, dim=-1) @ self._rotation)
        return torch.where(z[:, None] >= 0, light, torch.lerp(mean.expand_as(light), light, sideways[:, None]))

    def _filled(self, light: Float[Tensor, "W 3"]) -> Float[Tensor, "W 3"]:
        """With more light where it is very dark, by the mean of the visible skin."""
        count, seen = len(self._model.mean), self._seen_skin
        weights = torch.cat([seen, seen.new_zeros(len(light) - count)])
        return filled_shade(light.T[None, :, None], weights[None, None, None])[0, :, 0].T

    @functools.cached_property
    def _skin_mask(self) -> Float[Tensor, "V"]:
        masks = self._model.masks
        return (masks.skin * (1 - masks.lips) * (1 - masks.neck)).clamp(0, 1)

    @functools.cached_property
    def _seen_skin(self) -> Float[Tensor, "V"]:
        return torch.from_numpy(self._face.visible) * self._skin_mask

    def _face_shade(self) -> Float[Tensor, "V 3"]:
        """Light on the face's vertices as the texture has it: of the surface without relief."""
        normals = vertex_normals(self._posed[None], self._model.triangles)[0]
        return self._filled(self._light_on(normals))

    def _mean_light(self, shade: Float[Tensor, "V 3"]) -> Float[Tensor, "3"]:
        weights = self._seen_skin[:, None]
        return (shade * weights).sum(0) / weights.sum().clamp(min=1e-6)

    def _relit_face(self, shade: Float[Tensor, "V 3"]) -> Float[Tensor, "1 3 S S"]:
        masks = self._model.masks
        # Not the brows: beside their dark hair, bare skin would count as gloss.
        skin = (masks.skin * (1 - masks.lips) * (1 - masks.eyes) * (1 - masks.mouth) * (1 - masks.brows))[:, None]
        albedo = torch.from_numpy(self._face.vertex_albedo)
        if self._tint is not None:
            albedo = self._tint(albedo.T[..., None])[..., 0].T
        maps = self._atlas.interpolate(torch.cat([albedo, shade, skin], dim=1)[None])
        maps = self._atlas.dilate(maps)
        albedo_map, shade_map, skin_map = maps.split([3, 3, 1], dim=1)
        return remove_light(self._texture, albedo_map, shade_map, skin_map * self._atlas.valid)

    def _skin(
        self, atlas: HeadAtlas, relit_face: Float[Tensor, "1 3 S S"]
    ) -> tuple[Float[Tensor, "3 A A"], Float[Tensor, "3 A A"]]:
        """Both looks of the skin, bare."""
        head, model = self._head, self._model
        colours = sample_map(relit_face, model.uv)[0].clamp(min=0.01)
        far = far_colour(colours, head, self._skin_mask)
        vertices = torch.cat([self._posed, self._own])
        triangles = torch.cat([part.vertices[part.triangles] for part in head.parts if part.name in {"skin", "mouth"}])
        light = self._filled(self._light_around(vertex_normals(vertices[None], triangles)[0]))
        # What the shading does not explain at the seam goes on and fades, so that the photo's look has no seam.
        seam = sample_map(self._texture, model.uv)[0] / (colours * light[: len(colours)].clamp(min=DARKEST))
        excess = continued_over_head(seam.clamp(0.3, 3).log(), head, far=torch.zeros(3)).exp()
        outer = continued_over_head(colours, head, far=far)
        relit, lit = atlas.interpolate(torch.cat([outer, light.clamp(min=DARKEST) * excess], dim=1)).split([3, 3])
        strength, noise = self._mottling_strength(relit_face), per_model(model, _skin_noise, atlas.size)
        mottling = (strength * noise).exp()[None]
        return (
            self._beside_face(atlas, relit_face, relit * mottling, mottling, strength=strength),
            self._beside_face(atlas, self._texture, relit * lit * mottling, mottling, strength=strength),
        )

    def _mottling_strength(self, relit_face: Float[Tensor, "1 3 S S"]) -> float:
        """Standard deviation of log brightness of the seen skin over millimetres."""
        seen = self._atlas.interpolate(self._seen_skin[None, :, None])[0, 0]
        variation = _variation(relit_face)[0, 0][seen > _SEEN]
        if not len(variation):
            return _MOTTLING[0]
        return float(variation.median().clamp(*_MOTTLING))

    def _beside_face(
        self,
        atlas: HeadAtlas,
        face: Float[Tensor, "1 3 S S"],
        outer: Float[Tensor, "3 A A"],
        mottling: Float[Tensor, "1 A A"],
        *,
        strength: float,
    ) -> Float[Tensor, "3 A A"]:
        """The atlas of the face's map, mottled where it is smoother than seen skin, and of the outer skin."""
        skin = self._atlas.interpolate(self._skin_mask[None, :, None])
        lacking = (1 - (_variation(face) / strength).square()).clamp(min=0).sqrt() * skin
        placed = atlas.with_face(torch.cat([outer, torch.zeros_like(mottling)]), torch.cat([face, lacking], dim=1)[0])
        return placed[:3] * torch.lerp(torch.ones_like(mottling), mottling, placed[3:].clamp(0, 1))

    def _with_hair(
        self,
        atlas: HeadAtlas,
        relit: Float[Tensor, "3 A A"],
        photo: Float[Tensor, "3 A A"],
        *,
        hair: Float[Tensor, "3"],
        scalp: Scalp,
    ) -> tuple[Float[Tensor, "3 A A"], Float[Tensor, "3 A A"]]:
        cover, brightness = per_model(self._model, _hair, atlas.size, scalp)
        colour = hair[:, None, None] * brightness
        lit = colour * (photo / relit.clamp(min=0.02)).clamp(max=1.5)
        return torch.lerp(relit, colour, cover), torch.lerp(photo, lit, cover)

    def _hair_colour(self, relit_face: Float[Tensor, "1 3 S S"]) -> Float[Tensor, "3"]:
        """The photo's; else that of the brows."""
        if self._face.hair_colour is not None:
            return torch.from_numpy(self._face.hair_colour).float()
        brows = self._atlas.interpolate(self._model.masks.brows[None, :, None])[0, 0] > _ON_BROWS
        values = relit_face[0, :, brows].T
        level = values.mean(-1)
        return values[level <= level.quantile(_BROW_QUANTILE)].mean(0)

    def _eye(self, name: str, shade: Float[Tensor, "V 3"]) -> tuple[EyeMap, EyeTexture]:
        head, model = self._head, self._model
        index = EYES.index(name)
        part, centre = head.part(name), head.mean[head.eye_centres[index]]
        mean = torch.cat([model.mean, head.mean])[part.vertices] - centre
        total = len(part.vertices) + 1  # with the centre
        uv = head.eye_uv[index * total : (index + 1) * total - 1] / torch.tensor([head.face_width, 1.0])
        layout = EyeMap(F.normalize(mean, dim=-1), part.triangles, uv, float(mean.norm(dim=-1).median()))
        whole = torch.cat([self._posed, self._own]) @ self._rotation.T
        skin = head.part("skin")
        size = max(self._side // _EYE_SHARE, _SMALLEST_EYE)
        seen = seen_of_eye(layout, whole[part.vertices], whole, skin.vertices[skin.triangles], size=size)
        near = (model.mean - centre).norm(dim=-1) < 2 * layout.radius_m
        light = shade[near].mean(0)
        return layout, eye_texture(layout, self._texture[0], shade=light, seen=seen)

    def _normals(self) -> Float[np.ndarray, "N N 3"] | None:
        """The face's relief in the head's atlas; the skin around it is flat."""
        if not self._face.displacement.any():
            return None
        face = torch.from_numpy(tangent_normal_map(self._face, self._model)).permute(2, 0, 1)
        size = 1 << (int(face.shape[-1] / self._head.face_width) - 1).bit_length()
        width = round(size * self._head.face_width)
        shown = F.interpolate(face[None], size=(size, width), mode="bilinear", align_corners=False)[0]
        flat = torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand(3, size, size).clone()
        flat[..., :width] = F.normalize(shown, dim=0)
        return flat.permute(1, 2, 0).numpy()


def _face_atlas(model: MorphableModel, size: int) -> TexelAtlas:
    return TexelAtlas.of(model, size)


def _head_atlas(model: MorphableModel, size: int) -> HeadAtlas:
    return HeadAtlas.of(load_head(model), size)


def _mean_places(model: MorphableModel, size: int) -> tuple[HeadAtlas, Float[Tensor, "3 A A"]]:
    atlas = per_model(model, _head_atlas, size)
    return atlas, atlas.interpolate(torch.cat([model.mean, atlas.head.mean]))


def _skin_noise(model: MorphableModel, size: int) -> Float[Tensor, "A A"]:
    """Mottling of the mean head's skin: mean 0, standard deviation 1."""
    _, places = _mean_places(model, size)
    noise = SurfaceNoise(0)
    return (noise(places, cell_m=_FINE_M) + 0.7 * noise(places + 0.1, cell_m=_COARSE_M)) / 1.22


def _hair(model: MorphableModel, size: int, scalp: Scalp) -> tuple[Float[Tensor, "A A"], Float[Tensor, "A A"]]:
    """Cover of hair on the mean head, and its brightness."""
    atlas, places = _mean_places(model, size)
    distance = atlas.interpolate(within_hairline_mm(torch.cat([model.mean, atlas.head.mean]))[:, None])[0]
    noise = SurfaceNoise(1)
    hairs = noise(places, cell_m=HAIR_M)
    cover = hair_cover(distance, waves=noise(places, cell_m=WAVES_M), hairs=hairs, scalp=scalp)
    return cover, hair_brightness(hairs)


def _roughness(model: MorphableModel, size: int, scalp: Scalp) -> Float[Tensor, "R R"]:
    """Roughness of the skin: lips, nose, forehead and chin are glossier, hair is matte."""
    atlas = HeadAtlas.of(load_head(model), size)
    places = torch.cat([model.mean, atlas.head.mean])
    values = torch.full((len(places),), _ROUGHNESS["skin"])
    for centre, radius in _GLOSSY_SPOTS_M:
        near = torch.exp(-0.5 * ((places - torch.tensor(centre)).norm(dim=-1) / radius).square())
        values = torch.lerp(values, torch.tensor(_ROUGHNESS["gloss"]), near)
    lips = _padded(model.masks.lips[:, None], atlas.head)[:, 0]
    values = torch.lerp(values, torch.tensor(_ROUGHNESS["lips"]), lips)
    grows = torch.sigmoid(within_hairline_mm(places) / 2) * (1.0 if scalp == "hair" else 0.15)
    values = torch.lerp(values, torch.tensor(_ROUGHNESS["hair"]), grows)
    return atlas.interpolate(values[:, None])[0]


def _padded(values: Float[Tensor, "V C"], head: HeadModel) -> Float[Tensor, "W C"]:
    """Values of the face's vertices, and zero at the head's own."""
    return torch.cat([values, values.new_zeros(len(head.mean), values.shape[1])])


def _variation(face: Float[Tensor, "1 3 S S"]) -> Float[Tensor, "1 1 S S"]:
    """Standard deviation of log brightness around each texel, without its slow changes."""
    radius = max(face.shape[-1] // _SMOOTH_RADIUS // 2, 1)
    level = luma(face).clamp(min=0.02).log()
    fast = level - box_mean(level, radius=2 * radius)
    return box_mean(fast.square(), radius=3 * radius).sqrt()


def _pixels(maps: Float[Tensor, "3 H W"]) -> Float[np.ndarray, "H W 3"]:
    return maps.clamp(0, 1).permute(1, 2, 0).contiguous().numpy()
