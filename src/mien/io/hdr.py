"""Pictures of high dynamic range as 8-bit sRGB: the transfer functions of BT.2100, and a tone curve."""

from __future__ import annotations

import functools

import numpy as np

from mien.typing import Float, UInt8, UInt16

PQ, HLG = 16, 18
"""Transfer functions by their numbers in ITU-T H.273: SMPTE ST 2084 and ARIB STD-B67."""
REFERENCE_WHITE_NITS = 203.0
"""Luminance of diffuse white in HDR programmes, ITU-R BT.2408; it becomes nearly white here."""
_HLG_PEAK_NITS, _HLG_GAMMA = 1000.0, 1.2
_KNEE = 0.5
"""Share of the reference white below which luminance is kept. Brighter parts are compressed by an exponential."""
_FROM_BT2020 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
"""From linear light in BT.2020's primaries to that in BT.709's, ITU-R BT.2087."""
_STEPS = 4096


def hdr_to_srgb(pixels: UInt16[np.ndarray, "H W 3"], *, transfer: int) -> UInt8[np.ndarray, "H W 3"]:
    """Convert a picture of BT.2100, full range.

    Args:
        pixels: Encoded RGB in BT.2020's primaries.
        transfer: PQ or HLG.

    Returns:
        sRGB; colours beyond its gamut are clipped.
    """
    linear = _linear_light(transfer)[pixels] @ _FROM_BT2020.T
    # The table is spaced by square roots, as the eye sees steps.
    places = np.sqrt(np.clip(linear, 0, _brightest())) * ((_STEPS - 1) / np.sqrt(_brightest()))
    return _encoded()[(places + 0.5).astype(np.uint16)]


def _brightest() -> float:
    return _HLG_PEAK_NITS / REFERENCE_WHITE_NITS


@functools.cache
def _linear_light(transfer: int) -> Float[np.ndarray, "65536"]:
    """Luminance over the reference white of each 16-bit value."""
    encoded = np.linspace(0, 1, 65536)
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
        power = encoded ** (1 / m2)
        nits = 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(encoded <= 0.5, encoded**2 / 3, (np.exp((encoded - c) / a) + b) / 12)
        nits = _HLG_PEAK_NITS * scene**_HLG_GAMMA  # the system gamma per channel: exact for greys
    return (nits / REFERENCE_WHITE_NITS).astype(np.float32)


@functools.cache
def _encoded() -> UInt8[np.ndarray, "4096"]:
    """sRGB of luminances over the reference white, at the squares of equal steps."""
    linear = np.linspace(0, np.sqrt(_brightest()), _STEPS) ** 2
    shoulder = _KNEE + (1 - _KNEE) * (1 - np.exp(-(linear - _KNEE) / (1 - _KNEE)))
    mapped = np.where(linear < _KNEE, linear, shoulder)
    encoded = np.where(mapped <= 0.0031308, 12.92 * mapped, 1.055 * np.maximum(mapped, 1e-9) ** (1 / 2.4) - 0.055)
    return np.round(255 * encoded.clip(0, 1)).astype(np.uint8)
