"""Textures of the eyeballs: what the photo shows of an eye, completed where the lids hide it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mien.rasterizer import interpolate, rasterize_hard
from mien.rendering import sample_map
from mien.texture.fill import box_mean, largest
from mien.texture.relight import DARKEST, luma
from mien.typing import Float, Int, Tensor

IRIS_RADIUS_M = 5.85e-3
"""Half of the white-to-white diameter of adults, 11.71 ± 0.42 mm (Rüfer et al. 2005)."""

_FOVEATION = 1.8
"""Exponent of the map's radius over the angle from the axis: the front of an eyeball gets most texels."""
_WIDEST = 0.49
"""Radius in the map of the back pole."""
_BEHIND_M = 4e-4
"""An eyeball's point is seen unless something lies at least this far before it."""
_WINDOW_M, _WINDOW_PX = 0.04, 192
"""Side of the window around an eye in which its visibility is found."""
_LID_SHARE = 96
"""Lid, lashes and their shadow are left out: the side of the map over this number, half a millimetre of an eyeball."""
_SEARCH_DEG = 16.0
"""The iris is looked for this far from the axis."""
_RINGS = 32
"""Steps of the colours over the radius of the iris, up to `_REACH` times that radius."""
_REACH = 1.2
_FEWEST = 3
"""A ring takes its colour from this many texels or more."""
_LEAST_SEEN = 0.2
"""Share of the iris that must be seen so that its colours are the photo's."""
_GLINT = 1.5
"""A texel of the iris that is brighter than this many times the ring's median reflects a lamp."""
_WHITE = (0.55, 0.78)
"""Range of the brightness of the white of an eye in white light, sRGB-encoded; paper would be 0.95."""
_WHITE_SATURATION = 0.5
"""Share of the photo's tint of the white that is kept; lamps and skin colour it."""
_LID_SHADE = 0.3
"""How much darker the eyeball is under the lids, which few viewers compute."""


@dataclass(frozen=True)
class EyeMap:
    """The layout of an eyeball's texture: angles around its axis, the pupil in the middle."""

    directions: Float[Tensor, "N 3"]
    """From the centre of the mean head's eyeball to its vertices."""
    triangles: Int[Tensor, "T 3"]
    face_uv: Float[Tensor, "N 2"]
    """Where the face's map shows each vertex."""
    radius_m: float

    @property
    def uv(self) -> Float[Tensor, "N 2"]:
        """Texture coordinates of the vertices, v up."""
        x, y, z = self.directions.unbind(-1)
        angle = torch.acos(z.clamp(-1, 1))
        radius = _WIDEST * (1 - (1 - angle / math.pi) ** _FOVEATION)
        around = torch.atan2(y, x)
        return 0.5 + radius[:, None] * torch.stack([around.cos(), around.sin()], dim=-1)

    def directions_of_map(self, size: int) -> Float[Tensor, "3 E E"]:
        """Direction of each texel; the back pole beyond the map's circle."""
        step = (torch.arange(size) + 0.5) / size - 0.5
        y, x = torch.meshgrid(-step, step, indexing="ij")
        radius = (x.square() + y.square()).sqrt().clamp(min=1e-9)
        angle = math.pi * (1 - (1 - (radius / _WIDEST).clamp(max=1)) ** (1 / _FOVEATION))
        return torch.stack([x / radius * angle.sin(), y / radius * angle.sin(), angle.cos()])

    def texels(self, values: Float[Tensor, "N C"], size: int) -> Float[Tensor, "C E E"]:
        """Interpolate values of the vertices at the texels; zero outside."""
        u, v = self.uv.unbind(-1)
        flat = torch.stack([2 * u - 1, 1 - 2 * v, 2 - self.directions[:, 2] / 2], dim=-1)[None]
        fragments = rasterize_hard(flat, self.triangles, image_size=(size, size), near=0.5, far=3.0)
        return interpolate(values, self.triangles, fragments)[0]


@dataclass(frozen=True)
class EyeTexture:
    """The texture of one eyeball in its two looks; row 0 is v = 1."""

    photo: Float[Tensor, "3 E E"]
    """As in the photo, with its light and its reflections."""
    relit: Float[Tensor, "3 E E"]
    """In white light."""


def eye_texture(
    layout: EyeMap,
    face: Float[Tensor, "3 S S"],
    *,
    shade: Float[Tensor, "3"],
    seen: Float[Tensor, "1 E E"],
) -> EyeTexture:
    """The texture of an eyeball from the face's map.

    The iris keeps the place where the photo shows it. What the lids hide takes the median colours of the same distance
    from the pupil; so do reflections in the relit look.

    Args:
        layout: The eyeball.
        face: The face's texture.
        shade: Light on the eye.
        seen: Where the photo shows the eyeball, see `seen_of_eye`.

    Returns:
        Both looks, of the side of `seen`.
    """
    size = seen.shape[-1]
    uv = layout.texels(layout.face_uv, size)
    photo = sample_map(face[None], uv.flatten(1).T)[0].T.reshape(3, size, size)
    directions = layout.directions_of_map(size)
    iris = math.asin(min(IRIS_RADIUS_M / layout.radius_m, 0.9))
    centre = _iris_centre(luma(photo[None])[0], seen, directions, iris)
    angle = torch.acos((directions * centre[:, None, None]).sum(0, keepdim=True).clamp(-1, 1)) / iris
    white = _white(photo, seen * (angle > _REACH))
    plain = _plain_eye(photo, seen * (angle < _REACH), angle, white)
    visible = torch.lerp(plain, photo, seen)
    # A lamp in the eye: engines have lamps of their own.
    glint = (luma(photo[None])[0] > _GLINT * luma(plain[None])[0] + 0.04) & (angle < 1.05)
    glint = box_mean(largest(glint[None].float(), radius=max(size // 128, 1)), radius=max(size // 128, 1))[0]
    matte = torch.lerp(visible, plain, glint)
    shadow = 1 - _LID_SHADE * (1 - _softened(seen, size // 16))
    level = luma(white[None, :, None, None])[0, 0, 0, 0]
    target = (level / luma(shade[None, :, None, None])[0, 0, 0, 0].clamp(min=DARKEST)).clamp(*_WHITE)
    gain = target / level.clamp(min=0.05)
    visible = torch.lerp(plain * shadow, photo, seen)
    return EyeTexture(visible.clamp(0, 1), (matte * gain * shadow).clamp(0, 1))


def seen_of_eye(
    layout: EyeMap,
    eyeball: Float[Tensor, "N 3"],
    others: Float[Tensor, "W 3"],
    triangles: Int[Tensor, "T 3"],
    *,
    size: int,
) -> Float[Tensor, "1 E E"]:
    """How far each texel of an eyeball is seen between the lids, from the front.

    Args:
        layout: The eyeball.
        eyeball: Its vertices, as the photo shows them, in view axes, metres.
        others: Vertices of the head in the same axes.
        triangles: The skin, over `others`.
        size: Side of the map.
    """
    middle = eyeball[:, :2].mean(0)
    scale = 2 / _WINDOW_M

    def flat(points: Tensor) -> Tensor:
        place = (points[:, :2] - middle) * scale
        return torch.stack([place[:, 0], -place[:, 1], 1 - points[:, 2]], dim=-1)[None]

    cover = rasterize_hard(flat(others), triangles, image_size=(_WINDOW_PX, _WINDOW_PX), near=0.1, far=3.0)
    depth = torch.where(cover.triangle_ids >= 0, cover.depth, 10.0)[:, None]
    points = layout.texels(torch.cat([flat(eyeball)[0], torch.ones(len(eyeball), 1)], dim=1), size)
    grid = points[:2].movedim(0, -1)[None]
    before = F.grid_sample(depth, grid, mode="nearest", padding_mode="border", align_corners=False)[0]
    open_ = (points[2:3] < before + _BEHIND_M) & (points[3:] > 0.5) & (layout.directions_of_map(size)[2:] > 0)
    radius = max(size // _LID_SHARE, 1)
    return box_mean(-largest(-open_[None].float(), radius=radius), radius=radius)[0]


def _softened(seen: Float[Tensor, "1 E E"], radius: int) -> Float[Tensor, "1 E E"]:
    return box_mean(box_mean(seen[None], radius=max(radius, 1)), radius=max(radius, 1))[0]


def _iris_centre(
    level: Float[Tensor, "1 E E"], seen: Float[Tensor, "1 E E"], directions: Float[Tensor, "3 E E"], iris: float
) -> Float[Tensor, "3"]:
    """The direction around which a disc of the iris' size is darker than the ring around it; else the axis."""
    axis = torch.tensor([0.0, 0.0, 1.0])
    known = seen[0] > 0.5
    points, values = directions[:, known].T, level[0][known]
    if len(values) < _RINGS:
        return axis
    offsets = torch.linspace(-_SEARCH_DEG, _SEARCH_DEG, 17).deg2rad()
    y, x = (grid.flatten() for grid in torch.meshgrid(offsets, offsets, indexing="ij"))
    candidates = F.normalize(torch.stack([x.tan(), y.tan(), torch.ones_like(x)], dim=-1), dim=-1)
    candidates = candidates[candidates[:, 2] > math.cos(math.radians(_SEARCH_DEG))]
    angles = torch.acos((candidates @ points.T).clamp(-1, 1)) / iris
    inside, around = (angles < 0.9).float(), ((angles > 1.1) & (angles < 1.7)).float()
    means = [(mask * values).sum(1) / mask.sum(1).clamp(min=1) for mask in (inside, around)]
    enough = (inside.sum(1) >= _RINGS) & (around.sum(1) >= _RINGS)
    # The axis is likelier than its surroundings.
    offset = torch.acos(candidates[:, 2].clamp(-1, 1)) / math.radians(_SEARCH_DEG)
    contrast = torch.where(enough, means[1] - means[0] - 0.03 * offset.square(), -1.0)
    best = contrast.argmax()
    return candidates[best] if contrast[best] > 0 else axis


def _white(photo: Float[Tensor, "3 E E"], seen: Float[Tensor, "1 E E"]) -> Float[Tensor, "3"]:
    """The white of the eye in the photo: the mean of the brighter half of it."""
    values = photo[:, seen[0] > 0.5].T
    if len(values) < _RINGS:
        return photo.new_tensor([0.62, 0.58, 0.56])
    level = values.mean(1)
    white = values[level >= level.median()].mean(0)
    return white.mean() + _WHITE_SATURATION * (white - white.mean())


def _plain_eye(
    photo: Float[Tensor, "3 E E"],
    seen: Float[Tensor, "1 E E"],
    angle: Float[Tensor, "1 E E"],
    white: Float[Tensor, "3"],
) -> Float[Tensor, "3 E E"]:
    """An eye of rings around the pupil, each in the median of its colours in the photo, and white beyond."""
    known = seen[0] > 0.5
    ring = (angle[0] * (_RINGS / _REACH)).long()
    iris_seen, iris_whole = (known & (angle[0] < 1)).sum(), (angle[0] < 1).sum()
    if iris_seen < _LEAST_SEEN * iris_whole:
        known = angle[0] < _REACH  # closed eyes: the completed texture
    colours, found = photo.new_zeros(_RINGS, 3), torch.zeros(_RINGS, dtype=torch.bool)
    for k in range(_RINGS):
        values = photo[:, known & (ring == k)].T
        if len(values) >= _FEWEST:
            colours[k], found[k] = values.median(0).values, True
    for k in range(1, _RINGS):  # rings that no texel shows are like the ring within them
        if not found[k]:
            colours[k] = colours[k - 1] if found[:k].any() else colours[found][0] if found.any() else white / 4
    colours = F.avg_pool1d(F.pad(colours.T[None], (1, 1), mode="replicate"), 3, stride=1)[0].T
    place = (angle[0] * (_RINGS / _REACH) - 0.5).clamp(0, _RINGS - 1)
    below = place.long()
    rings = torch.lerp(colours[below], colours[(below + 1).clamp(max=_RINGS - 1)], place.frac()[..., None])
    outside = ((angle - 1.02) / (_REACH - 1.02)).clamp(0, 1)
    return torch.lerp(rings.movedim(-1, 0), white[:, None, None].expand_as(photo), outside)
