"""Differences of colour as people see them, and names for tones of skin."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch

from mien.typing import Float, Tensor

# sRGB to CIE XYZ under D65 and its white, IEC 61966-2-1; the rows sum to the white point.
_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)

ToneGroup = Literal["very light", "light", "intermediate", "tan", "brown", "dark"]
TONE_LIMITS_DEG = (55.0, 41.0, 28.0, 10.0, -30.0)
"""Individual typology angles between the groups, from very light down to dark."""


def lab_of(colours: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """CIELAB (D65, 2°) of sRGB-encoded colours in [0, 1]; differentiable inside."""
    linear = torch.where(colours <= 0.04045, colours / 12.92, ((colours.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)
    ratios = linear @ colours.new_tensor(_XYZ).mT / colours.new_tensor(_WHITE)
    root = torch.where(ratios > 0.008856, ratios.clamp(min=0.008856) ** (1 / 3), 7.787 * ratios + 16 / 116)
    x, y, z = root.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


def delta_e_2000(first: Float[Tensor, "*batch 3"], second: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
    """CIEDE2000 of CIELAB colours with kL = kC = kH = 1; 1 is about what an eye just sees.

    After Sharma, Wu and Dalal 2005; the numbers in the comments are those of its equations.
    """
    (l_1, a_1, b_1), (l_2, a_2, b_2) = first.unbind(-1), second.unbind(-1)
    chroma = (torch.hypot(a_1, b_1) + torch.hypot(a_2, b_2)) / 2  # 3
    stretch = 1 + 0.5 * (1 - _saturating(chroma))  # 4, as the factor of eq. 5
    c_1, c_2 = torch.hypot(stretch * a_1, b_1), torch.hypot(stretch * a_2, b_2)  # 6
    h_1, h_2 = _hue(stretch * a_1, b_1), _hue(stretch * a_2, b_2)  # 7
    grey = c_1 * c_2 == 0
    turn = torch.where(grey, torch.zeros_like(h_1), _shorter_turn(h_2 - h_1))  # 10
    d_l, d_c = l_2 - l_1, c_2 - c_1  # 8, 9
    d_h = 2 * (c_1 * c_2).sqrt() * (turn / 2).sin()  # 11
    lightness, chroma = (l_1 + l_2) / 2, (c_1 + c_2) / 2  # 12, 13
    hue = torch.where(grey, h_1 + h_2, _mean_hue(h_1, h_2))  # 14
    tint = (
        1
        - 0.17 * (hue - math.radians(30)).cos()
        + 0.24 * (2 * hue).cos()
        + 0.32 * (3 * hue + math.radians(6)).cos()
        - 0.20 * (4 * hue - math.radians(63)).cos()
    )  # 15
    s_l = 1 + 0.015 * (lightness - 50) ** 2 / (20 + (lightness - 50) ** 2).sqrt()  # 18
    s_c, s_h = 1 + 0.045 * chroma, 1 + 0.015 * chroma * tint  # 19, 20
    blue = math.radians(30) * (-(((hue.rad2deg() - 275) / 25) ** 2)).exp()  # 16
    rotation = -(2 * blue).sin() * 2 * _saturating(chroma)  # 17, 21
    parts = d_l / s_l, d_c / s_c, d_h / s_h
    return (sum((p**2 for p in parts[1:]), parts[0] ** 2) + rotation * parts[1] * parts[2]).clamp(min=0).sqrt()  # 22


def _saturating(chroma: Tensor) -> Tensor:
    return (chroma**7 / (chroma**7 + 25.0**7)).sqrt()


def _hue(a: Tensor, b: Tensor) -> Tensor:
    """In [0, 2π); 0 for grey."""
    angle = torch.atan2(b, a)
    return torch.where(angle < 0, angle + 2 * math.pi, angle)


def _shorter_turn(turn: Tensor) -> Tensor:
    turn = torch.where(turn > math.pi, turn - 2 * math.pi, turn)
    return torch.where(turn < -math.pi, turn + 2 * math.pi, turn)


def _mean_hue(first: Tensor, second: Tensor) -> Tensor:
    """The middle of the shorter way from one hue to the other."""
    middle = (first + second) / 2
    around = torch.where(first + second < 2 * math.pi, middle + math.pi, middle - math.pi)
    return torch.where((first - second).abs() > math.pi, around, middle)


def typology_angle_deg(lab: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
    """The individual typology angle of a skin, atan((L* − 50) / b*), in degrees (Chardon et al. 1991).

    It is defined under a known light. Off a photograph it says how light the skin appears there.
    """
    return torch.atan2(lab[..., 0] - 50, lab[..., 2]).rad2deg()


def tone_group(angle_deg: float) -> ToneGroup:
    """The group of a typology angle, with the usual limits (Chardon et al. 1991; Del Bino and Bernerd 2013)."""
    return get_args(ToneGroup)[sum(angle_deg <= limit for limit in TONE_LIMITS_DEG)]
