"""Materials of the parts of faces and heads, as far as all mesh formats can express them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mien.export.srgb import encode_srgb


@dataclass(frozen=True)
class PartMaterial:
    """How a part looks."""

    roughness: float
    """Perceptual roughness as in glTF and USD, 0 to 1."""
    ior: float
    """Refractive index."""
    colour: tuple[float, float, float] | None = None
    """Linear RGB; None where a texture gives the colours."""

    @property
    def is_wet(self) -> bool:
        """Whether the part has small, bright highlights."""
        return self.roughness <= 0.3


PART_MATERIALS = {
    # Refractive indices: skin 1.4 (Ding et al. 2006), cornea 1.376, saliva 1.33 to 1.34, enamel 1.62.
    "skin": PartMaterial(0.6, 1.4),
    "eyes": PartMaterial(0.15, 1.376),
    "eye_left": PartMaterial(0.08, 1.376),
    "eye_right": PartMaterial(0.08, 1.376),
    # Wet: saliva and mucosa. Colours chosen by eye, darker than they are, for the shade of the mouth, which most
    # viewers do not compute.
    "mouth": PartMaterial(0.5, 1.34, (0.055, 0.012, 0.011)),
    "tongue": PartMaterial(0.4, 1.34, (0.24, 0.07, 0.06)),
    "teeth": PartMaterial(0.3, 1.62, (0.58, 0.53, 0.44)),
    "gums": PartMaterial(0.4, 1.34, (0.20, 0.055, 0.05)),
}
"""By the names of `RigPart`."""


def encoded(colour: tuple[float, float, float]) -> tuple[float, float, float]:
    """An sRGB-encoded colour from a linear one."""
    red, green, blue = encode_srgb(torch.tensor(colour)).tolist()
    return red, green, blue
