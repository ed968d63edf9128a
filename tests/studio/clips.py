"""Photos and a video for the checks in the browser, made of the packaged example.

Usage: python -m tests.studio.clips photos LARGER EMPTY | video FILE | track < tracking.npz
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

RATE, FRAMES = 12.5, 15
_SIDE = 256
_MOUTH = 0.24
"""Height of the middle of the mouth in the example, as a share of its own."""


def example() -> Image.Image:
    """The packaged photo."""
    with Image.open(str(files("mien.studio").joinpath("static/examples/astronaut.jpg"))) as photo:
        return photo.convert("RGB")


def write_photos(larger: Path, empty: Path) -> None:
    """Write the example cut to its face, and a photo without a face."""
    photo = example()
    width, height = photo.size
    photo.crop((width // 5, 0, width * 4 // 5, height * 3 // 5)).resize((480, 480)).save(larger)
    Image.new("RGB", (320, 240), (120, 130, 140)).save(empty)


def write_video(path: Path) -> None:
    """Write a face whose lower part is stretched and released, so that the mouth seems to open."""
    from mien.io.video import VideoWriter

    photo = example()
    width, height = photo.size
    face = photo.crop((width // 5, 0, width * 4 // 5, height * 3 // 5)).resize((_SIDE, _SIDE))
    pixels = np.asarray(face)
    mouth = round(_MOUTH / 0.6 * _SIDE)
    with VideoWriter(path, size=face.size, rate=RATE) as writer:
        for k in range(FRAMES):
            stretch = 1 + 0.25 * np.sin(np.pi * k / (FRAMES - 1))
            rows = np.arange(_SIDE, dtype=float)
            rows[mouth:] = mouth + (rows[mouth:] - mouth) / stretch
            writer.add(np.ascontiguousarray(pixels[rows.round().astype(int)]), k / RATE)


def track_as_json(content: bytes) -> str:
    """Times, names and strengths of a tracking.npz."""
    from mien.tracking import Track

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tracking.npz"
        file.write_bytes(content)
        track = Track.load(file)
    found = {"times": track.times_s, "expression": track.expression}
    return json.dumps({"names": track.expression_names, **{name: array.tolist() for name, array in found.items()}})


def main(what: str, *places: str) -> None:
    """Do what the command line says."""
    match what:
        case "photos":
            write_photos(Path(places[0]), Path(places[1]))
        case "video":
            write_video(Path(places[0]))
        case "track":
            print(track_as_json(sys.stdin.buffer.read()))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
