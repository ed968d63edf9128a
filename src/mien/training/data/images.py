"""Images in [0, 1] as JPEG or PNG files in memory."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from mien.io.formats import open_image
from mien.io.pixels import to_uint8
from mien.typing import Float, Tensor

MAX_SIDE = 2048
"""Largest side of a stored picture, pixels; crops have 280. A small file could claim a picture of any size."""
_PNG_SIGNATURE = b"\x89PNG"


def encode_image(image: Float[Tensor, "H W *C"], kind: str, **options: int) -> bytes:
    """The bytes of an image file.

    Args:
        image: Values in [0, 1], grey (H, W) or RGB (H, W, 3).
        kind: "JPEG" or "PNG".
        options: Passed to Pillow, e.g. `quality=92`.
    """
    stream = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(stream, kind, **options)
    return stream.getvalue()


def decode_image(data: bytes) -> Float[Tensor, "H W *C"]:
    """The image of a JPEG or PNG file, in [0, 1].

    Raises:
        ValueError: The bytes are of another format, damaged, or of a picture larger than any store has.
    """
    image_format = "PNG" if data.startswith(_PNG_SIGNATURE) else "JPEG"
    try:
        with open_image(io.BytesIO(data), image_format) as image:
            if max(image.size) > MAX_SIDE:
                raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_SIDE} on a side")
            return torch.from_numpy(np.array(image)).float() / 255
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise ValueError(f"a picture cannot be read: {error}") from error
