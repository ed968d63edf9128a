"""The augmented branch: a double-head U-Net from a photo and its base reconstruction to two maps (section 2.2).

    photo, base ──► inputs ── shared encoder, two shared up-sampling layers ──┬─► texture offset map
                                                                             └─► displacement map

Two layouts of the inputs, one network. "image" is the paper's: photo and base rendering side by side on screen, so that
the network has to carry every pixel to its place on the chart. "texture" unwraps the photo onto the chart first:
skip connections then join a texel to itself, and the network can work at any size of map.

In the texture layout depths are measured in texels: a wrinkle in a map of twice the size looks like a wrinkle of twice
the width and the depth. One network serves maps of every size; `predict_maps` tells what it does not see in large ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from mien.assets import asset_path
from mien.errors import ConfigError
from mien.morphable import MorphableModel
from mien.networks.weights_file import NetworkKind
from mien.texture import DetailMaps, TexelFace, Unwrapped, pull_push
from mien.typing import Bool, Float, Tensor

FILE = NetworkKind("mien-detail-1", "network")
DEFAULT_DETAIL = "detail-unet.safetensors"
LEVELS = 4
"""Halvings of the picture; sides must be multiples of 2 to this power."""
SHARED_LEVELS = 2
"""Up-sampling layers before the heads part, the paper's."""
OFFSET_UNIT = 0.1
"""What 1 at the end of the offset head means: about the standard deviation of skin around its linear model."""
DISPLACEMENT_UNIT_M = 1e-3
"""The same for displacement, in a map of `UNIT_SIZE` texels."""
UNIT_SIZE = 224
"""Texels a side of the maps that networks are trained on."""
SURROUNDINGS_TEXELS = 8
"""Brightness is compared with its mean over a square of this radius: what is broader belongs to light and albedo."""
LEAST_RESPONSE_SQ = 0.05
"""Where light falls straight on a surface its slope hardly shows; there slopes are guessed low, not high."""
LEAST_LIGHT = 0.15
"""Darker shading than this amplifies noise where a colour is divided by it."""
CROP_SHARE = 256 / 224
"""Pixels of a crop for each texel of the map's side: the scale that the packaged network was trained at."""

Layout = Literal["image", "texture"]
Displacement = Literal["normal", "xyz"]
CHANNELS: dict[Layout, int] = {"image": 6, "texture": 18}


class DetailNetwork(nn.Module):
    """The double-head U-Net (Ronneberger et al. 2015), without normalisation; starts at maps of zero.

    Its answer has to keep the amplitudes of its input, which batch or group statistics would take away; and a step does
    not depend on how a batch is divided over processes. ConfigError for a width below 1.
    """

    def __init__(
        self, model_hash: str, *, layout: Layout = "texture", displacement: Displacement = "normal", width: int = 16
    ) -> None:
        super().__init__()
        if width < 1:
            raise ConfigError(f"the U-Net's width must be at least 1, got {width}.")
        self.model_hash, self.layout, self.displacement, self.width = model_hash, layout, displacement, width
        widths = [width * 2**level for level in range(LEVELS + 1)]
        inputs = [CHANNELS[layout], *widths[:-1]]
        self.down = nn.ModuleList(_convolutions(*pair) for pair in zip(inputs, widths, strict=True))
        self.shared = nn.ModuleList(_Up(widths[k + 1], widths[k]) for k in reversed(range(LEVELS)[-SHARED_LEVELS:]))
        outputs = {"texture_offset": 3, "displacement": 1 if displacement == "normal" else 3}
        self.heads = nn.ModuleDict({name: _Head(widths, count) for name, count in outputs.items()})

    def forward(self, inputs: Float[Tensor, "B C S S"]) -> dict[str, Float[Tensor, "B N S S"]]:
        """Both maps in their units, as plain tensors; the side must be a multiple of 16."""
        skips = [self.down[0](inputs)]
        for block in list(self.down)[1:]:
            skips.append(block(F.max_pool2d(skips[-1], 2)))
        x = skips.pop()
        for block in self.shared:
            x = block(x, skips.pop())
        said = {name: head(x, skips).float() for name, head in self.heads.items()}
        texel_m = DISPLACEMENT_UNIT_M * UNIT_SIZE / inputs.shape[-1]
        return {
            "texture_offset": said["texture_offset"] * OFFSET_UNIT,
            "displacement": said["displacement"] * texel_m,
        }


class _Up(nn.Module):
    """Double the size, join what was seen at it on the way down, and mix."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        self.mix = _convolutions(2 * outputs, outputs)

    def forward(self, x: Float[Tensor, "B C h w"], skip: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        return self.mix(torch.cat([self.up(x), skip], dim=1))


class _Head(nn.Module):
    """The up-sampling layers of one map, and its last layer, which starts at zero."""

    def __init__(self, widths: list[int], outputs: int) -> None:
        super().__init__()
        own = range(LEVELS - SHARED_LEVELS)
        self.ups = nn.ModuleList(_Up(widths[k + 1], widths[k]) for k in reversed(own))
        self.last = nn.Conv2d(widths[0], outputs, 1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "B C h w"], skips: list[Tensor]) -> Float[Tensor, "B N S S"]:
        for block, skip in zip(self.ups, reversed(skips), strict=True):
            x = block(x, skip)
        return self.last(x)


def _convolutions(inputs: int, outputs: int) -> nn.Sequential:
    first = nn.Conv2d(inputs, outputs, 3, padding=1)
    second = nn.Conv2d(outputs, outputs, 3, padding=1)
    for layer in (first, second):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))


def texture_inputs(face: TexelFace, unwrapped: Unwrapped, *, size: int | None = None) -> Float[Tensor, "B 18 R R"]:
    """What the network sees in the texture layout, on the chart; averaged to `size` texels a side where that is given.

    The photo's colours (3), how well each texel is seen (1) and is skin (1), the base's lit colours (3), what the
    albedo lacks to explain the photo (3), normals in view axes (3), how brightness answers to slopes along u and v (2),
    and the slopes that would explain its fine variation if the albedo were even (2): the least-squares answer of
    linear shape from shading at each texel. It is a product of two of the others, which a network of sums and
    thresholds learns slowly; with it, it has to tell relief from marks and integrate.
    """
    normals = face.displaced_normals.normals.permute(0, 3, 1, 2)
    maps = (unwrapped.colours, unwrapped.weights, unwrapped.skin, face.albedo, face.shading, normals)
    response = face.slope_response()
    if size is not None:
        *maps, response = (F.interpolate(m, size=(size, size), mode="area") for m in (*maps, response))
    colours, seen, skin, albedo, shading, normals = maps
    base = albedo * shading
    lack = (colours / shading.clamp(min=LEAST_LIGHT) - albedo).clamp(-1, 1)
    channels = [colours * seen, seen, skin * seen, base, lack * seen / OFFSET_UNIT, normals]
    slopes = _fine_brightness(colours, base, seen) * response
    slopes = slopes / (response.square().sum(1, keepdim=True) + LEAST_RESPONSE_SQ)
    return torch.cat([*channels, response, slopes.clamp(-1, 1)], dim=1)


def _fine_brightness(
    photo: Float[Tensor, "B 3 S S"], base: Float[Tensor, "B 3 S S"], seen: Float[Tensor, "B 1 S S"]
) -> Float[Tensor, "B 1 S S"]:
    """How much brighter than the base a texel is in the photo, relative to the same around it; 0 where not seen."""
    ratio = photo.mean(1, keepdim=True) / base.mean(1, keepdim=True).clamp(min=LEAST_LIGHT**2)
    side = 2 * SURROUNDINGS_TEXELS + 1
    around = [F.avg_pool2d(m, side, stride=1, padding=SURROUNDINGS_TEXELS) for m in (ratio * seen, seen)]
    mean = around[0] / around[1].clamp(min=1e-3)
    return seen * (ratio / mean.clamp(min=0.1) - 1)


@torch.no_grad()
def predict_maps(network: DetailNetwork, face: TexelFace, unwrapped: Unwrapped) -> DetailMaps:
    """What a network of the texture layout says of unwrapped photos, at the size of their chart.

    On charts larger than it was trained on it still sees colours, but no folds, which are too broad for it there:
    relief is looked for on the chart averaged to `UNIT_SIZE`, and enlarged. Raises ConfigError for a network of the
    image layout, whose maps are not those of a chart's size.
    """
    if network.layout != "texture" or network.displacement != "normal":
        raise ConfigError(
            "this detail network reads pictures or moves vertices freely (network.layout, network.displacement); only "
            "networks of layout texture and displacement normal answer for photos here."
        )
    said = network(texture_inputs(face, unwrapped))
    displacement, size = said["displacement"], len(face.valid)
    if size > UNIT_SIZE:
        coarse = network(texture_inputs(face, unwrapped, size=UNIT_SIZE))["displacement"]
        displacement = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return where_seen(said["texture_offset"], displacement, unwrapped, inside=face.valid)


def where_seen(
    texture_offset: Float[Tensor, "B 3 S S"],
    displacement: Float[Tensor, "B 1 S S"],
    unwrapped: Unwrapped,
    *,
    inside: Bool[Tensor, "S S"],
) -> DetailMaps:
    """A network's maps as they are used: what it says of unseen texels is a guess at nothing, and is replaced.

    The offset goes on smoothly from where the camera sees the face, the relief fades out.
    """
    seen = unwrapped.weights
    return DetailMaps(pull_push(texture_offset, seen) * inside, displacement * seen * unwrapped.skin * inside)


def save_detail(network: DetailNetwork, path: Path, *, notes: dict[str, str]) -> None:
    """Write the network for `load_detail`; `notes` go into the header."""
    settings = {"layout": network.layout, "displacement": network.displacement, "width": network.width}
    FILE.save(network, path, model_hash=network.model_hash, settings=settings, notes=notes)


def load_detail(model: MorphableModel, name_or_path: str | Path = DEFAULT_DETAIL) -> DetailNetwork:
    """The packaged network, or one that `mien train detail` wrote, for the model that it was trained with.

    FormatError for another kind of file, ModelMismatch for another model: its maps lie on that model's chart.
    """
    path = asset_path(DEFAULT_DETAIL) if str(name_or_path) == DEFAULT_DETAIL else Path(name_or_path)
    return FILE.load(path, model=model, build=lambda settings: DetailNetwork(model.fingerprint, **settings))
