"""A picture of the heads of many people: photo, three quarters, side, and a smile.

Usage: python examples/08_heads.py PICTURE.jpg PHOTO [PHOTO …]

docs/images/people.jpg is made of six portraits and two more of the Face Research Lab London Set, see docs/head.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import mien

# isort: split
import numpy as np
import torch
from PIL import Image

from mien.export.contact_sheet import PAPER, SheetLayout, contact_sheet, in_rows
from mien.export.head_painter import HeadPainter

SIDE = 208
PEOPLE_PER_ROW = 2
SMILE = {"mouthSmileLeft": 0.7, "mouthSmileRight": 0.7, "cheekSquintLeft": 0.4, "cheekSquintRight": 0.4}


def portrait(photo: mien.Photo, face: mien.Reconstruction) -> np.ndarray:
    """The face with its hair and neck, cut out of the photo."""
    low, high = face.xy.min(0), face.xy.max(0)
    centre, half = (low + high) / 2, 0.68 * (high - low).max()
    half = min(half, *centre, *(np.array(face.image_size) - centre))
    (left, top), (right, bottom) = np.round(centre - half).tolist(), np.round(centre + half).tolist()
    return np.asarray(
        Image.fromarray(photo.pixels).crop((left, top, right, bottom)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    )


def pictures(photo: mien.Photo, reconstructor: mien.Reconstructor) -> list[np.ndarray]:
    face = reconstructor(photo)[0]
    head, names = HeadPainter(face, reconstructor.model), reconstructor.model.expression_names
    smile = torch.tensor([SMILE.get(name, 0.0) for name in names])
    return [
        portrait(photo, face),
        head.picture(yaw_deg=-35.0, side_px=SIDE),
        head.picture(yaw_deg=-90.0, side_px=SIDE),
        head.picture(yaw_deg=25.0, side_px=SIDE, expression=smile),
    ]


def main(out: str, *photos: str) -> None:
    reconstructor = mien.Reconstructor()
    cells = [cell for path in photos for cell in pictures(mien.read_photo(path), reconstructor)]
    sheet = contact_sheet(in_rows(cells, 4 * PEOPLE_PER_ROW), SheetLayout(gap=4, background=PAPER))
    Image.fromarray(sheet).save(Path(out), quality=88, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
