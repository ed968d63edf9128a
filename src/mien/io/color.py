"""Convert decoded pictures of any colour space to 8-bit sRGB."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from mien.errors import ImageError
from mien.typing import UInt8


@dataclass(frozen=True)
class ColorSpace:
    """Primaries and transfer function as code points of ITU-T H.273, as HEIC, AVIF and PNG name them."""

    primaries: int
    """Code of the primaries: 1 are sRGB's, 12 Display P3's."""
    transfer: int
    """Code of the transfer function: 13 is sRGB's."""


ADOBE_RGB = ColorSpace(-1, -1)
"""Adobe RGB (1998), which H.273 does not have."""

_SRGB_PRIMARIES, _SRGB_TRANSFER, _LINEAR = 1, 13, 8
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
_D65 = (0.3127, 0.3290)
# x and y of red, green, blue and white: ITU-T H.273, table 2, and Adobe RGB (1998), section 4.3.
_CHROMATICITIES = {
    ADOBE_RGB.primaries: ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), _D65),
    1: ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), _D65),
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), _D65),
    6: ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07), _D65),
    7: ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07), _D65),
    9: ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046), _D65),
    11: ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), (0.314, 0.351)),
    12: ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), _D65),
}
# Exponents; other transfer functions, also BT.709's, are shown as sRGB's, as browsers do.
_GAMMAS = {ADOBE_RGB.transfer: 563 / 256, 4: 2.2, 5: 2.8, _LINEAR: 1.0}
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # IEC 61966-2-1
_D50_XYZ = (0.9642, 1.0, 0.8249)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_srgb(
    strips: Iterable[Image.Image], space: ColorSpace | None, *, icc: bytes | None
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Convert a picture of 8 bits per channel to sRGB, transparent pixels on white.

    The picture comes in strips, since each step of the conversion makes a copy.

    Args:
        strips: Parts of the picture, of any mode with 8 bits per channel.
        space: Its colour space, if the file names one; `icc` has priority.
        icc: Its colour profile; a damaged one is ignored, as viewers do.

    Yields:
        The strips as sRGB.
    """
    transform = cache(_transform)  # for this picture alone
    for strip in strips:
        yield _strip_to_srgb(strip, space, icc, transform)


def _strip_to_srgb(
    image: Image.Image,
    space: ColorSpace | None,
    icc: bytes | None,
    transform: Callable[[str, bytes], ImageCms.ImageCmsTransform | None],
) -> UInt8[np.ndarray, "H W 3"]:
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode in {"RGB", "L"} and "transparency" in image.info:
        image = image.convert("RGBA" if image.mode == "RGB" else "LA")
    elif image.mode in {"1", "HSV", "RGBX", "PA", "La", "RGBa"}:
        image = image.convert({"1": "L", "PA": "RGBA", "La": "LA", "RGBa": "RGBA"}.get(image.mode, "RGB"))
    alpha = image.getchannel("A") if image.mode in {"RGBA", "LA"} else None
    if alpha is not None:
        image = image.convert("RGB" if image.mode == "RGBA" else "L")
    if not icc and space is not None and image.mode == "RGB":
        icc = _profile_of(space)
    to_rgb = transform(image.mode, icc) if icc else None
    rgb = image.convert("RGB") if to_rgb is None else to_rgb.apply(image)
    if alpha is not None:
        rgb = Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha)
    return np.array(rgb)


def full_scale(values: Iterable[np.ndarray], path: Path, *, bits: int = 16) -> float:
    """The value of white among samples of more than 8 bits.

    Integers use the range of their type, or 0 to 255 if none is larger: no photo is that dark. Numbers of 32 bits and
    floating-point numbers have no range of their own: 0 to 1, 255 or 65,535 is taken if the largest is in its upper
    part, since a wrong guess is a black photo.

    Args:
        values: The samples, in parts.
        path: Name of the photo in messages.
        bits: Number of bits that 16-bit integers use.

    Raises:
        ImageError: The range is not clear.
    """
    dtypes, lows, highs = zip(*((part.dtype, float(part.min()), float(part.max())) for part in values), strict=True)
    dtype, low, high = dtypes[0], float(np.min(lows)), float(np.max(highs))
    if dtype == np.uint16:
        return 255.0 if high <= 255 else float((1 << bits) - 1)
    ranges = (255.0, 65535.0) if dtype.kind in "iu" else (1.0, 255.0, 65535.0)
    fitting = [full for full in ranges if high <= full and (full == ranges[0] or high >= full / 16)]
    if not (low >= 0 and fitting):
        raise ImageError(
            f"{path}: values from {low:g} to {high:g}, of unknown scale; save it with 8 or 16 bits per channel"
        )
    return fitting[0]


def scale_to_8_bits(values: np.ndarray, full: float) -> UInt8[np.ndarray, "..."]:
    """Convert samples of more than 8 bits to 8 bits.

    Args:
        values: The samples.
        full: Their `full_scale`.
    """
    scaled = np.empty(values.shape, np.uint8)
    for row, target in zip(values, scaled, strict=True):  # by rows: 64-bit copies of a whole photo are large
        target[:] = np.rint(np.minimum(row.astype(np.float64) * (255 / full), 255))
    return scaled


def check_range(space: ColorSpace | None, path: Path) -> None:
    """Refuse photos of high dynamic range: as sRGB they would have wrong colours.

    Args:
        space: Colour space that the file names.
        path: Name of the photo in messages.

    Raises:
        ImageError: The transfer function is PQ or HLG.
    """
    if space is not None and space.transfer in _HDR_TRANSFERS:
        raise ImageError(
            f"{path}: a photo of high dynamic range ({_HDR_TRANSFERS[space.transfer]}) is not supported; "
            "export it as JPEG or PNG, or switch HDR off"
        )


def _transform(mode: str, icc: bytes) -> ImageCms.ImageCmsTransform | None:
    """The conversion of a profile's colours to sRGB; None if the profile is damaged or of another mode."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _profile_of(space: ColorSpace) -> bytes | None:
    """An ICC profile (ICC.1:2010) of three primaries and a curve; None for sRGB and unknown primaries."""
    chromaticities = _CHROMATICITIES.get(space.primaries)
    gamma = _GAMMAS.get(space.transfer)
    if chromaticities is None or (space.primaries == _SRGB_PRIMARIES and gamma is None):
        return None
    columns = _adapted_primaries(*(np.array([x / y, 1, (1 - x - y) / y]) for x, y in chromaticities))
    kind, numbers = (3, _SRGB_CURVE) if gamma is None else (0, (gamma,))
    curve = b"para" + struct.pack(">IHH", 0, kind, 0) + _fixed(numbers)
    xyz = [b"XYZ \0\0\0\0" + _fixed(column) for column in (*columns.T, _D50_XYZ)]
    text = b"mluc" + struct.pack(">IIIHHII", 0, 1, 12, 0x656E, 0x5553, 8, 28) + "mien".encode("utf-16-be")
    tags = [*zip((b"rXYZ", b"gXYZ", b"bXYZ", b"wtpt"), xyz, strict=True)]
    tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")] + [(b"desc", text), (b"cprt", text)]
    table, data = b"", b""
    for name, content in tags:
        table += struct.pack(">4sII", name, 128 + 4 + 12 * len(tags) + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    body = struct.pack(">I", len(tags)) + table + data
    header = struct.pack(
        ">I4sI4s4s4s12x4s28x", 128 + len(body), b"\0" * 4, 0x04300000, b"mntr", b"RGB ", b"XYZ ", b"acsp"
    )
    return header + _fixed(_D50_XYZ) + bytes(128 - len(header) - 12) + body


def _adapted_primaries(red: np.ndarray, green: np.ndarray, blue: np.ndarray, white: np.ndarray) -> np.ndarray:
    """XYZ of the primaries as columns, adapted to D50 as ICC profiles need it."""
    columns = np.stack([red, green, blue], axis=1)
    columns = columns * np.linalg.solve(columns, white)
    cones = np.diag(_BRADFORD @ np.array(_D50_XYZ) / (_BRADFORD @ white))
    return np.linalg.inv(_BRADFORD) @ cones @ _BRADFORD @ columns


def _fixed(numbers: tuple[float, ...] | np.ndarray) -> bytes:
    return b"".join(struct.pack(">i", round(float(number) * 65536)) for number in numbers)
