from __future__ import annotations

import numpy as np
import torch

from mien.io.pixels import to_uint8


def test_colours_are_clamped_and_rounded_to_the_nearest_level() -> None:
    values = [-0.2, 0.0, 0.49 / 255, 0.51 / 255, 0.5, 254.6 / 255, 1.0, 1.7]
    levels = [0, 0, 0, 1, 128, 255, 255, 255]
    assert to_uint8(np.array(values, np.float32)).tolist() == levels
    assert to_uint8(torch.tensor(values).requires_grad_()).tolist() == levels
    assert to_uint8(torch.zeros(2, 3, 4)).shape == (2, 3, 4)
