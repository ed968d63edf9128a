"""Pull-push filling of unknown texels (Gortler et al. 1996), and filters over squares of texels."""

from __future__ import annotations

import functools

import torch
from torch.nn import functional as F

from mien.typing import Float, Tensor


def pull_push(values: Float[Tensor, "B C S S"], weights: Float[Tensor, "#B 1 S S"]) -> Float[Tensor, "B C S S"]:
    """Continue a map smoothly from its known texels to the unknown ones.

    Each level of a pyramid averages the known ones of four texels. On the way back up, the unknown texels of a level
    are taken from the next coarser level.

    Args:
        values: Maps of any side.
        weights: 1 for known texels, 0 for unknown ones; values between blend.

    Returns:
        `values` where the weight is 1, their continuation where it is 0; zero if no texel is known. Differentiable in
        `values`.
    """
    if min(values.shape[-2:]) < 2:
        return values * weights / weights.clamp(min=1e-6)
    total = halved(weights)
    coarse = halved(values * weights) / total.clamp(min=1e-6)
    # A texel is known if one of its four texels is; otherwise thin borders would fade from level to level. Weights that
    # rounding makes negative would grow from level to level, too.
    coarse = pull_push(coarse, (4 * total).clamp(0, 1))
    up = F.interpolate(coarse, size=values.shape[-2:], mode="bilinear", align_corners=False)
    return weights * values + (1 - weights) * up


def halved(values: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
    """Means of 2 × 2 texels; of fewer in the last row and column of an odd side."""
    if values.shape[-1] % 2 or values.shape[-2] % 2:
        return F.avg_pool2d(values, 2, ceil_mode=True)
    rows = values[..., 0::2, :] + values[..., 1::2, :]  # at seven times the speed of `avg_pool2d`
    return (rows[..., 0::2] + rows[..., 1::2]) / 4


def largest(values: Float[Tensor, "B 1 S S"], *, radius: int) -> Float[Tensor, "B 1 S S"]:
    """Maximum over a square of 2 · radius + 1 texels."""
    padded = F.pad(values, (radius,) * 4, value=float("-inf"))
    return _running_maximum(_running_maximum(padded, 2 * radius + 1, dim=-2), 2 * radius + 1, dim=-1)


def box_mean(values: Float[Tensor, "B C H W"], *, radius: int) -> Float[Tensor, "B C H W"]:
    """Mean over a square of 2 · radius + 1 texels, of fewer at the border of the map."""
    for dim in (-2, -1):
        side = values.shape[dim]
        padding = (0, 0, radius, radius) if dim == -2 else (radius, radius)
        position = torch.arange(side, device=values.device)
        counts = 1 + position.clamp(max=radius) + position.flip(0).clamp(max=radius)
        summed = _running_sum(F.pad(values, padding), 2 * radius + 1, dim=dim)
        values = summed / (counts if dim == -1 else counts[:, None])
    return values


def _running_maximum(values: Float[Tensor, "B C H W"], count: int, *, dim: int) -> Float[Tensor, "B C h w"]:
    """Maximum of `count` successive values, by doubling: five passes for 27 values, where a pooling takes 27."""
    span = 1
    while span < count:
        step = min(span, count - span)
        values = torch.maximum(*_shifted(values, step, dim=dim))
        span += step
    return values


def _running_sum(values: Float[Tensor, "B C H W"], count: int, *, dim: int) -> Float[Tensor, "B C h w"]:
    """Sum of `count` successive values, from those of 1, 2, 4, … values."""
    length = values.shape[dim] - count + 1
    parts, start, span = [], 0, 1
    while start < count:
        if count & span:
            parts.append(values.narrow(dim, start, length))
            start += span
        if start < count:
            values, span = torch.add(*_shifted(values, span, dim=dim)), 2 * span
    return functools.reduce(torch.add, parts)


def _shifted(values: Float[Tensor, "B C H W"], step: int, *, dim: int) -> tuple[Tensor, Tensor]:
    """Each value, and the one `step` places after it."""
    length = values.shape[dim] - step
    return values.narrow(dim, 0, length), values.narrow(dim, step, length)


def dilated(values: Float[Tensor, "B 1 S S"], *, radius: int) -> Float[Tensor, "B 1 S S"]:
    """About the maximum over a square of 2 · radius + 1 texels, with soft borders; in blocks, which is fast."""
    block = max(radius // 4, 1)
    coarse = largest(F.max_pool2d(values, block, ceil_mode=True), radius=radius // block)
    return F.interpolate(coarse, scale_factor=block, mode="bilinear", align_corners=False)[
        ..., : values.shape[-2], : values.shape[-1]
    ]
