"""Images in [0, 1] as JPEG or PNG files in memory."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from mien.io.pixels import to_uint8
from mien.typing import Float, Tensor

MAX_SIDE = 4096
"""Longest side of an image that is decoded, pixels."""


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
        ValueError: A side is longer than `MAX_SIDE`.
    """
    with Image.open(io.BytesIO(data), formats=["JPEG", "PNG"]) as image:
        if max(image.size) > MAX_SIDE:
            raise ValueError(f"an image of {image.size[0]} x {image.size[1]} pixels; expected a side up to {MAX_SIDE}")
        return torch.from_numpy(np.array(image)).float() / 255
