"""Colours in [0, 1] as 8-bit pixels."""

from __future__ import annotations

import numpy as np

from mien.typing import Float, Tensor, UInt8


def to_uint8(values: Float[np.ndarray, "*s"] | Float[Tensor, "*s"]) -> UInt8[np.ndarray, "*s"]:
    """Clamp to [0, 1] and round to 8 bits.

    Args:
        values: Encoded colours, of any shape; a tensor may be on any device.

    Returns:
        A NumPy array of the same shape.
    """
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return np.rint(array.clip(0, 1) * 255).astype(np.uint8)
