"""Pull-push filling of unknown texels."""

from __future__ import annotations

from torch.nn import functional as F

from mien.typing import Float, Tensor


def _pull_push(maps: Float[Tensor, "B C S S"], weights: Float[Tensor, "1 1 S S"]) -> Float[Tensor, "B C S S"]:
    """`maps` where the weight is 1, smooth continuations of it where it is 0; maps come multiplied by weights."""
    size = maps.shape[-1]
    known = maps / weights.clamp(min=1e-6)
    if size == 1:
        return known
    halved = (F.avg_pool2d(m, 2, ceil_mode=True) for m in (maps, weights))
    coarse, coarse_weights = halved
    share = coarse_weights.clamp(max=1.0).sign()
    beyond = _pull_push(coarse / coarse_weights.clamp(min=1e-6) * share, share)
    beyond = F.interpolate(beyond, size=(size, size), mode="bilinear", align_corners=False)
    return weights * known + (1 - weights) * beyond


def extended(values: Float[Tensor, "B C S S"], weights: Float[Tensor, "B 1 S S"]) -> Float[Tensor, "B C S S"]:
    """Values where their weight is 1, smoothly continued to where it is 0 (pull-push, Gortler et al. 1996).

    Each level of a pyramid averages what is known in four texels; going back up, what a level does not know comes
    from the coarser one.
    """
    if min(values.shape[-2:]) < 2:
        return values * weights / weights.clamp(min=1e-6)
    total = _halved(weights)
    coarse = _halved(values * weights) / total.clamp(min=1e-6)
    # A texel is known as soon as one of its four is: otherwise thin borders would fade from level to level.
    coarse = extended(coarse, (4 * total).clamp(max=1))
    up = F.interpolate(coarse, size=values.shape[-2:], mode="bilinear", align_corners=False)
    return weights * values + (1 - weights) * up


def _halved(values: Float[Tensor, "B C S S"]) -> Float[Tensor, "B C s s"]:
    """Means of two by two texels; of fewer at the last row and column of an odd side."""
    return F.avg_pool2d(values, 2, ceil_mode=True, count_include_pad=False)
