"""Images in [0, 1] as JPEG or PNG files in memory."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from mien.io.pixels import to_uint8
from mien.typing import Float, Tensor


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
        OSError: The bytes are of another format or damaged.
    """
    with Image.open(io.BytesIO(data), formats=["JPEG", "PNG"]) as image:
        return torch.from_numpy(np.array(image)).float() / 255
