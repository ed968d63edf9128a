"""HEIC, AVIF and raw photos, and photos of several pictures."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mien.errors import ImageError, PhotoReduced
from mien.io.formats import readable_formats, unreadable_formats
from mien.io.photo import read_photo
from mien.io.photo_files import find_photos
from tests.tiff_files import TiffWriter, tiff_bytes

pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif")

FIELD = Path(os.environ.get("MIEN_DATA", Path(__file__).parents[2] / "shared" / "data")) / "field"
RED, GREEN, BLUE, WHITE = (230, 20, 20), (20, 200, 20), (20, 20, 230), (250, 250, 250)


def four_corners(size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Red, green, blue and white, by rows."""
    width, height = size
    image = Image.new("RGB", size)
    for k, colour in enumerate((RED, GREEN, BLUE, WHITE)):
        image.paste(colour, (k % 2 * width // 2, k // 2 * height // 2, width, height))
    return image


def stored(upright: Image.Image, orientation: int) -> Image.Image:
    """The pixels that EXIF's orientation turns into `upright` (EXIF 2.32, table 6)."""
    undo = [
        None,
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.ROTATE_180,
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_90,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_270,
    ][orientation - 1]
    return upright if undo is None else upright.transpose(undo)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """A file of high quality; HEIC by pillow-heif, everything else by Pillow."""
    if kind == "HEIC":
        content = io.BytesIO()
        pillow_heif.from_pillow(image).save(content, quality=95, chroma=444, **options)
        return content.getvalue()
    content = io.BytesIO()
    image.save(content, kind, quality=95, subsampling="4:4:4", **options)
    return content.getvalue()


def exif_block(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769)[0xA405] = 50
    return exif.tobytes()


def assert_upright(content: bytes) -> None:
    photo = read_photo(content)
    assert photo.pixels.shape == (64, 96, 3)
    assert np.abs(photo.pixels[8:-8:16, 8:-8:16].astype(int) - np.asarray(four_corners())[8:-8:16, 8:-8:16]).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "HEIC", "AVIF"])
def test_orientation_is_applied_once(kind: str, orientation: int) -> None:
    # HEIC and AVIF get a rotation and a reflection of their own, and HEIC EXIF's orientation too.
    image = stored(four_corners(), orientation)
    if kind in {"PNG", "TIFF"}:
        content = io.BytesIO()
        image.save(content, kind, exif=exif_block(orientation))
        assert_upright(content.getvalue())
    else:
        assert_upright(encode(image, kind, exif=exif_block(orientation)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["HEIC", "AVIF"])
def test_orientation_by_exif_alone(kind: str, orientation: int) -> None:
    # Writers turn EXIF's orientation into the file's own; they do not know this one, whose tag is changed later.
    exif = Image.Exif()
    exif[0x0113] = orientation
    content = encode(stored(four_corners(), orientation), kind, exif=exif.tobytes())
    assert b"irot" not in content
    assert b"imir" not in content
    (order,) = [each for each in "<>" if content.count(struct.pack(f"{each}HHI", 0x0113, 3, 1)) == 1]
    assert_upright(content.replace(struct.pack(f"{order}HHI", 0x0113, 3, 1), struct.pack(f"{order}HHI", 0x0112, 3, 1)))


@pytest.mark.parametrize("kind", ["HEIC", "AVIF"])
def test_heic_and_avif_have_a_focal_length(kind: str) -> None:
    photo = read_photo(encode(four_corners(), kind, exif=exif_block(1)))
    assert photo.focal_px == pytest.approx(50 / 43.2666 * np.hypot(96, 64), rel=1e-4)


def test_the_main_picture_of_a_burst_is_read() -> None:
    burst = pillow_heif.HeifFile()
    for colour in (RED, GREEN, BLUE):
        burst.add_from_pillow(Image.new("RGB", (64, 64), colour))
    content = io.BytesIO()
    burst.save(content, quality=95, primary_index=1)
    assert np.abs(read_photo(content).pixels[30, 30].astype(int) - GREEN).max() < 12


def test_turns_of_other_pictures_of_a_burst_are_not_the_main_ones() -> None:
    turned, main = stored(four_corners(), 8), stored(four_corners(), 6)
    for image, tag, value in ((turned, 0x0112, 8), (main, 0x0113, 6)):
        exif = Image.Exif()
        exif[tag] = value
        image.info["exif"] = exif.tobytes()
    burst = pillow_heif.HeifFile()
    burst.add_from_pillow(turned)
    burst.add_from_pillow(main)
    content = io.BytesIO()
    burst.save(content, quality=95, chroma=444, primary_index=1)
    file = content.getvalue()
    assert b"irot" in file
    (order,) = [each for each in "<>" if file.count(struct.pack(f"{each}HHI", 0x0113, 3, 1)) == 1]
    file = file.replace(struct.pack(f"{order}HHI", 0x0113, 3, 1), struct.pack(f"{order}HHI", 0x0112, 3, 1))
    assert_upright(file)


def test_a_gain_map_and_other_second_pictures_are_left_alone() -> None:
    # Ultra HDR and Apple's gain maps are the second picture of a JPEG, of smaller size.
    content = io.BytesIO()
    four_corners().save(
        content, "MPO", save_all=True, append_images=[Image.new("L", (48, 32), 128).convert("RGB")], quality=95
    )
    assert_upright(content.getvalue())


@pytest.mark.parametrize("kind", ["HEIC", "AVIF"])
def test_damaged_heic_and_avif_are_image_errors(kind: str) -> None:
    content = encode(four_corners(), kind, exif=exif_block(6))
    rng = np.random.default_rng(5)
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(12, len(content), 3):
            damaged[place] = rng.integers(256)
        try:
            assert read_photo(bytes(damaged[: rng.integers(len(content) // 2, len(content) + 1)])).pixels.shape[2] == 3
        except ImageError as error:
            assert "photo: " in str(error)


def test_size_is_checked_before_heic_and_avif_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("HEIC", "AVIF"):
        content = encode(four_corners(), kind)
        with monkeypatch.context() as patch:
            patch.setattr(Image.Image, "load", None)
            patch.setattr("PIL.ImageFile.ImageFile.load", None)
            with pytest.raises(ImageError, match=r"96 x 64 pixels .*limit .*--max-megapixels"):
                read_photo(content, max_pixels=96 * 64 - 1)
        assert read_photo(content, max_pixels=96 * 64).pixels.shape == (64, 96, 3)


@pytest.mark.skipif(not FIELD.is_dir(), reason=f"{FIELD} does not exist")
def test_a_phones_heic() -> None:
    pixels = read_photo(FIELD / "phone.heic").pixels
    assert pixels.shape == (800, 680, 3)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(40), "a video is not supported; export one frame"),
        (b"\xff\x0a" + bytes(40), "JPEG XL is not supported; save it as JPEG or PNG"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "JPEG XL is not supported"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "JPEG 2000 is not supported"),
        (b"GIF89a" + bytes(40), "GIF is not supported; save one frame"),
    ],
)
def test_other_formats_are_refused_with_advice(start: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read_photo(start)


def test_without_their_packages_heic_and_raw_photos_are_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = readable_formats()
    assert {"JPEG", "HEIC", "AVIF"} <= set(everything)
    monkeypatch.setattr("mien.io.formats.find_spec", lambda name: None)
    with pytest.raises(ImageError, match=r"HEIC photos cannot be read .*export it as JPEG .* pip install pillow-heif"):
        read_photo(encode(four_corners(), "HEIC"))
    with pytest.raises(ImageError, match=r"a raw photo cannot be read .*export it as JPEG .*'mien\[raw\]'"):
        read_photo(dng_bytes())
    assert readable_formats() == ["JPEG", "PNG", "WebP", "TIFF", "BMP", "AVIF"]
    assert [each.split()[0] for each in unreadable_formats()] == ["HEIC", "raw"]


def test_folders_are_searched_for_photos_of_phones_and_cameras(tmp_path: Path) -> None:
    names = ["a.HEIC", "b.avif", "c.dng", "d.NEF", "e.cr3", "f.hif", "g.jxl"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in find_photos([tmp_path])] == names
    (tmp_path / "d.JPG").write_bytes(b"x")  # the camera's own picture of d.NEF
    assert [path.name for path in find_photos([tmp_path])] == ["a.HEIC", "b.avif", "c.dng", "d.JPG", *names[4:]]
    assert find_photos([tmp_path / "d.NEF"]) == [tmp_path / "d.NEF"]


# Raw photos.


def dng_bytes(*, orientation: int = 1, size: tuple[int, int] = (96, 64), photometric: int = 32803) -> bytes:
    """A DNG: a red thumbnail of 48 × 32 first, and below it a sensor picture of grey with a dark left half."""
    width, height = size
    writer = TiffWriter()
    short, long, rationals = writer.short, writer.long, writer.rationals
    sensor = np.full((height, width), 8000, "<u2")
    sensor[:, : width // 2] = 500
    if photometric == 34892:
        sensor = np.repeat(sensor[..., None], 3, axis=-1)
    thumbnail = np.tile(np.array([255, 0, 0], np.uint8), (32, 48, 1)).tobytes()
    sensor_at = 8 + len(thumbnail)
    raw_at = sensor_at + sensor.nbytes
    samples = sensor.shape[2] if sensor.ndim == 3 else 1
    raw = {
        254: long(0), 256: long(width), 257: long(height), 258: short(*[16] * samples), 259: short(1),
        262: short(photometric), 273: long(sensor_at), 277: short(samples), 278: long(height),
        279: long(sensor.nbytes), 284: short(1), 50714: short(0), 50717: long(16383),
    }  # fmt: skip
    if samples == 1:
        raw |= {33421: short(2, 2), 33422: (1, bytes([0, 1, 1, 2]))}
    raw_directory = writer.directory(raw, raw_at)
    first = {
        254: long(1), 256: long(48), 257: long(32), 258: short(8, 8, 8), 259: short(1), 262: short(2),
        271: (2, b"mien\0"), 272: (2, b"test camera\0"), 273: long(8), 274: short(orientation), 277: short(3),
        278: long(32), 279: long(len(thumbnail)), 284: short(1), 330: long(raw_at), 50706: (1, bytes([1, 4, 0, 0])),
        50708: (2, b"mien test camera\0"), 50778: short(21), 50728: rationals(1, 1, 1),
        50721: rationals(3.1339, -1.6169, -0.4906, -0.9788, 1.9161, 0.0335, 0.0719, -0.2290, 1.4052, kind=10),
    }  # fmt: skip
    first_at = raw_at + len(raw_directory)
    content = writer.header(first_at) + thumbnail + sensor.tobytes() + raw_directory
    return content + writer.directory(first, first_at)


@pytest.mark.parametrize("photometric", [32803, 34892])
def test_raw_photos_are_developed_never_their_thumbnail(photometric: int) -> None:
    pytest.importorskip("rawpy", reason="needs rawpy")
    pixels = read_photo(dng_bytes(photometric=photometric)).pixels.astype(int)
    assert pixels.shape == (64, 96, 3)
    # Linear values 8000/16383 and 500/16383, as sRGB; no automatic brightness.
    for column, linear in ((80, 8000 / 16383), (12, 500 / 16383)):
        expected = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
        assert np.abs(pixels[32, column] - expected).max() <= 2


@pytest.mark.parametrize(
    ("orientation", "shape", "dark"),
    [(1, (64, 96), np.s_[:, :40]), (3, (64, 96), np.s_[:, 56:]), (6, (96, 64), np.s_[:40]), (8, (96, 64), np.s_[56:])],
)
def test_raw_photos_are_turned_once(orientation: int, shape: tuple[int, int], dark: tuple[slice, ...]) -> None:
    pytest.importorskip("rawpy", reason="needs rawpy")
    pixels = read_photo(dng_bytes(orientation=orientation)).pixels
    assert pixels.shape[:2] == shape
    assert pixels[dark].max() < 80 < pixels.max()


def test_raw_photos_have_a_limit_and_damaged_ones_are_image_errors() -> None:
    pytest.importorskip("rawpy", reason="needs rawpy")
    with pytest.raises(ImageError, match=r"96 x 64 pixels .*more than the limit"):
        read_photo(dng_bytes(), max_pixels=6000)
    rng = np.random.default_rng(6)
    content = dng_bytes()
    for _ in range(40):
        damaged = bytearray(content)
        for place in rng.integers(4, len(content), 200):
            damaged[place] = rng.integers(256)
        try:
            assert read_photo(bytes(damaged[: rng.integers(len(content) // 2, len(content) + 1)])).pixels.shape[2] == 3
        except ImageError as error:
            assert "photo: " in str(error)
    # Canon's CR2 by its mark, before a page that could be read, and Fujifilm's RAF.
    marked = np.full((64, 96, 3), 90, np.uint8)
    marked[0, 0], marked[0, 1, 0] = np.frombuffer(b"CR\x02", np.uint8), 0
    assert tiff_bytes(marked)[8:12] == b"CR\x02\0"
    for start in (tiff_bytes(marked), b"FUJIFILMCCD-RAW 0201" + bytes(100)):
        with pytest.raises(ImageError, match=r"raw photo|damaged"):
            read_photo(start)


def test_a_thumbnail_is_not_taken_for_the_photo(tmp_path: Path) -> None:
    # The first page is a reduced copy, the second the photo; then a file of a reduced copy alone.
    small, large = Image.new("RGB", (48, 48), RED), Image.new("RGB", (96, 96), GREEN)
    small.save(tmp_path / "two.tif", save_all=True, append_images=[large], tiffinfo={254: 1})
    content = bytearray((tmp_path / "two.tif").read_bytes())
    entry = struct.pack("<HHII", 254, 4, 1, 1)
    assert content.count(entry) >= 1
    second = content.rfind(entry)
    if second != content.find(entry):
        content[second : second + 12] = struct.pack("<HHII", 254, 4, 1, 0)
    photo = read_photo(bytes(content))
    assert tuple(photo.pixels[40, 40]) == GREEN
    small.save(tmp_path / "one.tif", tiffinfo={254: 1})
    with pytest.raises(ImageError, match="a small preview only; export the photo"):
        read_photo(tmp_path / "one.tif")


# Large photos.


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_a_jpeg_above_the_limit_is_reduced_with_a_warning(kind: str) -> None:
    image = four_corners((384, 256))
    content = io.BytesIO()
    more = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    image.save(content, kind, exif=exif_block(1), **more)
    whole = read_photo(content, max_pixels=384 * 256)
    assert (whole.reduction, whole.pixels.shape) == (1, (256, 384, 3))
    with pytest.warns(PhotoReduced, match=r"decoded at 1/2 of its size, 192 × 128; .*--max-megapixels"):
        photo = read_photo(content, max_pixels=384 * 256 - 1)
    assert (photo.reduction, photo.pixels.shape) == (2, (128, 192, 3))
    assert whole.focal_px is not None
    assert photo.focal_px == pytest.approx(whole.focal_px / 2)
    with pytest.raises(ImageError, match=r"384 x 256 pixels .*more than the limit"):
        read_photo(content, max_pixels=384 * 256 // 4 - 1)


def test_limits_above_pillows_own() -> None:
    # Pillow refuses 179 megapixels and more, unless a variable for the whole process is changed.
    limit = Image.MAX_IMAGE_PIXELS
    assert limit is not None
    content = io.BytesIO()
    Image.new("1", (20_000, 2 * limit // 20_000 + 1000)).save(content, "TIFF", compression="group4")
    with pytest.raises(ImageError, match=r"megapixels\), more than the limit of 64"):
        read_photo(content)
