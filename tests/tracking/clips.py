"""Small clips of the astronaut."""

from __future__ import annotations

import numpy as np

from tests.astronaut import astronaut

SIZE = (320, 240)
"""Width and height of the frames."""


def clip(count: int, *, step_px: float = 2.0, first: int = 0) -> list[np.ndarray]:
    """The astronaut in a small frame that pans: the face moves to the left."""
    photo = astronaut()
    shifts = [round(60 + step_px * k) for k in range(first, first + count)]
    return [np.ascontiguousarray(photo[20 : 20 + SIZE[1], shift : shift + SIZE[0]]) for shift in shifts]
