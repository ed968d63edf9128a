"""Photos of other colour spaces than sRGB, by profile, by numbers or by EXIF, keep their skin within 2 levels."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from mien.errors import ImageError
from mien.io.photo import read_photo

SKINS = ((233, 190, 166), (200, 150, 120), (141, 85, 58), (74, 45, 34))

# XYZ of linear sRGB, Display P3, Adobe RGB and BT.2020, white D65 (Lindbloom; SMPTE EG 432-1; ITU-R BT.2020).
TO_XYZ = {
    "sRGB": [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
    "P3": [[0.4865709, 0.2656677, 0.1982173], [0.2289746, 0.6917385, 0.0792869], [0.0, 0.0451134, 1.0439444]],
    "Adobe": [[0.5767309, 0.1855540, 0.1881852], [0.2973769, 0.6273491, 0.0752741], [0.0270343, 0.0706872, 0.9911085]],
    "BT.2020": [[0.6369580, 0.1446169, 0.1688810], [0.2627002, 0.6779981, 0.0593017], [0.0, 0.0280727, 1.0609851]],
}


def in_space(colour: tuple[int, int, int], space: str) -> tuple[int, ...]:
    """The numbers of an sRGB colour in another space; Adobe RGB has the exponent 563/256, the others sRGB's curve."""
    value = np.array(colour) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    linear = np.linalg.solve(np.array(TO_XYZ[space]), np.array(TO_XYZ["sRGB"]) @ linear).clip(0, 1)
    curve = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return tuple(np.rint(255 * (linear ** (256 / 563) if space == "Adobe" else curve)).astype(int))


def patch(colour: tuple[int, ...]) -> Image.Image:
    return Image.new("RGB", (64, 64), colour)


def assert_skin(content: bytes, skin: tuple[int, int, int], tolerance: int = 2) -> None:
    assert np.abs(read_photo(content).pixels[32, 32].astype(int) - skin).max() <= tolerance


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    if kind == "HEIC":
        pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif")
        pillow_heif.from_pillow(image).save(content, quality=100, chroma=444, **options)
    else:
        image.save(content, kind, quality=100, lossless=kind == "WEBP", subsampling="4:4:4", **options)
    return content.getvalue()


@pytest.mark.parametrize("skin", SKINS)
@pytest.mark.parametrize(("space", "primaries"), [("P3", 12), ("BT.2020", 9), ("sRGB", 1), ("sRGB", 2)])
@pytest.mark.parametrize("kind", ["HEIC", "AVIF"])
def test_colours_named_by_nclx_alone(kind: str, space: str, primaries: int, skin: tuple[int, int, int]) -> None:
    content = encode(patch(in_space(skin, space)), kind)
    place = content.index(b"colrnclx") + 8
    assert struct.unpack(">HH", content[place : place + 4]) == (1, 13)
    # Steps of 8 bits are coarse in the wide space of BT.2020.
    assert_skin(
        content[:place] + struct.pack(">HH", primaries, 13) + content[place + 4 :], skin, 3 if primaries == 9 else 2
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "HEIC", "AVIF"])
def test_a_colour_profile_in_every_format(kind: str) -> None:
    # A profile whose red and blue are exchanged: sRGB's own with the tag names of the two swapped.
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")
    image = patch((200, 10, 10))
    if kind == "TIFF":
        content = io.BytesIO()
        image.save(content, "TIFF", icc_profile=swapped)
        data = content.getvalue()
    elif kind == "HEIC":
        image.info["icc_profile"] = swapped
        data = encode(image, kind)
    else:
        data = encode(image, kind, icc_profile=swapped)
    red, _, blue = read_photo(data).pixels[32, 32]
    assert blue > 150 > red


@pytest.mark.parametrize("kind", ["HEIC", "AVIF"])
@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_high_dynamic_range_is_refused(kind: str, transfer: int, name: str) -> None:
    content = encode(patch(SKINS[0]), kind)
    place = content.index(b"colrnclx") + 8
    with pytest.raises(ImageError, match=rf"high dynamic range \({name}\) is not supported; export it"):
        read_photo(content[:place] + struct.pack(">HH", 9, transfer) + content[place + 4 :])


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png[:33] + chunk + png[33:]  # behind IHDR


@pytest.mark.parametrize("skin", SKINS)
def test_colours_of_a_png_named_by_cicp(skin: tuple[int, int, int]) -> None:
    png = encode(patch(in_space(skin, "P3")), "PNG")
    assert_skin(with_chunk(png, b"cICP", bytes([12, 13, 0, 1])), skin)
    # It has priority over a profile.
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    png = encode(patch(in_space(skin, "P3")), "PNG", icc_profile=srgb)
    assert_skin(with_chunk(png, b"cICP", bytes([12, 13, 0, 1])), skin)


@pytest.mark.parametrize("skin", SKINS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_adobe_rgb_named_by_exif_alone(kind: str, skin: tuple[int, int, int]) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 65535
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    assert_skin(encode(patch(in_space(skin, "Adobe")), kind, exif=exif.tobytes()), skin)
    exif.get_ifd(0x8769)[0xA005] = {1: "R98"}
    assert_skin(encode(patch(skin), kind, exif=exif.tobytes()), skin)


def test_adobe_rgb_named_by_the_number_of_the_colour_space() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 2
    assert_skin(encode(patch(in_space(SKINS[1], "Adobe")), "JPEG", exif=exif), SKINS[1])


def test_a_profile_has_priority_over_exif() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert_skin(encode(patch(SKINS[1]), "JPEG", exif=exif, icc_profile=srgb), SKINS[1])
