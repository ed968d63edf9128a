"""What makes the result of a face less certain: measurements of its photo, and flags for those out of range.

docs/perception.md says on which photos the limits were chosen, and how often they are wrong.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, fields

COVERED_ABOVE = 0.06
"""Share of the face below the brows that is hidden by something in front of it."""
PART_COVERED_ABOVE = 0.4
"""A part of the face, such as the mouth, is named as covered from this share on."""
SHUT_BELOW = 0.1
"""Opening of both eyes over their width. The mesh network shows 0.085 for closed eyes, and 0.3 for relaxed ones."""
PROFILE_ABOVE_DEGREES = 50.0
"""Turn of the head against the direction to the camera; beyond it the far side of the landmarks is a guess."""
CUT_OFF_ABOVE = 0.06
"""Share of the face that lies outside the photo."""
TINY_BELOW_PX = 50.0
"""Height of the face, chin to forehead, in pixels of the photo."""
BLURRED_ABOVE = 0.8
"""Share of the contrast around eyes and mouth that a further blur leaves."""
DARK_BELOW = 0.2
"""Brightness that a twentieth of the face exceeds, sRGB-encoded; dark skin in good light has 0.3 and more."""
OVEREXPOSED_ABOVE = 0.2
"""Share of the visible skin that is white."""
DISTANCE_RANGE_M = (0.2, 100.0)
"""Distance of the face that a camera can be used at."""
LANDMARK_ERROR_ABOVE = 0.08
"""Landmark error, as a share of the distance of the eyes, from which a fit counts as failed in the field (NME)."""


class QualityFlag(enum.Enum):
    """Something about a face that makes its result less certain."""

    EYES_SHUT = "eyes_shut"
    COVERED = "covered"
    PROFILE = "profile"
    CUT_OFF = "cut_off"
    BLURRED = "blurred"
    TINY = "tiny"
    DARK = "dark"
    OVEREXPOSED = "overexposed"
    DISTANCE = "distance"
    DOUBTFUL_FIT = "doubtful_fit"

    @property
    def words(self) -> str:
        """Short words for tables, for example "eyes shut"."""
        return self.value.replace("_", " ")


@dataclass(frozen=True)
class CoveredShares:
    """How much of a face, and of its parts, a mask, glasses, a hand or another thing hides; 0 to 1."""

    face: float = 0.0
    """Of the face below the upper edge of the brows: hair on the forehead is part of a normal portrait."""
    eyes: float = 0.0
    """Of the openings of the eyes."""
    nose: float = 0.0
    """Of the nose."""
    mouth: float = 0.0
    """Of the lips and the open mouth."""
    forehead: float = 0.0
    """Of the face above the brows."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that are mostly hidden."""
        parts = (field.name for field in fields(self) if field.name != "face")
        return tuple(name for name in parts if getattr(self, name) > PART_COVERED_ABOVE)


@dataclass(frozen=True)
class FaceMeasures:
    """What was measured of a face in its photo."""

    covered: CoveredShares
    """What hides it."""
    eye_openings: tuple[float, float]
    """Distance between the lids over the width of the eye, right and left."""
    turn_degrees: float
    """Angle between where the head points and the direction to the camera, to the side: 0 for a frontal face."""
    cut_off: float
    """Share of the face outside the photo."""
    height_px: float
    """From chin to forehead, pixels of the photo."""
    blur: float
    """Share of the contrast around eyes and mouth that a further blur leaves, 0 to 1: large for a blurred face."""
    brightness: float
    """Brightness that a twentieth of the face exceeds, sRGB-encoded, 0 to 1."""
    overexposed: float
    """Share of the visible skin that is white."""
    distance_m: float
    """Distance from the camera, metres."""


@dataclass(frozen=True)
class FaceQuality:
    """How well a photo shows a face: flags for what is out of range, and what was measured.

    Example:
        >>> face = mien.Reconstruction.load("out/photo/face0")
        >>> [flag.words for flag in face.quality.flags], face.quality.measures.covered.parts
    """

    flags: tuple[QualityFlag, ...]
    """What is out of range; empty for a good portrait."""
    measures: FaceMeasures
    """What was measured."""

    @classmethod
    def judge(cls, measures: FaceMeasures, *, landmark_error: float) -> FaceQuality:
        """Compare measurements with the limits of this module.

        Args:
            measures: What was measured.
            landmark_error: As in `Reconstruction`.
        """
        flags = (flag for flag, holds in _CHECKS if holds(measures))
        doubtful = (QualityFlag.DOUBTFUL_FIT,) if not landmark_error <= LANDMARK_ERROR_ABOVE else ()
        return cls((*flags, *doubtful), measures)

    def advice(self) -> str:
        """What the flags mean and what to do, as one text; empty without flags."""
        return "; ".join(_advice(flag, self.measures) for flag in self.flags)


_CHECKS: tuple[tuple[QualityFlag, Callable[[FaceMeasures], bool]], ...] = (
    (QualityFlag.EYES_SHUT, lambda m: max(m.eye_openings) < SHUT_BELOW and "eyes" not in m.covered.parts),
    (QualityFlag.COVERED, lambda m: m.covered.face > COVERED_ABOVE or "eyes" in m.covered.parts),
    (QualityFlag.PROFILE, lambda m: m.turn_degrees > PROFILE_ABOVE_DEGREES),
    (QualityFlag.CUT_OFF, lambda m: m.cut_off > CUT_OFF_ABOVE),
    (QualityFlag.BLURRED, lambda m: m.blur > BLURRED_ABOVE),
    (QualityFlag.TINY, lambda m: m.height_px < TINY_BELOW_PX),
    (QualityFlag.DARK, lambda m: m.brightness < DARK_BELOW),
    (QualityFlag.OVEREXPOSED, lambda m: m.overexposed > OVEREXPOSED_ABOVE),
    (QualityFlag.DISTANCE, lambda m: not DISTANCE_RANGE_M[0] <= m.distance_m <= DISTANCE_RANGE_M[1]),
)


def _advice(flag: QualityFlag, measures: FaceMeasures) -> str:
    covered = measures.covered
    what = " and ".join(covered.parts) or "a part"
    texts = {
        QualityFlag.EYES_SHUT: "the eyes are shut, so their colour is a guess; use a photo with open eyes",
        QualityFlag.COVERED: (
            f"{what} of the face {'is' if len(covered.parts) < 2 and covered.parts != ('eyes',) else 'are'} covered "
            f"({covered.face:.0%} of the face), and completed from the rest; use a photo without a mask, glasses or a "
            "hand in front of it"
        ),
        QualityFlag.PROFILE: (
            f"the head is turned by {measures.turn_degrees:.0f}°, so its far side is a guess; use a photo from the "
            "front"
        ),
        QualityFlag.CUT_OFF: (
            f"{measures.cut_off:.0%} of the face is outside the photo, and completed from the rest; use a photo of the "
            "whole face"
        ),
        QualityFlag.BLURRED: "the face is blurred, so texture and shape lack detail; use a sharper photo",
        QualityFlag.TINY: (
            f"the face is {measures.height_px:.0f} pixels high, so texture and shape lack detail; use a photo in which "
            "it has 200 or more"
        ),
        QualityFlag.DARK: "the face is very dark, so its colours are uncertain; use a brighter photo",
        QualityFlag.OVEREXPOSED: (
            f"{measures.overexposed:.0%} of the skin is white, so its colours are lost; use a darker exposure"
        ),
        QualityFlag.DISTANCE: (
            f"the camera would be {measures.distance_m:.2g} m away, which is not plausible; check the focal length "
            "(EXIF or focal_px) and whether the photo is a crop"
        ),
        QualityFlag.DOUBTFUL_FIT: (
            "the model does not fit the landmarks well; look at the result, or use another photo of the person"
        ),
    }
    return texts[flag]
