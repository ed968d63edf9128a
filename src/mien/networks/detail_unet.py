"""The detail network: a double-head U-Net from a photo and a coarse reconstruction to two UV maps (section 2.2).

    photo, coarse ──► inputs ── shared encoder, two shared up-sampling layers ──┬─► texture offset map
    reconstruction                                                             └─► displacement map

The network has two input layouts. "image" is the paper's: photo and rendering of the coarse reconstruction side by side
in screen space, so the network has to move every pixel to its texel. "texture" unwraps the photo onto the UV map first:
skip connections then connect each texel with itself, and the network works at any map size.

In the texture layout depths are measured in texels: a wrinkle in a map of twice the size looks like a wrinkle of twice
the width and depth. One network therefore serves maps of all sizes; `predict_maps` describes the limit of this.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
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

DEFAULT_DETAIL = "detail-unet.safetensors"
"""Name of the packaged detail network."""
LEVELS = 4
"""Number of times that the map is halved; its side must be a multiple of 2 to this power."""
SHARED_LEVELS = 2
"""Up-sampling layers before the heads separate, as in the paper."""
OFFSET_UNIT = 0.1
"""Meaning of the value 1 at the output of the offset head: about the standard deviation of skin around its linear
model."""
DISPLACEMENT_UNIT_M = 1e-3
"""The same for the displacement head, in metres, in a map of `UNIT_SIZE` texels."""
UNIT_SIZE = 224
"""Side of the maps that networks are trained on, texels."""
LOCAL_MEAN_RADIUS = 8
"""Radius in texels of the square over which the local mean of brightness is taken: broader variation belongs to
lighting and albedo."""
MIN_RESPONSE_SQ = 0.05
"""Added to the squared slope response. Under light that is perpendicular to the surface slopes are nearly invisible;
there they are estimated too low instead of too high."""
MIN_SHADING = 0.15
"""Lower limit of shading where a colour is divided by it: darker shading would amplify noise."""
CROP_SHARE = 256 / 224
"""Crop pixels per texel of the map's side, as in the packaged network's training."""

Layout = Literal["image", "texture"]
Displacement = Literal["normal", "xyz"]
CHANNELS: dict[Layout, int] = {"image": 6, "texture": 18}
MAX_WIDTH = 128
"""Largest number of channels at full size: 2,048 in the smallest map."""


@dataclass(frozen=True)
class DetailHeader:
    """What a detail network's file says of its architecture, the arguments of `DetailNetwork`."""

    layout: Layout = "texture"
    displacement: Displacement = "normal"
    width: int = 16


FILE = NetworkKind("mien-detail-1", "network", DetailHeader)


class DetailNetwork(nn.Module):
    """Double-head U-Net (Ronneberger et al. 2015) without normalisation layers; before training its maps are zero.

    The output has to keep the amplitudes of the input, which batch or group normalisation would remove; and without
    batch statistics a training step does not depend on how a batch is divided over processes.

    Args:
        model_hash: Fingerprint of the face model on whose UV map the network works.
        layout: Input layout, see the module's docstring.
        displacement: "normal" for one channel along the normal, "xyz" for three channels as in the paper.
        width: Channels at full size, 1 to `MAX_WIDTH`; each halving doubles them.

    Raises:
        ConfigError: `width` is out of range.
    """

    layout: Layout
    displacement: Displacement

    def __init__(
        self, model_hash: str, *, layout: Layout = "texture", displacement: Displacement = "normal", width: int = 16
    ) -> None:
        super().__init__()
        if not 1 <= width <= MAX_WIDTH:
            raise ConfigError(f"network.width={width} is out of range: it must be from 1 to {MAX_WIDTH}.")
        self.model_hash, self.layout, self.displacement, self.width = model_hash, layout, displacement, width
        widths = [width * 2**level for level in range(LEVELS + 1)]
        inputs = [CHANNELS[layout], *widths[:-1]]
        self.down = nn.ModuleList(_convolutions(*pair) for pair in zip(inputs, widths, strict=True))
        self.shared = nn.ModuleList(_Up(widths[k + 1], widths[k]) for k in reversed(range(LEVELS)[-SHARED_LEVELS:]))
        outputs = {"texture_offset": 3, "displacement": 1 if displacement == "normal" else 3}
        self.heads = nn.ModuleDict({name: _Head(widths, count) for name, count in outputs.items()})

    def forward(self, inputs: Float[Tensor, "B C S S"]) -> dict[str, Float[Tensor, "B N S S"]]:
        """Predict both maps; differentiable.

        Args:
            inputs: The channels of the layout; the side must be a multiple of 16.

        Returns:
            Float32 tensors "texture_offset" (B, 3, S, S), to be added to the albedo, and "displacement" (B, 1 or 3, S,
            S), metres. Plain tensors, since DDP cannot pass on a frozen dataclass.
        """
        skips = [self.down[0](inputs)]
        for block in list(self.down)[1:]:
            skips.append(block(F.max_pool2d(skips[-1], 2)))
        x = skips.pop()
        for block in self.shared:
            x = block(x, skips.pop())
        maps = {name: head(x, skips).float() for name, head in self.heads.items()}
        texel_m = DISPLACEMENT_UNIT_M * UNIT_SIZE / inputs.shape[-1]
        return {
            "texture_offset": maps["texture_offset"] * OFFSET_UNIT,
            "displacement": maps["displacement"] * texel_m,
        }


class _Up(nn.Module):
    """Double the size, concatenate the skip connection, and convolve."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        self.mix = _convolutions(2 * outputs, outputs)

    def forward(self, x: Float[Tensor, "B C h w"], skip: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        return self.mix(torch.cat([doubled(self.up, x), skip], dim=1))


def doubled(layer: nn.ConvTranspose2d, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D H W"]:
    """The output of a transposed convolution of stride 2 with a kernel of 2 × 2; differentiable.

    Its outputs do not overlap, so that it is one product of matrices per row of the kernel. In bf16 on a CPU the
    backward pass of the products takes a third of the time of the convolution's (Zen 4, torch 2.13).

    Args:
        layer: The transposed convolution.
        x: Its input.
    """
    if x.device.type != "cpu" or not _in_bf16(x):
        return layer(x)
    batch, _, height, width = x.shape
    outputs = layer.weight.shape[1]
    pixels, bias = x.permute(0, 2, 3, 1), None if layer.bias is None else layer.bias.repeat(2)
    kernel = layer.weight.permute(2, 3, 1, 0).reshape(2, 2 * outputs, -1)
    rows = [F.linear(pixels, half, bias).view(batch, height, 2 * width, outputs) for half in kernel]
    return torch.stack(rows, dim=2).view(batch, 2 * height, 2 * width, outputs).permute(0, 3, 1, 2)


def _in_bf16(x: Tensor) -> bool:
    """Whether layers compute in bf16 with this input."""
    return x.dtype == torch.bfloat16 or (
        torch.is_autocast_enabled(x.device.type) and torch.get_autocast_dtype(x.device.type) == torch.bfloat16
    )


class _Head(nn.Module):
    """The up-sampling layers of one map and its last layer, which starts at zero."""

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
    """Assemble the network's input in the texture layout.

    Channels: photo colours (3), visibility (1), skin (1), lit colours of the coarse reconstruction (3), the albedo
    offset that would explain the photo (3), normals in view axes (3), change of brightness per slope along u and v (2),
    and the slopes that would explain the photo's fine variation if the albedo were uniform (2): the least-squares
    solution of linear shape from shading at each texel. The last pair is a product of other channels, which a network
    of sums and thresholds learns slowly; given the pair, the network has to separate relief from blemishes and
    integrate.

    Args:
        face: The coarse reconstruction on the UV map.
        unwrapped: The photo on the UV map.
        size: Side R in texels to which the channels are averaged; None keeps the UV map's side.
    """
    normals = face.displaced_normals.normals.permute(0, 3, 1, 2)
    maps = (unwrapped.colours, unwrapped.weights, unwrapped.skin, face.albedo, face.shading, normals)
    response = face.slope_response()
    if size is not None:
        *maps, response = (F.interpolate(m, size=(size, size), mode="area") for m in (*maps, response))
    colours, visible, skin, albedo, shading, normals = maps
    lit = albedo * shading
    offset = (colours / shading.clamp(min=MIN_SHADING) - albedo).clamp(-1, 1)
    channels = [colours * visible, visible, skin * visible, lit, offset * visible / OFFSET_UNIT, normals]
    slopes = _fine_brightness(colours, lit, visible) * response
    slopes = slopes / (response.square().sum(1, keepdim=True) + MIN_RESPONSE_SQ)
    return torch.cat([*channels, response, slopes.clamp(-1, 1)], dim=1)


def _fine_brightness(
    photo: Float[Tensor, "B 3 S S"], lit: Float[Tensor, "B 3 S S"], visible: Float[Tensor, "B 1 S S"]
) -> Float[Tensor, "B 1 S S"]:
    """Ratio of brightness in photo and reconstruction, relative to its local mean, minus 1; 0 where not visible."""
    ratio = photo.mean(1, keepdim=True) / lit.mean(1, keepdim=True).clamp(min=MIN_SHADING**2)
    weighted, weight = _local_mean(torch.cat([ratio * visible, visible], dim=1)).split(1, dim=1)
    mean = weighted / weight.clamp(min=1e-3)
    return visible * (ratio / mean.clamp(min=0.1) - 1)


def _local_mean(maps: Float[Tensor, "B C S S"]) -> Float[Tensor, "B C S S"]:
    """Mean over a square around each texel, along one axis and then the other; 0 counts outside the map."""
    side, radius = 2 * LOCAL_MEAN_RADIUS + 1, LOCAL_MEAN_RADIUS
    across = F.avg_pool2d(maps, (1, side), stride=1, padding=(0, radius))
    return F.avg_pool2d(across, (side, 1), stride=1, padding=(radius, 0))


@torch.no_grad()
def predict_maps(network: DetailNetwork, face: TexelFace, unwrapped: Unwrapped) -> DetailMaps:
    """Predict detail maps at the size of the UV map; not differentiable.

    On UV maps larger than in training the network still predicts colours, but it finds no wrinkles, which are too broad
    there in texels. Relief is therefore predicted on the UV map averaged to `UNIT_SIZE`, and enlarged.

    Args:
        network: A network with layout "texture" and displacement "normal".
        face: The coarse reconstruction on the UV map.
        unwrapped: The photo on the UV map.

    Raises:
        ConfigError: The network has another layout or displacement.
    """
    if network.layout != "texture" or network.displacement != "normal":
        raise ConfigError(
            f"this detail network has layout {network.layout!r} and displacement {network.displacement!r}; use one "
            "with network.layout = 'texture' and network.displacement = 'normal'."
        )
    maps = network(_by_pixel(texture_inputs(face, unwrapped)))
    displacement, size = maps["displacement"], len(face.valid)
    if size > UNIT_SIZE:
        small = network(_by_pixel(texture_inputs(face, unwrapped, size=UNIT_SIZE)))["displacement"]
        displacement = F.interpolate(small, size=(size, size), mode="bicubic", align_corners=False)
    return visible_maps(maps["texture_offset"], displacement, unwrapped, inside=face.valid)


def _by_pixel(inputs: Float[Tensor, "B C S S"]) -> Float[Tensor, "B C S S"]:
    """Put the channels of a pixel side by side: on a CPU the layers then take three quarters of the time."""
    return inputs.contiguous(memory_format=torch.channels_last)


def visible_maps(
    texture_offset: Float[Tensor, "B 3 S S"],
    displacement: Float[Tensor, "B 1 S S"],
    unwrapped: Unwrapped,
    *,
    inside: Bool[Tensor, "S S"],
) -> DetailMaps:
    """Replace a network's prediction at texels that the camera does not see; differentiable.

    The offset is continued smoothly from visible texels; the displacement fades to 0.

    Args:
        texture_offset: Predicted offset of the albedo.
        displacement: Predicted displacement along the normal, metres.
        unwrapped: Visibility and skin of the photo on the UV map.
        inside: Texels that belong to the face.
    """
    visible = unwrapped.weights
    return DetailMaps(pull_push(texture_offset, visible) * inside, displacement * visible * unwrapped.skin * inside)


def save_detail(network: DetailNetwork, path: Path, *, notes: dict[str, str]) -> None:
    """Write a detail network for `load_detail`.

    Args:
        network: Its weights are rounded to float16.
        path: File to write.
        notes: Further entries of the file's header.
    """
    settings = DetailHeader(network.layout, network.displacement, network.width)
    FILE.save(network, path, model_hash=network.model_hash, settings=settings, notes=notes)


def load_detail(model: MorphableModel, name_or_path: str | Path = DEFAULT_DETAIL) -> DetailNetwork:
    """Load the packaged detail network, or a file that `mien train detail` wrote, in evaluation mode.

    Args:
        model: The face model that the network was trained with.
        name_or_path: `DEFAULT_DETAIL`, or a path.

    Raises:
        FormatError: The file is damaged or of another kind.
        ModelMismatch: The network was trained with another face model; its maps belong to another UV map.
        AssetError: The packaged file is missing.
    """
    path = asset_path(DEFAULT_DETAIL) if str(name_or_path) == DEFAULT_DETAIL else Path(name_or_path)
    return FILE.load(path, model=model, build=lambda header: DetailNetwork(model.fingerprint, **asdict(header)))
