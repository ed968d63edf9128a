"""What a camera and its file format do to a picture."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from mien.io.pixels import to_uint8
from mien.lighting import LUMA
from mien.typing import Float, Tensor


def simulate_camera(rng: np.random.Generator, picture: Float[Tensor, "3 S S"]) -> Float[Tensor, "3 S S"]:
    """The picture as some camera, and some website after it, would keep it: response, blur, noise, grey, JPEG."""
    picture = _respond(rng, picture)
    size = picture.shape[-1]
    if rng.random() < 0.35:
        small = max(int(size * rng.uniform(0.3, 0.9)), 8)
        kept = F.interpolate(picture[None], size=(small, small), mode="bilinear", antialias=True, align_corners=False)
        picture = F.interpolate(kept, size=(size, size), mode="bilinear", align_corners=False)[0]
    if rng.random() < 0.5:
        sigma = rng.uniform(0, 0.04)
        picture = picture + torch.from_numpy(rng.normal(0, sigma, picture.shape).astype(np.float32))
    picture = picture.clamp(0, 1)
    return _compressed(picture, quality=int(rng.integers(25, 95))) if rng.random() < 0.5 else picture


def _respond(rng: np.random.Generator, picture: Float[Tensor, "3 S S"]) -> Float[Tensor, "3 S S"]:
    luma = picture.new_tensor(LUMA).view(3, 1, 1)
    grey = (picture * luma).sum(0, keepdim=True)
    saturation = 0.0 if rng.random() < 0.08 else rng.uniform(0.6, 1.3)
    picture = torch.lerp(grey.expand_as(picture), picture, float(saturation))
    balance = torch.from_numpy(rng.normal(1, 0.05, (3, 1, 1)).astype(np.float32))
    picture = (picture * balance * rng.uniform(0.75, 1.25)).clamp(0, 1) ** float(rng.uniform(0.7, 1.4))
    return ((picture - 0.5) * rng.uniform(0.75, 1.2) + 0.5 + rng.uniform(-0.05, 0.05)).clamp(0, 1)


def _compressed(picture: Float[Tensor, "3 S S"], *, quality: int) -> Float[Tensor, "3 S S"]:
    pixels = to_uint8(picture.permute(1, 2, 0))
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    decoded = np.array(Image.open(stream), dtype=np.float32)
    return torch.from_numpy(decoded).permute(2, 0, 1) / 255
