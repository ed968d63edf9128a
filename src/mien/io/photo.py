"""Read photos as upright 8-bit sRGB, with the focal length from EXIF.

The files are not trusted: only listed formats are opened, the size is checked before a pixel is decoded, and every
failure of a decoder becomes an `ImageError` that names the file and says what to do.
"""

from __future__ import annotations

import io
import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from mien.errors import ImageError
from mien.io.source import BinaryFile, PhotoSource, open_photo
from mien.lighting import LUMA
from mien.typing import UInt8

MAX_PIXELS = 64_000_000
"""Default limit of the size of a photo; 64 megapixels take 192 MB as RGB."""
MIN_SIDE = 32
"""Smallest side in pixels; the smallest face that the detector finds has 30."""

WELL_EXPOSED = 0.9
"""Brightness, of 1, of the brightest hundredth of a well-exposed photo."""

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")  # a JPEG may turn out to be an MPO of several pictures
_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".mpo", ".png", ".webp", ".tif", ".tiff", ".bmp"})
# Folders are searched for these too, although they are refused: a message with advice is better than a missing photo.
_REFUSED_SUFFIXES = frozenset({".heic", ".heif", ".gif", ".avif"})
# "..jpg" and "...jpg" have stems that are paths out of the output folder.
_RESERVED_STEMS = ("summary.csv", ".", "..")

_FULL_FRAME_DIAGONAL_MM = math.hypot(36, 24)
_MM_PER_RESOLUTION_UNIT = {2: 25.4, 3: 10.0, 4: 1.0, 5: 1e-3}
# Focal length over the longer image side: 0.2 is a 136° fisheye, 60 a 2,000 mm lens. Beyond that EXIF is wrong.
_FOCAL_RANGE = (0.2, 60.0)
# Rounding of sizes, in EXIF and when resizing, changes the logarithm of the aspect ratio by less than this.
_ASPECT_TOLERANCE = 0.01

_EXIF_IFD = 0x8769
_FOCAL_LENGTH, _FOCAL_LENGTH_35MM = 0x920A, 0xA405
_FOCAL_PLANE_X_RESOLUTION, _FOCAL_PLANE_UNIT = 0xA20E, 0xA210
_PIXEL_X_DIMENSION, _PIXEL_Y_DIMENSION = 0xA002, 0xA003


@dataclass(frozen=True, eq=False)
class Photo:
    """A decoded photo."""

    pixels: UInt8[np.ndarray, "H W 3"]
    """sRGB, upright according to EXIF, transparent pixels on white."""
    focal_px: float | None
    """Focal length in pixels, from EXIF; None if EXIF has none or a wrong one."""
    path: Path
    """The file that was read, or the name that `read_photo` was given."""


def read_photo(
    source: PhotoSource, *, name: str | os.PathLike[str] | None = None, max_pixels: int = MAX_PIXELS
) -> Photo:
    """Read one photo as upright 8-bit sRGB.

    Formats are JPEG, PNG, WebP, TIFF (the first page) and BMP, and HEIC if Pillow has a plugin for it. Grey, palette,
    CMYK, 16-bit and transparent pictures are converted. Embedded colour profiles are applied; a damaged profile is
    ignored, as viewers do.

    Args:
        source: A path, the content of a file as bytes, or a binary file that is open for reading. An open file is read
            from its start and stays open. A pipe is read to its end, up to 1 GiB.
        name: Name of the photo in messages and in the result; by default the path, or the name of the open file.
        max_pixels: Largest number of pixels that is decoded.

    Returns:
        The pixels, and the focal length from EXIF.

    Raises:
        ImageError: The file is missing, damaged, an animation or of another format, has more than `max_pixels` pixels,
            or has a side of less than 32.

    Example:
        >>> photo = mien.read_photo("photo.jpg")
        >>> photo.pixels.shape, photo.focal_px
        >>> photo = mien.read_photo(sys.stdin.buffer, name="upload.jpg")
    """
    with open_photo(source, name) as (file, path), warnings.catch_warnings():
        # Pillow warns about unusual EXIF blocks, and about sizes, which are checked here with a better message.
        warnings.simplefilter("ignore")
        try:
            return _decode(file, path, max_pixels)
        except ImageError:
            raise
        except UnidentifiedImageError:
            raise ImageError(_unknown_format_message(file, path)) from None
        except Image.DecompressionBombError as error:
            count = next(iter(re.findall(r"\d+", str(error))), "far too many")
            raise ImageError(_too_large_message(path, f"{count} pixels", max_pixels)) from None
        except MemoryError:
            raise ImageError(f"{path}: not enough memory to decode it; resize the photo first") from None
        except Exception as error:
            # Decoders raise OSError, SyntaxError, ValueError, struct.error and more on damaged data.
            raise ImageError(
                f"{path}: damaged or cut off ({error}); copy it again, or save it again from a viewer"
            ) from error


def _decode(file: BinaryFile, path: Path, max_pixels: int) -> Photo:
    with Image.open(cast(IO[bytes], file), formats=_readable_formats()) as image:
        _check_size(image.size, path=path, max_pixels=max_pixels)
        _check_frames(image, path)
        image.load()
        return Photo(_to_srgb(_upright(image), path), _focal_px(image), path)


def exposure_of(pixels: UInt8[np.ndarray, "H W 3"]) -> float:
    """Measure the brightness of a photo.

    Args:
        pixels: sRGB.

    Returns:
        99th percentile of the luma over that of a well-exposed photo, limited to [0.1, 1.1].
    """
    stride = max(min(pixels.shape[:2]) // 256, 1)
    luminance = pixels[::stride, ::stride].astype(np.float32) @ np.array(LUMA, np.float32) / 255
    return float(np.clip(np.percentile(luminance, 99) / WELL_EXPOSED, 0.1, 1.1))


def find_photos(paths: Iterable[str | os.PathLike[str]], *, skip: str | os.PathLike[str] | None = None) -> list[Path]:
    """List the photos among files and folders, each once.

    Folders are searched to any depth, without hidden files and folders, and their photos sorted by path. Files are
    listed even if they are not photos, so that `read_photo` can report them.

    Args:
        paths: Files and folders.
        skip: A folder to leave out, where the results go.

    Returns:
        The files.

    Raises:
        ImageError: A folder contains no photos.
    """
    skipped = Path(skip).resolve() if skip is not None else None
    found: dict[Path, Path] = {}
    for given in map(Path, paths):
        below = _pictures_below(given, skipped) if given.is_dir() else [given]
        if not below:
            endings = " ".join(sorted(_SUFFIXES))
            raise ImageError(f"{given}: no photos in this folder; photos are files that end in {endings}")
        for path in below:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def output_stems(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Name a result folder per photo: the stem of the file, or stem-2, stem-3 … if stems are equal.

    Names that differ only in case count as equal, since they are one folder on Windows and macOS.

    Args:
        paths: The photos.

    Returns:
        One name per photo.
    """
    taken = {name.casefold() for name in _RESERVED_STEMS}
    stems = []
    for path in map(Path, paths):
        stem, number = path.stem, 1
        while stem.casefold() in taken:
            number += 1
            stem = f"{path.stem}-{number}"
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def _pictures_below(folder: Path, skipped: Path | None) -> list[Path]:
    pictures = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [
            name for name in folders if not name.startswith(".") and (Path(parent) / name).resolve() != skipped
        ]
        pictures += [
            Path(parent) / name
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in _SUFFIXES | _REFUSED_SUFFIXES
        ]
    return sorted(pictures)


def _readable_formats() -> list[str]:
    Image.init()
    return [*_FORMATS, *(["HEIF"] if "HEIF" in Image.OPEN else [])]


def _unknown_format_message(file: BinaryFile, path: Path) -> str:
    file.seek(0)
    head = file.read(32)
    if head[:4] == b"GIF8":
        return f"{path}: GIF is not supported; save one frame as PNG or JPEG"
    if head[4:8] == b"ftyp":
        brand = head[8:12].decode("latin-1")
        still = "HEIC" if brand[:2] in {"he", "mi", "ms"} else "a video"
        kind = "AVIF" if brand in {"avif", "avis"} else still
        return f"{path}: {kind} is not supported; export it as JPEG or PNG"
    if head[:4] == b"%PDF":
        return f"{path}: a PDF, not a photo; export the picture as JPEG or PNG"
    text = all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head)
    what = "holds text, not a picture" if text else "not a picture in a known format"
    return f"{path}: {what}; supported are JPEG, PNG, WebP, TIFF and BMP"


def _too_large_message(path: Path, size: str, max_pixels: int) -> str:
    side = math.isqrt(max_pixels)
    return (
        f"{path}: {size}, more than the limit of {max_pixels / 1e6:g} megapixels; resize it first, "
        f"for example to at most {side} x {side} pixels"
    )


def _check_size(size: tuple[int, int], *, path: Path, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        text = f"{width} x {height} pixels ({width * height / 1e6:.0f} megapixels)"
        raise ImageError(_too_large_message(path, text, max_pixels))
    if min(size) < MIN_SIDE:
        raise ImageError(f"{path}: {width} x {height} pixels, too small; each side needs at least {MIN_SIDE}")


def _check_frames(image: Image.Image, path: Path) -> None:
    # After the picture itself, a phone's MPO holds previews and a TIFF thumbnails; these may have more frames.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in {"MPO", "TIFF", "HEIF"}:
        raise ImageError(f"{path}: an animation of {frames} frames; save one frame as a picture")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (ValueError, TypeError, KeyError, SyntaxError, OverflowError):
        # exif_transpose turns the pixels and then rewrites EXIF, which fails on malformed entries.
        turn = _ORIENTATIONS.get(_exif_orientation(image))
        return image if turn is None else image.transpose(turn)


_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _exif_orientation(image: Image.Image) -> int:
    value = image.getexif().get(0x0112, 1)
    return value if isinstance(value, int) else 1


def _to_srgb(image: Image.Image, path: Path) -> UInt8[np.ndarray, "H W 3"]:
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return _scaled_grey(np.asarray(image), path)
    icc = image.info.get("icc_profile")
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode in {"RGB", "L"} and "transparency" in image.info:
        image = image.convert("RGBA" if image.mode == "RGB" else "LA")
    elif image.mode in {"1", "HSV", "RGBX", "PA", "La", "RGBa"}:
        image = image.convert({"1": "L", "PA": "RGBA", "La": "LA", "RGBa": "RGBA"}.get(image.mode, "RGB"))
    alpha = image.getchannel("A") if image.mode in {"RGBA", "LA"} else None
    if alpha is not None:
        image = image.convert("RGB" if image.mode == "RGBA" else "L")
    rgb = _apply_profile(image, icc) if isinstance(icc, bytes) and icc else image.convert("RGB")
    if alpha is not None:
        rgb = Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha)
    return np.array(rgb)


def _apply_profile(image: Image.Image, icc: bytes) -> Image.Image:
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image.convert("RGB")
    return image.convert("RGB") if converted is None else converted


def _scaled_grey(values: np.ndarray, path: Path) -> UInt8[np.ndarray, "H W 3"]:
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)) or low < 0 or high > 65535:
        raise ImageError(
            f"{path}: grey values from {low:g} to {high:g}, of unknown scale; save it with 8 or 16 bits per channel"
        )
    # By convention, floating-point pictures use the range 0 to 1 and integer ones 16 bits.
    unit = 1.0 if high <= 1 else 65535.0
    grey = np.round(values * (255 / unit)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def _focal_px(image: Image.Image) -> float | None:
    try:
        tags = image.getexif().get_ifd(_EXIF_IFD)
    except Exception:
        return None  # damaged EXIF, for which the parser raises many kinds of errors
    focal = _focal_from_tags(tags, *image.size)
    if focal is None or not _FOCAL_RANGE[0] <= focal / max(image.size) <= _FOCAL_RANGE[1]:
        return None
    return focal


def _focal_from_tags(tags: Mapping[int, object], width: int, height: int) -> float | None:
    full_width, full_height = _number(tags.get(_PIXEL_X_DIMENSION)), _number(tags.get(_PIXEL_Y_DIMENSION))
    if full_width and full_height:
        aspect = full_width / full_height
        upright, turned = width / height / aspect, height / width / aspect
        if min(abs(math.log(upright)), abs(math.log(turned))) > _ASPECT_TOLERANCE:
            return None  # cropped later, so the focal length in pixels is unknown
    focal_35mm, focal_mm = _number(tags.get(_FOCAL_LENGTH_35MM)), _number(tags.get(_FOCAL_LENGTH))
    resolution = _number(tags.get(_FOCAL_PLANE_X_RESOLUTION))
    if focal_35mm:
        # CIPA DCG-001 defines the 35 mm equivalent by the diagonal, for every aspect ratio.
        return focal_35mm / _FULL_FRAME_DIAGONAL_MM * math.hypot(width, height)
    if focal_mm and resolution:
        unit = _MM_PER_RESOLUTION_UNIT.get(int(_number(tags.get(_FOCAL_PLANE_UNIT)) or 2), 25.4)
        resized = max(width, height) / max(full_width, full_height) if full_width and full_height else 1.0
        return focal_mm * resolution / unit * resized
    return None


def _number(value: object) -> float | None:
    """A positive finite number, or None: EXIF may hold fractions over zero, texts, tuples, and 0 for unknown."""
    try:
        number = float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None
