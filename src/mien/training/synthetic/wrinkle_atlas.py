"""Wrinkles of the face: lines, cross-sections, onset with age, and the blendshapes that deepen them.

Lines are given for the right half of the face, relative to the 68 landmarks of the mean face. A kind of wrinkle is a
family of curves between a first and a last one, and a face has a few of them. Anatomy and depths after Lemperle et al.
2001 (A classification of facial wrinkles).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mien.training.synthetic.canvas import LandmarkOffset


@dataclass(frozen=True)
class Lobe:
    """One Gaussian of a cross-section, in units of the wrinkle's width and depth."""

    height: float
    """Positive above the skin."""
    width: float = 1.0
    """Standard deviation."""
    shift: float = 0.0
    """Across the wrinkle, positive towards the side that bulges."""


FURROW = (Lobe(-1.0), Lobe(0.32, 2.6))
"""A narrow groove between soft shoulders."""
OVERHANG = (Lobe(-0.75), Lobe(0.6, 3.4, 3.4), Lobe(-0.2, 3.0, -1.5))
"""A sagging cheek or lid: a bulge on one side, a slope on the other."""
PILLOW = (Lobe(1.0),)
"""A bag under the eye or at the jaw."""


@dataclass(frozen=True)
class Wrinkle:
    """A family of wrinkles of one kind."""

    name: str
    """The common name."""
    first: tuple[LandmarkOffset, ...]
    """Points of the first curve of the family, right half of the face."""
    last: tuple[LandmarkOffset, ...]
    """Points of the last curve."""
    count: tuple[int, int]
    """Fewest and most lines per side."""
    depth_mm: tuple[float, float]
    """Depth at strength 0 and at strength 1."""
    width_mm: tuple[float, float]
    """Range of the groove's standard deviation."""
    section: tuple[Lobe, ...] = FURROW
    """Cross-section."""
    crosses_midline: bool = False
    """Whether a line runs across the middle of the face, instead of one on each side."""
    bulges_to: LandmarkOffset | None = None
    """A point on the side to which lobes with a positive shift lie."""
    onset: float = 0.3
    """Age at which it becomes permanent, from 0 (20 years) to 1 (80 years)."""
    age_strength: float = 1.0
    """Strength at age 1 without any blendshape."""
    blendshapes: dict[str, float] = field(default_factory=dict)
    """Strength that each blendshape adds at full activation."""
    wander_mm: float = 1.0
    """Size of the random deviation from the curve."""
    gap_probability: float = 0.0
    """Probability that a line is interrupted."""
    max_trim: float = 0.3
    """Largest share of a line that may be missing at either end."""
    taper_share: float = 0.3
    """Share of its length over which a line fades out at either end."""


def _p(landmark: int, out: float = 0.0, up: float = 0.0, forward: float = 0.0) -> LandmarkOffset:
    return LandmarkOffset(landmark, out, up, forward)


WRINKLES = (
    Wrinkle(
        "forehead",
        (_p(18, -2.0, 14.0), _p(19, 0.0, 15.0), _p(20, 0.0, 13.0), _p(27, 0.0, 34.0)),
        (_p(18, -4.0, 40.0), _p(19, 0.0, 46.0), _p(20, 0.0, 47.0), _p(27, 0.0, 67.0)),
        count=(2, 6), depth_mm=(0.12, 0.75), width_mm=(0.7, 1.3), crosses_midline=True, onset=0.25,
        wander_mm=1.5, gap_probability=0.45,
        blendshapes={"browInnerUp": 0.8, "browOuterUp": 0.5, "eyeWide": 0.2},
    ),
    Wrinkle(
        "glabella",
        (_p(27, 2.5, 12.0), _p(27, 4.0, 21.0), _p(27, 4.0, 32.0)),
        (_p(27, 8.0, 13.0), _p(27, 11.0, 22.0), _p(27, 12.0, 33.0)),
        count=(1, 2), depth_mm=(0.15, 1.0), width_mm=(0.8, 1.4), onset=0.3, age_strength=0.8,
        max_trim=0.2,
        blendshapes={"browDown": 0.9},
    ),
    Wrinkle(
        "nasal root",
        (_p(27, 9.0, 2.0), _p(27, 5.0, 2.0), _p(27, 0.0, 1.0)),
        (_p(27, 9.0, 10.0), _p(27, 5.0, 10.0), _p(27, 0.0, 9.0)),
        count=(1, 2), depth_mm=(0.1, 0.6), width_mm=(0.7, 1.2), crosses_midline=True, onset=0.45, age_strength=0.7,
        blendshapes={"browDown": 0.4, "noseSneer": 0.5},
    ),
    Wrinkle(
        "crow's feet",
        (_p(36, 5.0, 3.0), _p(36, 12.0, 10.0), _p(36, 19.0, 20.0)),
        (_p(36, 5.0, -5.0), _p(36, 12.0, -13.0), _p(36, 17.0, -24.0)),
        count=(2, 5), depth_mm=(0.1, 0.65), width_mm=(0.6, 1.0), onset=0.25, wander_mm=0.9,
        blendshapes={"cheekSquint": 0.6, "mouthSmile": 0.45, "eyeSquint": 0.5, "eyeBlink": 0.1},
    ),
    Wrinkle(
        "lower lid",
        (_p(39, 0.0, -5.0), _p(40, 0.0, -4.5), _p(41, 0.0, -4.5), _p(36, 3.0, -5.0)),
        (_p(39, -1.0, -11.0), _p(40, 0.0, -13.0), _p(41, 2.0, -12.0), _p(36, 6.0, -10.0)),
        count=(1, 4), depth_mm=(0.08, 0.45), width_mm=(0.6, 1.0), onset=0.25, wander_mm=0.7, gap_probability=0.2,
        blendshapes={"cheekSquint": 0.5, "mouthSmile": 0.3, "eyeSquint": 0.5},
    ),
    Wrinkle(
        "bag",
        (_p(39, -1.0, -5.0), _p(40, 0.0, -7.0), _p(41, 0.0, -7.0), _p(36, 0.0, -6.0)),
        (_p(39, -1.0, -7.0), _p(40, 0.0, -10.0), _p(41, 0.0, -10.0), _p(36, 1.0, -8.0)),
        count=(1, 1), depth_mm=(0.2, 1.1), width_mm=(2.6, 4.0), section=PILLOW, onset=0.35, age_strength=0.9,
        blendshapes={"cheekSquint": 0.3, "eyeSquint": 0.3},
    ),
    Wrinkle(
        "tear trough",
        (_p(39, -2.0, -4.0), _p(39, 2.0, -10.0), _p(40, 3.0, -15.0), _p(41, 3.0, -18.0)),
        (_p(39, -2.0, -5.0), _p(39, 2.0, -12.0), _p(40, 3.0, -18.0), _p(41, 4.0, -21.0)),
        count=(1, 1), depth_mm=(0.2, 0.9), width_mm=(1.4, 2.4), section=OVERHANG, bulges_to=_p(41, 0.0, -6.0),
        onset=0.15, age_strength=0.9,
    ),
    Wrinkle(
        "nasolabial",
        (_p(31, 4.0, 9.0), _p(31, 9.0, 2.0), _p(48, 2.0, 15.0), _p(48, 6.0, 6.0), _p(48, 6.0, -3.0)),
        (_p(31, 5.0, 10.0), _p(31, 10.0, 4.0), _p(48, 5.0, 17.0), _p(48, 9.0, 6.0), _p(48, 9.0, -6.0)),
        count=(1, 1), depth_mm=(0.25, 1.5), width_mm=(1.1, 1.9), section=OVERHANG, bulges_to=_p(48, 20.0, 18.0),
        onset=0.15, taper_share=0.4, wander_mm=1.2,
        blendshapes={"mouthSmile": 0.7, "noseSneer": 0.5, "mouthUpperUp": 0.5, "mouthDimple": 0.3, "mouthStretch": 0.2},
    ),
    Wrinkle(
        "cheek",
        (_p(48, 13.0, 22.0), _p(48, 17.0, 8.0), _p(48, 15.0, -8.0)),
        (_p(48, 27.0, 26.0), _p(48, 30.0, 8.0), _p(48, 26.0, -8.0)),
        count=(1, 4), depth_mm=(0.1, 0.6), width_mm=(0.9, 1.6), onset=0.5, age_strength=0.7,
        wander_mm=1.5, gap_probability=0.2,
        blendshapes={"mouthSmile": 0.5, "mouthDimple": 0.4, "mouthStretch": 0.3},
    ),
    Wrinkle(
        "marionette",
        (_p(48, 2.0, -4.0), _p(48, 5.0, -12.0), _p(48, 5.0, -20.0)),
        (_p(48, 3.0, -4.0), _p(48, 8.0, -13.0), _p(48, 9.0, -23.0)),
        count=(1, 1), depth_mm=(0.15, 1.1), width_mm=(1.0, 1.8), section=OVERHANG, bulges_to=_p(48, 18.0, -12.0),
        onset=0.35, taper_share=0.45, blendshapes={"mouthFrown": 0.6, "mouthShrugLower": 0.3, "mouthPress": 0.3},
    ),
    Wrinkle(
        "upper lip",
        (_p(51, 3.0, -1.0), _p(51, 3.5, 5.0), _p(51, 3.5, 11.0)),
        (_p(49, 5.0, -1.0), _p(49, 8.0, 4.0), _p(49, 11.0, 10.0)),
        count=(2, 6), depth_mm=(0.08, 0.4), width_mm=(0.5, 0.8), onset=0.45, wander_mm=0.5,
        max_trim=0.12, taper_share=0.22,
        blendshapes={"mouthPucker": 0.7, "mouthFunnel": 0.3, "mouthRollUpper": 0.3},
    ),
    Wrinkle(
        "lower lip",
        (_p(57, 4.0, -1.0), _p(57, 4.0, -10.0)),
        (_p(59, 1.0, -2.0), _p(59, 5.0, -11.0)),
        count=(1, 4), depth_mm=(0.08, 0.35), width_mm=(0.5, 0.8), onset=0.5, wander_mm=0.5,
        max_trim=0.12, taper_share=0.22,
        blendshapes={"mouthPucker": 0.6, "mouthFunnel": 0.2},
    ),
    Wrinkle(
        "chin",
        (_p(57, 17.0, -4.0), _p(57, 10.0, -8.0), _p(57, 0.0, -10.0)),
        (_p(57, 18.0, -7.0), _p(57, 10.0, -11.0), _p(57, 0.0, -13.0)),
        count=(1, 1), depth_mm=(0.2, 1.3), width_mm=(1.4, 2.8), crosses_midline=True, onset=0.2, age_strength=0.8,
        blendshapes={"mouthShrugLower": 0.7, "mouthFrown": 0.4, "mouthPucker": 0.3},
    ),
    Wrinkle(
        "bunny lines",
        (_p(28, 4.0, 5.0), _p(28, 9.0, 1.0), _p(28, 13.0, -5.0)),
        (_p(28, 6.0, -3.0), _p(28, 10.0, -7.0), _p(28, 14.0, -13.0)),
        count=(1, 3), depth_mm=(0.1, 0.6), width_mm=(0.7, 1.1), onset=0.6, age_strength=0.4, wander_mm=0.6,
        blendshapes={"noseSneer": 1.0, "cheekSquint": 0.15},
    ),
    Wrinkle(
        "jowl",
        (_p(5, 4.0, 12.0), _p(6, 4.0, 7.0), _p(6, -8.0, 4.0)),
        (_p(5, 4.0, 9.0), _p(6, 4.0, 4.0), _p(6, -8.0, 1.0)),
        count=(1, 1), depth_mm=(0.2, 1.0), width_mm=(4.0, 6.0), section=PILLOW, onset=0.55, age_strength=0.9,
        taper_share=0.5,
    ),
    Wrinkle(
        "neck",
        (_p(8, 38.0, -4.0, -30.0), _p(8, 20.0, -8.0, -26.0), _p(8, 0.0, -9.0, -24.0)),
        (_p(8, 38.0, -14.0, -52.0), _p(8, 20.0, -18.0, -46.0), _p(8, 0.0, -20.0, -42.0)),
        count=(1, 3), depth_mm=(0.2, 0.9), width_mm=(1.0, 1.8), crosses_midline=True, onset=0.3, wander_mm=1.5,
        blendshapes={"mouthStretch": 0.2},
    ),
)  # fmt: skip
