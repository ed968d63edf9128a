"""sRGB's transfer function, IEC 61966-2-1, on tensors."""

from __future__ import annotations

import torch

from mien.typing import Float, Tensor


def encode_srgb(linear: Float[Tensor, "*s 3"]) -> Float[Tensor, "*s 3"]:
    """Linear light to encoded colours, clamped to [0, 1]."""
    linear = linear.clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=1e-6) ** (1 / 2.4) - 0.055)


def decode_srgb(encoded: Float[Tensor, "*s 3"]) -> Float[Tensor, "*s 3"]:
    """Encoded colours, clamped to [0, 1], to linear light."""
    encoded = encoded.clamp(0, 1)
    return torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
