"""Completion of a texture from the visible part of a face."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mien.texture.fill import dilated, halved, pull_push
from mien.texture.parts import TexelParts
from mien.texture.relight import DARKEST, filled_shade
from mien.texture.skin_colour import biweight, colour_ratio, length, skin_deviations
from mien.texture.tint import PhotoTint
from mien.texture.unwrap import Unwrapped
from mien.typing import Float, Tensor

_SPREADS = 4.0
"""A colour this many standard deviations from that of the visible skin is no longer typical (Tukey's biweight)."""
_OTHER_RATIO = (-0.3, 0.3)
"""Range of the relative difference to the lit albedo that is continued over hidden eyes, lips and teeth: their albedos
differ so much that only the strength of the light can be taken from one to the other."""
_LASH_MARGIN = 128
"""Skin of a lid this close to a lash is left out with it: the side of the map over this number, 2 mm on a face."""
_DARKEST_LID = 0.4
"""Lower bound of the shading of a closed lid, relative to that of the open one."""
_BLOCK = 4
"""Side in texels of the blocks whose means are continued; a continuation is smooth. A power of two."""


@dataclass(frozen=True)
class CompletedTexture:
    """A texture and where it comes from."""

    colours: Float[Tensor, "B 3 S S"]
    """Colours of all texels, with the light of the photo; not clamped."""
    from_photo: Float[Tensor, "B 1 S S"]
    """Share of the photo in each texel, 0 to 1; the rest is mirrored or the model's."""


def complete_texture(
    albedo: Float[Tensor, "B 3 S S"],
    offset: Float[Tensor, "B 3 S S"] | None,
    shade: Float[Tensor, "B 3 S S"],
    unwrapped: Unwrapped,
    parts: TexelParts,
) -> CompletedTexture:
    """Fill a texture: the photo where the camera sees the face, then its relit mirror image, then the lit albedo.

    Mirrored colours are divided by the shading of their own side and multiplied by that of the other. Texels that are
    known from neither side are the lit albedo times the continued ratio of known colours and lit albedo, so that no
    seam shows. Only typical skin is continued over skin: no sheen at the outline, no beard, no lashes. A photo without
    colours of its own gives its tint to all texels.

    Args:
        albedo: Albedo of the model.
        offset: Texture offset of the detail maps; on skin it counts as far as it leaves the albedo typical. None for
            no offset.
        shade: Shading of the model.
        unwrapped: The photo in UV space.
        parts: Skin, and the skin of the lids; lashes that the photo shows in front of the latter are left out.

    Returns:
        The texture.
    """
    visible = unwrapped.weights * parts.skin
    shade = filled_shade(shade, visible)
    if offset is not None:
        typical = _typical(colour_ratio(albedo + offset, albedo), visible, darker=True)
        albedo = albedo + offset * (1 - parts.skin * (1 - typical))
    box = _Box.around(unwrapped.weights)
    photo, light, skin, lids = (box.crop(maps) for maps in (unwrapped.colours, shade, parts.skin, parts.lids))
    lit = box.crop(albedo) * light
    typical = _typical(colour_ratio(photo, lit), box.crop(visible))
    seen = _trusted(box.crop(unwrapped.weights), typical, skin=skin, lids=lids, size=box.size)
    from_mirror = (1 - seen) * seen.flip(-1)
    known = seen + from_mirror
    mirrored = (photo / light.clamp(min=DARKEST)).flip(-1) * light
    colours = (seen * photo + from_mirror * mirrored) / known.clamp(min=1e-6)
    ratio, source = colour_ratio(colours, lit) - 1, known * skin * typical
    around = source * (1 - lids) * (1 - box.crop(parts.near_eyes))
    found = _relit(albedo, shade, ratio, known=known, source=source, skin=parts.skin, box=box)
    _relight_lids(found, albedo, shade, ratio, around=around, parts=parts, box=box)
    box.crop(found).lerp_(colours, known)
    tint = PhotoTint.of(unwrapped.colours, unwrapped.weights)
    from_photo = torch.zeros_like(unwrapped.weights)
    box.crop(from_photo).copy_(seen)
    return CompletedTexture(found if tint is None else tint(found), from_photo)


@dataclass(frozen=True)
class _Box:
    """A square part of a map, in the middle of its columns, so that it is its own mirror image."""

    top: int
    left: int
    side: int
    size: int
    """Side of the map."""

    @classmethod
    def around(cls, weights: Float[Tensor, "B 1 S S"]) -> _Box:
        """The smallest box of whole blocks with all weights and their mirror images; the whole map if none is whole."""
        size, seen = weights.shape[-1], (weights > 0).any(0)[0]
        rows, columns = seen.any(1).nonzero(), seen.any(0).nonzero()
        if size % (2 * _BLOCK) or len(rows) == 0:
            return cls(0, 0, size, size)
        outer = max(int(columns[-1]) + 1, size - int(columns[0]))
        first, last = int(rows[0]) // _BLOCK * _BLOCK, int(rows[-1]) + 1
        # Columns on both sides of the middle in whole blocks; the rows need as many or more.
        half = -(-max(outer - size // 2, -(-(last - first) // 2)) // _BLOCK) * _BLOCK
        return cls(min(first, size - 2 * half), size // 2 - half, 2 * half, size)

    def crop(self, maps: Float[Tensor, "B C S S"]) -> Float[Tensor, "B C R R"]:
        """This part of maps, as a view."""
        return maps[..., self.top : self.top + self.side, self.left : self.left + self.side]

    def padded(self, means: Float[Tensor, "B C r r"]) -> Float[Tensor, "B C s s"]:
        """Block means of this part as those of the map, with zeros around."""
        above, beside = self.top // _BLOCK, self.left // _BLOCK
        below = (self.size - self.top - self.side) // _BLOCK
        return F.pad(means, (beside, beside, above, below))


def _relit(
    albedo: Float[Tensor, "B 3 S S"],
    shade: Float[Tensor, "B 3 S S"],
    ratio: Float[Tensor, "B 3 R R"],
    *,
    known: Float[Tensor, "B 1 R R"],
    source: Float[Tensor, "B 1 R R"],
    skin: Float[Tensor, "#B 1 S S"],
    box: _Box,
) -> Float[Tensor, "B 3 S S"]:
    """The lit albedo times the continued ratio to it: that of typical skin on skin, that of all elsewhere."""
    skin, on_skin = _block_means(skin), _continued(ratio, source, box=box)
    elsewhere = _continued(ratio.clamp(*_OTHER_RATIO), known, box=box)
    return albedo * shade * (1 + _enlarged(skin * on_skin + (1 - skin) * elsewhere, size=box.size))


def _relight_lids(
    colours: Float[Tensor, "B 3 S S"],
    albedo: Float[Tensor, "B 3 S S"],
    shade: Float[Tensor, "B 3 S S"],
    ratio: Float[Tensor, "B 3 R R"],
    *,
    around: Float[Tensor, "B 1 R R"],
    parts: TexelParts,
    box: _Box,
) -> None:
    """Replace the colours of lids: the model's have lashes, too, so they take albedo and ratio from the skin around."""
    if (rows := _rows_of(parts.lids)) is None:
        return
    skin_values = _continued(torch.cat([box.crop(albedo) - 1, ratio], dim=1), around, box=box)
    skin_albedo, skin_ratio = (1 + skin_values).split(3, dim=1)
    # The harmonics can be negative where a closed lid faces away from all light; the open one bounds its shade.
    closed = torch.maximum(parts.closed_shade[:, :, rows], _DARKEST_LID * shade[:, :, rows])
    lid_shade = (shade[:, :, rows] + closed) / 2
    lid_colours = lid_shade * _enlarged(skin_albedo * skin_ratio, size=box.size, rows=rows)
    colours[:, :, rows] = torch.lerp(colours[:, :, rows], lid_colours, parts.lids[:, :, rows])


def _typical(
    ratio: Float[Tensor, "B 3 S S"], visible: Float[Tensor, "B 1 S S"], *, darker: bool = False
) -> Float[Tensor, "B 1 S S"]:
    """How typical of the visible skin each colour is, 0 to 1; with `darker`, dark skin is as typical as any."""
    deviations = skin_deviations(ratio, visible)
    if darker:
        deviations = torch.cat([deviations[:, :1].clamp(min=0), deviations[:, 1:]], dim=1)
    return biweight(length(deviations) / _SPREADS)


def _continued(
    values: Float[Tensor, "B C R R"], weights: Float[Tensor, "B 1 R R"], *, box: _Box
) -> Float[Tensor, "B C s s"]:
    """Block means of the whole map, continued by `pull_push` from the known texels of a box."""
    total = _block_means(weights)
    coarse = _block_means(values * weights) / total.clamp(min=1e-6)
    return pull_push(box.padded(coarse), box.padded((_BLOCK**2 * total).clamp(0, 1)))


def _block_means(values: Float[Tensor, "B C S S"]) -> Float[Tensor, "B C s s"]:
    """Means of blocks of 4 × 4 texels; of fewer at the end of a side that is no multiple of 4."""
    if values.shape[-1] % _BLOCK or values.shape[-2] % _BLOCK:
        return F.avg_pool2d(values, _BLOCK, ceil_mode=True)
    return halved(halved(values))


def _enlarged(means: Float[Tensor, "B C s s"], *, size: int, rows: slice = slice(None)) -> Float[Tensor, "B C R S"]:
    """Block means at a map's side of `size` texels, interpolated linearly; or only some rows of it."""
    if rows == slice(None):
        return F.interpolate(means, size=(size, size), mode="bilinear", align_corners=False)
    count = means.shape[-2]
    place = ((torch.arange(size, device=means.device)[rows] + 0.5) * (count / size) - 0.5).clamp(0, count - 1)
    above, share = place.long(), place.frac()[:, None]
    means = torch.lerp(means[:, :, above], means[:, :, (above + 1).clamp(max=count - 1)], share)
    return F.interpolate(means, size=(len(place), size), mode="bilinear", align_corners=False)


def _rows_of(mask: Float[Tensor, "B 1 S S"]) -> slice | None:
    """The rows from the first to the last with a texel above 0; None for a mask of zeros."""
    rows = mask.amax((0, 1, 3)).nonzero()
    return slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else None


def _trusted(
    weights: Float[Tensor, "B 1 R R"],
    typical: Float[Tensor, "B 1 R R"],
    *,
    skin: Float[Tensor, "#B 1 R R"],
    lids: Float[Tensor, "B 1 R R"],
    size: int,
) -> Float[Tensor, "B 1 R R"]:
    """Visibility, less where the photo shows sheen near the outline, or lashes and folds instead of the lid's skin."""
    fading = weights * (1 - (1 - weights) * skin * (1 - typical))
    lid_skin = -dilated(-typical, radius=max(size // _LASH_MARGIN, 1))
    return fading * (1 - lids * (1 - lid_skin))
