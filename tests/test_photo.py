from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from mien.errors import ImageError
from mien.io.photo import read_photo
from mien.io.photo_files import find_photos
from mien.io.source import open_photo


def colour_image(size: tuple[int, int] = (80, 60)) -> Image.Image:
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp", ".jpg"])
def test_reads_every_format_on_the_list(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {"quality": 95} if suffix == ".jpg" else {}
    colour_image().save(path, **options)
    photo = read_photo(path)
    assert photo.pixels.shape == (60, 80, 3)
    assert photo.pixels.dtype == np.uint8
    assert photo.focal_px is None
    tolerance = 20 if suffix == ".jpg" else 0  # chroma subsampling at the steepest place: 14
    assert np.abs(photo.pixels.astype(int) - np.asarray(colour_image())).max() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    # The corner that holds red, the stored picture being 80 wide and 60 high with red in its top-left corner.
    corners = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    image = Image.new("RGB", (80, 60))
    image.paste((255, 0, 0), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    pixels = read_photo(tmp_path / "a.png").pixels
    assert pixels.shape[:2] == ((60, 80) if orientation < 5 else (80, 60))
    assert tuple(pixels[corners[orientation]]) == (255, 0, 0)


def test_grey_palette_cmyk_and_bilevel_become_rgb(tmp_path: Path) -> None:
    for mode, suffix in [
        ("L", "png"),
        ("P", "png"),
        ("1", "png"),
        ("CMYK", "jpg"),
        ("CMYK", "tif"),
        ("LAB", "tif"),
    ]:
        path = tmp_path / f"{mode}.{suffix}"
        if mode == "LAB":
            lab = ImageCms.profileToProfile(
                colour_image(),
                ImageCms.createProfile("sRGB"),
                ImageCms.createProfile("LAB"),
                outputMode="LAB",
            )
            assert lab is not None
            lab.save(path)
        else:
            colour_image().convert(mode).save(path)
        pixels = read_photo(path).pixels
        assert pixels.shape == (60, 80, 3)
        assert pixels.std() > 20


def test_sixteen_bit_grey_keeps_its_scale(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 80 * 60).reshape(60, 80).astype(np.uint16)
    for suffix in ("png", "tif"):
        Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
        pixels = read_photo(tmp_path / f"a.{suffix}").pixels
        assert np.abs(pixels[..., 0].astype(float) - ramp / 257).max() <= 0.5


def test_sixteen_bit_colour_png(tmp_path: Path) -> None:
    rgb = np.stack([np.full((40, 40), value, np.uint16) for value in (65535, 32896, 0)], axis=-1)
    (tmp_path / "a.png").write_bytes(png_bytes(rgb))
    assert tuple(read_photo(tmp_path / "a.png").pixels[5, 5]) == (255, 128, 0)


def test_float_pictures(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 40), 0.5, np.float32)).save(tmp_path / "unit.tif")
    assert read_photo(tmp_path / "unit.tif").pixels[0, 0, 0] == 128
    Image.fromarray(np.full((40, 40), np.nan, np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(ImageError, match="unknown scale"):
        read_photo(tmp_path / "nan.tif")


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[:, 20:, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    pixels = read_photo(tmp_path / "a.png").pixels
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 39].tolist() == [0, 0, 0]
    palette = Image.fromarray(rgba[..., 3] // 255).convert("P")
    palette.save(tmp_path / "p.png", transparency=0)
    assert read_photo(tmp_path / "p.png").pixels[0, 0].tolist() == [255, 255, 255]


def test_colour_profile_is_applied_and_a_broken_one_ignored(tmp_path: Path) -> None:
    # A profile whose red and blue are exchanged: sRGB's own with the tag names of the two swapped.
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")
    image = Image.new("RGB", (40, 40), (200, 10, 10))
    image.save(tmp_path / "a.png", icc_profile=swapped)
    red, _, blue = read_photo(tmp_path / "a.png").pixels[0, 0]
    assert blue > 150 > red
    image.save(tmp_path / "b.png", icc_profile=b"not a profile")
    assert read_photo(tmp_path / "b.png").pixels[0, 0].tolist() == [200, 10, 10]


def focal_of(tmp_path: Path, tags: dict[int, object], size: tuple[int, int] = (360, 240)) -> float | None:
    exif = Image.Exif()
    exif.get_ifd(0x8769).update(tags)
    Image.new("RGB", size).save(tmp_path / "a.jpg", exif=exif)
    return read_photo(tmp_path / "a.jpg").focal_px


def rational(value: float) -> TiffImagePlugin.IFDRational:
    return TiffImagePlugin.IFDRational(round(value * 1000), 1000)


def test_focal_length_from_exif(tmp_path: Path) -> None:
    assert focal_of(tmp_path, {0xA405: 50}) == pytest.approx(500)
    # 50 mm on a sensor of 10 pixels a millimetre, stated per inch and per centimetre
    assert focal_of(tmp_path, {0x920A: rational(50), 0xA20E: rational(254), 0xA210: 2}) == pytest.approx(500)
    assert focal_of(tmp_path, {0x920A: rational(50), 0xA20E: rational(100), 0xA210: 3}) == pytest.approx(500)
    # the same, resized to half since
    resized = {0x920A: rational(50), 0xA20E: rational(254), 0xA002: 720, 0xA003: 480}
    assert focal_of(tmp_path, resized) == pytest.approx(250)
    # turned since
    assert focal_of(tmp_path, {0xA405: 50, 0xA002: 240, 0xA003: 360}) == pytest.approx(500)


# The 35 mm equivalent is defined by the diagonal: a full frame has 43.27 mm of it, whatever the photo's aspect ratio.
@pytest.mark.parametrize(
    ("size", "diagonal_px"),
    [
        ((360, 240), 432.67),
        ((240, 360), 432.67),  # portrait
        ((400, 300), 500.0),  # 4:3, as phones take
        ((300, 400), 500.0),
        ((300, 300), 424.26),  # square
        ((320, 180), 367.15),  # 16:9
    ],
)
def test_focal_length_of_the_35_mm_equivalent_goes_by_the_diagonal(
    tmp_path: Path, size: tuple[int, int], diagonal_px: float
) -> None:
    assert focal_of(tmp_path, {0xA405: 28}, size) == pytest.approx(28 / 43.2666 * diagonal_px, rel=1e-4)


@pytest.mark.parametrize(("size", "focal_px"), [((400, 300), 500.0), ((300, 400), 500.0), ((200, 150), 250.0)])
def test_focal_length_of_a_phone_photo_from_the_sensors_resolution(
    tmp_path: Path, size: tuple[int, int], focal_px: float
) -> None:
    # 5 mm on a sensor of 100 pixels per millimetre and 400 × 300 pixels, stored upright or turned, or resized to half.
    tags = {0x920A: rational(5), 0xA20E: rational(2540), 0xA210: 2, 0xA002: 400, 0xA003: 300}
    assert focal_of(tmp_path, tags, size) == pytest.approx(focal_px)


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {0xA405: 0},
        {0xA405: 1},
        {0x920A: TiffImagePlugin.IFDRational(50, 0), 0xA20E: rational(254)},
        {0x920A: rational(50)},
        {0xA405: 50, 0xA002: 500, 0xA003: 240},  # cropped
        {0xA405: "fifty"},
        {0x920A: rational(50), 0xA20E: rational(254000)},
    ],
)
def test_a_missing_or_wrong_focal_length_is_none(tmp_path: Path, tags: dict[int, object]) -> None:
    assert focal_of(tmp_path, tags) is None


def png_bytes(pixels: np.ndarray, declared: tuple[int, int] | None = None) -> bytes:
    """A PNG with 16 bits a channel, which Pillow cannot write, or one whose header lies about its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    width, height = declared or (width, height)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def refused_files(folder: Path) -> dict[str, tuple[Path, str]]:
    def write(name: str, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    jpeg = io.BytesIO()
    colour_image((400, 400)).save(jpeg, "JPEG")
    gif = io.BytesIO()
    frames = [Image.new("P", (64, 64), index) for index in range(3)]
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
    webp = io.BytesIO()
    colours = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    colours[0].save(webp, "WEBP", save_all=True, append_images=colours[1:])
    pixel = io.BytesIO()
    Image.new("RGB", (1, 1)).save(pixel, "PNG")
    tiny = np.zeros((1, 1, 3), np.uint16)
    (folder / "folder.jpg").mkdir()
    return {
        "missing": (folder / "nowhere.jpg", "no such file"),
        "folder": (folder / "folder.jpg", "is a folder"),
        "empty": (write("empty.jpg", b""), "zero bytes"),
        "text": (write("text.jpg", b"Dear diary, today I took no photo."), "holds text"),
        "noise": (write("noise.jpg", bytes(range(255, 0, -1))), "known format"),
        "truncated": (write("cut.jpg", jpeg.getvalue()[:2000]), "damaged or cut off"),
        "gif": (write("moving.gif", gif.getvalue()), "GIF is not supported"),
        "animated webp": (write("moving.webp", webp.getvalue()), "animation of 2 frames"),
        "heic": (write("phone.heic", b"\0\0\0\x18ftypheic" + bytes(40)), "damaged or cut off"),
        "pdf": (write("scan.pdf", b"%PDF-1.7\n"), "a PDF"),
        "1x1": (write("pixel.png", pixel.getvalue()), "too small"),
        "100 MP": (write("huge.png", png_bytes(tiny, (10_000, 10_000))), "100 megapixels.*resize"),
        "400 MP": (write("vast.png", png_bytes(tiny, (20_000, 20_000))), "400 megapixels.*resize"),
    }


def test_bad_input_is_an_image_error_that_names_the_file(tmp_path: Path) -> None:
    for name, (path, message) in refused_files(tmp_path).items():
        with pytest.raises(ImageError, match=message) as caught:
            read_photo(path)
        assert str(path) in str(caught.value), name
        assert "\n" not in str(caught.value), name


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_read_or_refused_but_never_crash(tmp_path: Path, data: st.DataObject) -> None:
    image_format = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "BMP"]))
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0xA405] = 50
    colour_image((48, 48)).save(buffer, image_format, **({} if image_format == "BMP" else {"exif": exif}))
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(len(content) // 2, len(content))) :]
    path = tmp_path / "damaged"
    path.write_bytes(bytes(content))
    try:
        assert read_photo(path).pixels.shape[2] == 3
    except ImageError as error:
        assert str(path) in str(error)


class Pipe(io.RawIOBase):
    """A stream that cannot be rewound, like standard input."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:
        return self._content.readinto(buffer)


def test_bytes_open_files_and_pipes_are_read_like_files(tmp_path: Path) -> None:
    colour_image().save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    photo = read_photo(content, name="upload.png")
    assert photo.path == Path("upload.png")
    assert np.array_equal(photo.pixels, np.asarray(colour_image()))
    assert read_photo(content).path == Path("photo")
    with (tmp_path / "a.png").open("rb") as file:
        file.read(100)  # an open file is read from its start
        with open_photo(file, None) as (opened, _):
            assert opened.read(4) == b"\x89PNG"
        assert np.array_equal(read_photo(file).pixels, photo.pixels)
        assert read_photo(file).path == tmp_path / "a.png"
        assert not file.closed
    assert np.array_equal(read_photo(io.BufferedReader(Pipe(content))).pixels, photo.pixels)
    assert read_photo(tmp_path / "a.png", name="b").path == Path("b")


def test_errors_about_streams_name_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match=r"^standard input: .*holds text"):
        read_photo(b"Dear diary, today I took no photo.", name="standard input")
    with pytest.raises(ImageError, match=r"^photo: empty"):
        read_photo(io.BytesIO())
    with pytest.raises(ImageError, match=r"^b: empty"):
        read_photo(b"", name="b")
    closed = io.BytesIO(b"x")
    closed.close()
    with pytest.raises(ImageError, match=r"photo: cannot be read .*closed"):
        read_photo(closed)
    monkeypatch.setattr("mien.io.source.MAX_STREAM_BYTES", 1 << 20)
    endless = Pipe(bytes(3 << 20))
    with pytest.raises(ImageError, match="more than 1 MiB"):
        read_photo(io.BufferedReader(endless))
    assert endless._content.tell() < 2 << 20  # not read to its end


def test_find_photos_in_folders(tmp_path: Path) -> None:
    for name in (
        "b.JPG",
        "a.png",
        "deep/c.webp",
        "notes.txt",
        ".hidden.jpg",
        ".cache/d.jpg",
        "out/a/overlay.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = find_photos([tmp_path], skip=tmp_path / "out")
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.png", "b.JPG", "deep/c.webp"]
    given = [tmp_path / "notes.txt", tmp_path / "a.png", tmp_path, tmp_path / "gone.jpg"]
    names = [path.name for path in find_photos(given, skip=tmp_path / "out")]
    assert names == ["notes.txt", "a.png", "b.JPG", "c.webp", "gone.jpg"]


def test_a_folder_without_photos_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no photos in this folder"):
        find_photos([tmp_path])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_strips_of_a_photo_come_together_upright(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int
) -> None:
    monkeypatch.setattr("mien.io.decoding._STRIP_PIXELS", 500)  # seven rows, and a last strip of one
    noise = np.random.default_rng(0).integers(256, 65536, (50, 70), dtype=np.uint16)
    exif, colour, deep = Image.Exif(), tmp_path / "colour.png", tmp_path / "deep.png"
    exif[0x0112] = orientation
    Image.fromarray(noise.view(np.uint8).reshape(50, 70, 2)[..., [0, 1, 1]]).save(colour, exif=exif)
    Image.fromarray(noise).save(deep, exif=exif)
    with Image.open(colour) as image:
        assert np.array_equal(read_photo(colour).pixels, np.asarray(ImageOps.exif_transpose(image)))
    with Image.open(deep) as image:
        expected = np.rint(np.asarray(ImageOps.exif_transpose(image)) / 257)
        assert np.array_equal(read_photo(deep).pixels[..., 0], expected)
