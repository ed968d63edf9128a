"""Memory that reading takes: bounded by what the header says, and by the table of docs/security.md."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mien.errors import FormatError
from mien.io.result_folder import _read_map
from mien.training.data.images import decode_image
from mien.training.data.store import FaceRecord, decode_record, encode_record

SIDE = 2400
BYTES_PER_PIXEL = {
    "rgb.jpg": 8, "turned.jpg": 8, "progressive.jpg": 11, "rgb.png": 8, "grey16.png": 8, "transparent.png": 8,
    "palette.png": 8, "rgb.webp": 17, "rgb.tif": 8, "turned.tif": 8, "float.tif": 8,
}  # fmt: skip
MEASURE = """
import json, sys
from pathlib import Path
from mien.io.photo import read_photo


def memory(key):
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith(key)).split()[1])


folder, found = Path(sys.argv[1]), {}
read_photo(folder / "small.png")
for name in sys.argv[2:]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    start = memory("VmRSS")
    read_photo(folder / name)
    found[name] = memory("VmHWM") - start
print(json.dumps(found))
"""


def write_photos(folder: Path) -> None:
    small = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    rgb = Image.fromarray(small).resize((SIDE, SIDE - 100))
    grey = np.asarray(rgb.convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "rgb.jpg")
    rgb.save(folder / "turned.jpg", exif=exif)
    rgb.save(folder / "progressive.jpg", progressive=True, subsampling=0)
    rgb.save(folder / "rgb.png", compress_level=1)
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "grey16.png", compress_level=1)
    transparent = rgb.copy()
    transparent.putalpha(Image.fromarray(grey))
    transparent.save(folder / "transparent.png", compress_level=1)
    rgb.quantize(16).save(folder / "palette.png", transparency=3, compress_level=1)
    rgb.save(folder / "rgb.webp", quality=50, method=0)
    rgb.save(folder / "rgb.tif")
    rgb.save(folder / "turned.tif", exif=exif)
    Image.fromarray(grey.astype(np.float32) / 255).save(folder / "float.tif")
    Image.fromarray(small).save(folder / "small.png")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process cannot measure one peak after another")
def test_decoding_takes_the_memory_that_the_docs_say(tmp_path: Path) -> None:
    write_photos(tmp_path)
    command = [sys.executable, "-c", MEASURE, str(tmp_path), *BYTES_PER_PIXEL]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    taken = {name: peak / (SIDE * (SIDE - 100)) for name, peak in json.loads(done.stdout).items()}
    assert {name: peak for name, peak in taken.items() if peak > BYTES_PER_PIXEL[name] + 0.5} == {}


def huge_png(side: int, mode: str = "L") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (side, side)).save(stream, "PNG")
    return stream.getvalue()


def peak_bytes(call: object) -> int:
    tracemalloc.start()
    try:
        with pytest.raises((FormatError, ValueError)):
            call()  # pyright: ignore[reportCallIssue]
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_small_file_of_a_huge_map_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """Of a megapixel count that Pillow warns about, too."""
    path = tmp_path / "texture.png"
    for side in (4096, 10_000):
        path.write_bytes(huge_png(side, "RGB"))
        assert peak_bytes(lambda: _read_map(path, channels=3)) < 5e6
    path.write_bytes(huge_png(1024, "RGB"))
    assert _read_map(path, channels=3).shape == (1024, 1024, 3)


def test_a_store_record_with_a_huge_mask_is_refused_before_it_is_decoded() -> None:
    points = torch.zeros(536, 2)
    crop = torch.zeros(3, 8, 8)
    record = FaceRecord(crop, crop[0], points[:68], points[68:], focal_px=1.0, centre_px=(0.0, 0.0), exposure=1.0)
    data = encode_record("k", record, notes={})
    assert decode_record(data).mask.shape == (8, 8)
    huge = huge_png(13_000)
    assert peak_bytes(lambda: decode_image(huge)) < 5e6
    with pytest.raises(ValueError, match="13000 x 13000 pixels, more than 2048 on a side"):
        decode_image(huge)
