"""The contact sheet of a store of photos."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from mien.export.contact_sheet import SheetLayout, contact_sheet, in_rows
from mien.io.pixels import to_uint8
from mien.training.data.store import FaceStore
from mien.typing import UInt8

CONTACT_FACES, CONTACT_SIDE, CONTACT_COLUMNS = 48, 112, 8


def store_sheet(store: FaceStore) -> UInt8[np.ndarray, "H W 3"]:
    """Up to 48 faces, evenly spread over a store, with their 68 landmarks; pixels that are not skin are dimmed."""
    chosen = np.unique(np.linspace(0, len(store) - 1, min(CONTACT_FACES, len(store))).round().astype(int))
    images = []
    for number in chosen:
        record = store[int(number)]
        shown = record.crop * (0.45 + 0.55 * record.mask)
        image = Image.fromarray(to_uint8(shown.permute(1, 2, 0)))
        draw = ImageDraw.Draw(image)
        for x, y in record.landmarks68_px.tolist():
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(80, 255, 120))
        images.append(np.asarray(image.resize((CONTACT_SIDE, CONTACT_SIDE), Image.Resampling.LANCZOS)))
    return contact_sheet(in_rows(images, CONTACT_COLUMNS), SheetLayout(), columns=CONTACT_COLUMNS)
