"""Materials of the parts of faces and heads, as far as all mesh formats can express them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PartMaterial:
    """How a part looks."""

    roughness: float
    """Perceptual roughness as in glTF and USD, 0 to 1."""
    colour: tuple[float, float, float] | None = None
    """Linear RGB; None where a texture gives the colours."""

    @property
    def is_wet(self) -> bool:
        """Whether the part has small, bright highlights."""
        return self.roughness < 0.3


PART_MATERIALS = {
    "skin": PartMaterial(0.6),
    "eyes": PartMaterial(0.15),
    "eye_left": PartMaterial(0.1),
    "eye_right": PartMaterial(0.1),
    # Wet: saliva and mucosa. Colours chosen by eye, darker than they are, for the shade of the
    # mouth, which most viewers do not compute.
    "mouth": PartMaterial(0.5, (0.05, 0.01, 0.01)),
    "tongue": PartMaterial(0.35, (0.24, 0.06, 0.05)),
    "teeth": PartMaterial(0.25, (0.46, 0.40, 0.31)),
    "gums": PartMaterial(0.35, (0.20, 0.05, 0.045)),
}
"""By the names of `RigPart`."""


def encoded(colour: tuple[float, float, float]) -> tuple[float, float, float]:
    """An sRGB-encoded colour from a linear one."""
    r, g, b = (12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055 for c in colour)
    return r, g, b
