"""Colour of human skin from melanin and haemoglobin, and the colour measures that skin is judged by.

Two layers: an epidermis that melanin makes a filter, and a scattering dermis that blood tints. It follows
S. L. Jacques, "Optical properties of biological tissues: a review" (Phys. Med. Biol. 58, 2013) and his
"Skin optics" summary (1998); the diffuse reflectance of the dermis is Kubelka and Munk's.
"""

from __future__ import annotations

import numpy as np

WAVELENGTH_NM = np.arange(400, 701, 10, dtype=float)
# Molar extinction of oxygenated and deoxygenated haemoglobin, 1/(cm mol/l), compiled by S. Prahl (1998) from
# W. B. Gratzer and N. Kollias: every fifth row of the tabulated 2 nm steps from 400 to 700 nm.
_OXYGENATED = np.array(
    [266232, 466840, 480360, 246072, 102580, 62816, 44480, 33209, 26629, 23684, 20933, 20035, 24202, 39957, 53236,
     43016, 32613, 44496, 50104, 14401, 3200, 1506, 942, 610, 442, 368, 319.6, 294, 277.6, 276, 290]
)  # fmt: skip
_DEOXYGENATED = np.array(
    [223296, 303956, 407560, 528600, 413280, 103292, 23389, 16156, 14550, 16684, 20862, 25774, 31590, 39036, 46592,
     53412, 53788, 45072, 37020, 28324, 14677, 9444, 6510, 5149, 4345, 3750, 3227, 2795, 2408, 2052, 1794]
)  # fmt: skip
_OXYGENATION = 0.75  # share of oxygenated blood in the dermis (Jacques 1998)
_BLOOD_G_PER_L, _HAEMOGLOBIN_G_PER_MOL = 150.0, 64500.0
_EPIDERMIS_CM = 0.0060
_SURFACE = 0.018  # share of light that the surface scatters back without colour; the mirror part is not albedo

_MELANIN = 6.6e11 * WAVELENGTH_NM**-3.33  # 1/cm, inside a melanosome (Jacques 1998)
_BASELINE = 0.244 + 85.3 * np.exp(-(WAVELENGTH_NM - 154.0) / 66.2)  # 1/cm, bloodless skin (Saidi 1992)
_BLOOD = (
    np.log(10.0)
    * _BLOOD_G_PER_L
    / _HAEMOGLOBIN_G_PER_MOL
    * (_OXYGENATION * _OXYGENATED + (1 - _OXYGENATION) * _DEOXYGENATED)
)
_SCATTERING = 2e5 * WAVELENGTH_NM**-1.5 + 2e12 * WAVELENGTH_NM**-4.0  # 1/cm, reduced: Mie + Rayleigh (Jacques 1998)

_XYZ_TO_RGB = np.array(
    [[3.2404542, -1.5371385, -0.4985314], [-0.9692660, 1.8760108, 0.0415560], [0.0556434, -0.2040259, 1.0572252]]
)
_RGB_TO_XYZ = np.linalg.inv(_XYZ_TO_RGB)
_WHITE_XYZ = np.array([0.95047, 1.0, 1.08883])  # D65


def _lobe(centre: float, left: float, right: float) -> np.ndarray:
    x = WAVELENGTH_NM - centre
    return np.exp(-0.5 * (x * np.where(x < 0, left, right)) ** 2)


def _observer() -> np.ndarray:
    """CIE 1931 colour matching by C. Wyman, P.-P. Sloan and P. Shirley (JCGT 2, 2013), each curve summing to one."""
    x = (
        1.056 * _lobe(599.8, 0.0264, 0.0323)
        + 0.362 * _lobe(442.0, 0.0624, 0.0374)
        - 0.065 * _lobe(501.1, 0.0490, 0.0382)
    )
    y = 0.821 * _lobe(568.8, 0.0213, 0.0247) + 0.286 * _lobe(530.9, 0.0613, 0.0322)
    z = 1.217 * _lobe(437.0, 0.0845, 0.0278) + 0.681 * _lobe(459.0, 0.0385, 0.0725)
    curves = np.stack([x, y, z], 1)
    return curves / curves.sum(0)


_OBSERVER = _observer()


def skin_colour(melanin: np.ndarray, blood: np.ndarray) -> np.ndarray:
    """Linear sRGB reflectance (..., 3) of skin from volume fractions of melanosomes and of blood.

    Melanin from 0.013 (fairest) over 0.11 to 0.43 (darkest), blood from 0.002 to 0.07 (Jacques 1998).
    """
    melanin, blood = np.asarray(melanin, float)[..., None], np.asarray(blood, float)[..., None]
    epidermis = np.exp(-2.0 * _EPIDERMIS_CM * (melanin * _MELANIN + (1 - melanin) * _BASELINE))
    ratio = 2.0 * (blood * _BLOOD + (1 - blood) * _BASELINE) / (0.75 * _SCATTERING)
    dermis = 1 + ratio - np.sqrt(ratio * ratio + 2 * ratio)
    reflectance = (1 - _SURFACE) * epidermis * dermis + _SURFACE
    return np.clip((reflectance @ _OBSERVER * _WHITE_XYZ) @ _XYZ_TO_RGB.T, 1e-4, 1.0)


def encode(linear: np.ndarray) -> np.ndarray:
    """Encode linear sRGB with the sRGB transfer curve (IEC 61966-2-1); values below 0 become 0."""
    linear = np.maximum(linear, 0.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.power(linear, 1 / 2.4) - 0.055)


def decode(encoded: np.ndarray) -> np.ndarray:
    """Linear sRGB of sRGB-encoded values."""
    return np.where(encoded <= 0.04045, encoded / 12.92, ((np.maximum(encoded, 0) + 0.055) / 1.055) ** 2.4)


def lab(linear: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of linear sRGB colours (..., 3)."""
    t = linear @ _RGB_TO_XYZ.T / _WHITE_XYZ
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def typology_angle(lab_colour: np.ndarray) -> np.ndarray:
    """Individual typology angle in degrees (Chardon et al. 1991): above 55 very light, below -30 dark."""
    return np.degrees(np.arctan2(lab_colour[..., 0] - 50.0, lab_colour[..., 2]))


def hue_angle(lab_colour: np.ndarray) -> np.ndarray:
    """CIELAB hue angle in degrees: 0 is red, 90 is yellow."""
    return np.degrees(np.arctan2(lab_colour[..., 2], lab_colour[..., 1]))
