"""TIFFs of every layout, read with the right pixels or refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mien.errors import ImageError
from mien.io.photo import read_photo
from tests.tiff_files import TiffWriter, tiff_bytes

HEIGHT, WIDTH = 60, 80
X, Y = np.meshgrid(np.linspace(0.02, 1, WIDTH), np.linspace(0.05, 0.9, HEIGHT))
COLOUR = np.stack([X, Y, 1 - 0.9 * X], axis=-1)
FULL = {"u1": 255, "u2": 65535, "u4": 65535, "i4": 65535, "f2": 1, "f4": 1, "f8": 1}


def samples(dtype: str, picture: np.ndarray = COLOUR, full: float | None = None) -> np.ndarray:
    values = picture * (FULL[dtype] if full is None else full)
    return (values if dtype[0] == "f" else np.rint(values)).astype(dtype)


def assert_shows(content: bytes, picture: np.ndarray = COLOUR) -> None:
    pixels = read_photo(content).pixels
    expected = 255 * (picture if picture.ndim == 3 else picture[..., None])
    assert np.abs(pixels - expected).max() <= 1.1  # Pillow cuts 16 bits to 8 without rounding


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("dtype", sorted(FULL))
def test_uncompressed_colour(dtype: str, planar: bool, order: str) -> None:
    assert_shows(tiff_bytes(samples(dtype), planar=planar, order=order))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", sorted(FULL))
def test_uncompressed_grey(dtype: str, order: str) -> None:
    assert_shows(tiff_bytes(samples(dtype, Y), order=order), Y)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("dtype", sorted(FULL))
@pytest.mark.parametrize("picture", [COLOUR, Y], ids=["colour", "grey"])
def test_compressed_ones_are_right_or_refused(picture: np.ndarray, dtype: str, planar: bool, order: str) -> None:
    content = tiff_bytes(samples(dtype, picture), planar=planar, order=order, deflate=True)
    readable = dtype in {"u1", "u2"} or (picture.ndim == 2 and order == "<" and dtype in {"i4", "f4"})
    if readable:
        assert_shows(content, picture)
    else:
        with pytest.raises(ImageError, match=r"-bit .*samples, compressed.* is not supported; save it with 8 or 16"):
            read_photo(content)


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4", "f8"])
def test_white_is_zero(dtype: str, deflate: bool) -> None:
    if dtype == "f8" and deflate:
        pytest.skip("refused")
    assert_shows(tiff_bytes(samples(dtype, 1 - Y), white_is_zero=True, deflate=deflate), Y)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("planar", [False, True])
def test_alpha_is_shown_on_white(dtype: str, planar: bool) -> None:
    opaque = np.zeros((HEIGHT, WIDTH, 1))
    opaque[:, :40] = 1
    content = tiff_bytes(samples(dtype, np.concatenate([COLOUR, opaque], axis=-1)), planar=planar)
    assert_shows(content, np.where(opaque > 0, COLOUR, 1))


@pytest.mark.parametrize(("dtype", "full"), [("f4", 255), ("f4", 65535), ("i4", 255), ("u4", 255), ("u2", 255)])
@pytest.mark.parametrize("picture", [COLOUR, Y], ids=["colour", "grey"])
def test_the_range_goes_by_the_largest_value_where_the_type_does_not_tell(
    picture: np.ndarray, dtype: str, full: float
) -> None:
    if dtype == "u2" and picture.ndim == 3:
        pytest.skip("Pillow keeps the upper 8 of 16 bits of colours")
    assert_shows(tiff_bytes(samples(dtype, picture, full)), picture)


@pytest.mark.parametrize("values", [(0, 7.5), (0, 300.0), (-0.5, 1), (0, 1e6), (0, np.nan), (0, np.inf)])
def test_an_unclear_range_is_refused(values: tuple[float, float]) -> None:
    picture = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    picture[:2] = np.array(values)[:, None, None]
    with pytest.raises(ImageError, match=r"of unknown scale; save it with 8 or 16 bits"):
        read_photo(tiff_bytes(picture))


def test_twelve_bits_keep_their_scale() -> None:
    # Two samples in three bytes.
    values = samples("u2", Y, 4095).astype(np.uint32)
    pairs = values[:, ::2] << 12 | values[:, 1::2]
    packed = np.stack([pairs >> 16, pairs >> 8 & 255, pairs & 255], axis=-1).astype(np.uint8)
    writer = TiffWriter()
    more = {256: writer.long(WIDTH), 258: writer.short(12)}
    assert_shows(tiff_bytes(packed.reshape(HEIGHT, -1), more=more), Y)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_orientation_and_profile_in_every_path(orientation: int, dtype: str) -> None:
    writer = TiffWriter()
    content = tiff_bytes(samples(dtype), planar=True, more={274: writer.short(orientation)})
    turned = np.rot90(COLOUR, {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    assert_shows(content, turned)


def test_signed_small_integers_and_cut_strips_are_refused() -> None:
    with pytest.raises(ImageError, match=r"3 × 16-bit signed integer samples is not supported"):
        read_photo(tiff_bytes(samples("u2", COLOUR, 30000).astype(np.int16)))
    content = tiff_bytes(samples("f4"))
    directory = int.from_bytes(content[4:8], "little")
    short = content[:4] + (8).to_bytes(4, "little") + content[directory:]
    with pytest.raises(ImageError, match="damaged or cut off"):
        read_photo(short[: len(short) - 10])
    with pytest.raises(ImageError, match="a big-endian BigTIFF is not supported"):
        read_photo(b"MM\0+\0\x08\0\0" + bytes(100))
    writer = TiffWriter()
    with pytest.raises(ImageError, match=r"damaged or cut off \(strips are missing\)"):
        read_photo(tiff_bytes(samples("f4"), more={279: writer.long(10, 10, 10)}))
    with pytest.raises(ImageError, match=r"100000 x 100000 pixels .*more than the limit"):
        read_photo(tiff_bytes(samples("f4"), more={256: writer.long(100_000), 257: writer.long(100_000)}))


def test_sixteen_bit_planes_of_more_than_one_page(tmp_path: Path) -> None:
    page = Image.fromarray(samples("u1"))
    content = io.BytesIO()
    page.save(content, "TIFF", save_all=True, append_images=[Image.new("RGB", (40, 40))])
    assert_shows(content.getvalue())
