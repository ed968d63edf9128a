"""Pull-push filling of unknown texels (Gortler et al. 1996), and dilation."""

from __future__ import annotations

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
    total = _halved(weights)
    coarse = _halved(values * weights) / total.clamp(min=1e-6)
    # A texel is known if one of its four texels is; otherwise thin borders would fade from level to level.
    coarse = pull_push(coarse, (4 * total).clamp(max=1))
    up = F.interpolate(coarse, size=values.shape[-2:], mode="bilinear", align_corners=False)
    return weights * values + (1 - weights) * up


def _halved(values: Float[Tensor, "B C S S"]) -> Float[Tensor, "B C s s"]:
    """Means of 2 × 2 texels; of fewer in the last row and column of an odd side."""
    return F.avg_pool2d(values, 2, ceil_mode=True)


def largest(values: Float[Tensor, "B 1 S S"], *, radius: int) -> Float[Tensor, "B 1 S S"]:
    """Maximum over a square of 2 · radius + 1 texels."""
    down = F.max_pool2d(values, (2 * radius + 1, 1), stride=1, padding=(radius, 0))
    return F.max_pool2d(down, (1, 2 * radius + 1), stride=1, padding=(0, radius))


def dilated(values: Float[Tensor, "B 1 S S"], *, radius: int) -> Float[Tensor, "B 1 S S"]:
    """About the maximum over a square of 2 · radius + 1 texels, with soft borders; in blocks, which is fast."""
    block = max(radius // 4, 1)
    coarse = largest(F.max_pool2d(values, block, ceil_mode=True), radius=radius // block)
    return F.interpolate(coarse, scale_factor=block, mode="bilinear", align_corners=False)[
        ..., : values.shape[-2], : values.shape[-1]
    ]
