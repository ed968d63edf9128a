"""Simulates what a camera, its image processing and a website do to an image."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from mien.lighting import LUMA
from mien.training.data.images import decode_image, encode_image
from mien.typing import Float, Tensor


def simulate_camera(rng: np.random.Generator, image: Float[Tensor, "3 S S"]) -> Float[Tensor, "3 S S"]:
    """The image after a random camera response and, each with a probability, blur, noise and JPEG compression.

    Args:
        rng: The only source of randomness.
        image: RGB in [0, 1], gamma-encoded.

    Returns:
        An image of the same size in [0, 1].
    """
    image = _respond(rng, image)
    size = image.shape[-1]
    if rng.random() < 0.35:
        small = max(int(size * rng.uniform(0.3, 0.9)), 8)
        shrunk = F.interpolate(image[None], size=(small, small), mode="bilinear", antialias=True, align_corners=False)
        image = F.interpolate(shrunk, size=(size, size), mode="bilinear", align_corners=False)[0]
    if rng.random() < 0.5:
        sigma = rng.uniform(0, 0.04)
        image = image + torch.from_numpy(rng.normal(0, sigma, image.shape).astype(np.float32))
    image = image.clamp(0, 1)
    return _compress(image, quality=int(rng.integers(25, 95))) if rng.random() < 0.5 else image


def _respond(rng: np.random.Generator, image: Float[Tensor, "3 S S"]) -> Float[Tensor, "3 S S"]:
    """Saturation (8 % of the images become grey), white balance, exposure, gamma, contrast and brightness."""
    luma = image.new_tensor(LUMA).view(3, 1, 1)
    grey = (image * luma).sum(0, keepdim=True)
    saturation = 0.0 if rng.random() < 0.08 else rng.uniform(0.6, 1.3)
    image = torch.lerp(grey.expand_as(image), image, float(saturation))
    balance = torch.from_numpy(rng.normal(1, 0.05, (3, 1, 1)).astype(np.float32))
    image = (image * balance * rng.uniform(0.75, 1.25)).clamp(0, 1) ** float(rng.uniform(0.7, 1.4))
    return ((image - 0.5) * rng.uniform(0.75, 1.2) + 0.5 + rng.uniform(-0.05, 0.05)).clamp(0, 1)


def _compress(image: Float[Tensor, "3 S S"], *, quality: int) -> Float[Tensor, "3 S S"]:
    return decode_image(encode_image(image.permute(1, 2, 0), "JPEG", quality=quality)).permute(2, 0, 1)
