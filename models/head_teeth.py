"""Two rows of teeth in their gums, shaped after tables of dental anatomy and placed behind the lips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

TABLE = {
    # widths, heights and depths of the crowns from the middle backwards, millimetres
    "upper": ((8.5, 6.5, 7.5, 7.0, 7.0, 10.0, 9.0), (10.5, 9.0, 10.0, 8.5, 8.5, 7.5, 7.0),
              (7.0, 6.0, 8.0, 9.0, 9.0, 11.0, 11.0)),
    "lower": ((5.0, 5.5, 7.0, 7.0, 7.0, 11.0, 10.5), (9.0, 9.5, 11.0, 8.5, 8.0, 7.5, 7.0),
              (6.0, 6.5, 7.5, 7.5, 8.0, 10.5, 10.0)),
}  # fmt: skip
"""Nelson, Wheeler's Dental Anatomy, Physiology and Occlusion, the tables of each tooth."""
INCISORS, CANINE = 2, 2
"""Number of incisors on a side, and index of the canine."""
SECTORS, RINGS = 12, 8
SPACING = 1.02
"""Length of the arch relative to the widths of the crowns along it."""
ARCH_HALF_WIDTH_MM = {"upper": 25.0, "lower": 23.5}
"""Of the curve through the middles of the crowns, at the last molars."""
ARCH_POWER = 2.4
FRONT_MM = -11.4
"""Middle of the upper central incisors in front of the line where the lips meet: a lip's thickness behind it, so that
neither crown nor gum touches the upper lip."""
DISPLAY_MM = 1.5
"""How far the edges of the upper incisors stand below that line; parted lips at rest show as much (Vig and Brundo 1978:
1.9 mm of men, 3.4 mm of women)."""
OVERJET_MM, FREEWAY_MM = 2.2, 0.8
"""How far the upper incisors stand before the lower ones (W. Proffit, Contemporary Orthodontics), and how far their
edges are apart while the jaw rests."""
GUM_LINE, GUM_THICKNESS_MM, GUM_HEIGHT_MM = 0.16, 0.8, 9.0
"""Height of the gum's edge over a crown's base as a share of the crown, and the gum's size."""
GUM_SECTIONS = 65


@dataclass(frozen=True)
class TeethRow:
    """Upper or lower teeth in the mean head."""

    vertices: np.ndarray
    triangles: np.ndarray
    is_gum: np.ndarray
    """(N,) bool: vertices of the gum, after those of the teeth."""


def teeth_row(lips_meet: np.ndarray, *, upper: bool) -> TeethRow:
    """Crowns along an arch, and the gum around their bases.

    Args:
        lips_meet: (3,) the middle of the line where the lips of the mean face meet, millimetres.
        upper: Whether they are the upper teeth; the lower ones stand on the mirrored side.
    """
    widths, heights, depths = (np.array(row) for row in TABLE["upper" if upper else "lower"])
    half_width = ARCH_HALF_WIDTH_MM["upper" if upper else "lower"]
    front = lips_meet[2] + FRONT_MM - (0 if upper else OVERJET_MM)
    edge = lips_meet[1] - DISPLAY_MM - (0 if upper else FREEWAY_MM)
    down = -1.0 if upper else 1.0
    length = arch_length(half_width, widths.sum() * SPACING)
    turn = np.linspace(-np.pi / 2, np.pi / 2, 2001)
    arch = arch_curve(half_width, length, turn)
    curve = np.stack([arch[:, 0], np.zeros(len(arch)), front - length + arch[:, 1]], 1)
    steps = np.concatenate([[0], np.linalg.norm(np.diff(curve, axis=0), axis=1).cumsum()])
    steps -= steps[-1] / 2
    middles = np.cumsum(widths) - widths / 2
    pieces, faces, count = [], [], 0
    for side in (-1.0, 1.0):
        for k, place in enumerate(side * middles):
            centre = np.array([np.interp(place, steps, curve[:, axis]) for axis in range(3)])
            ahead = np.array([np.interp(place + 0.5, steps, curve[:, axis]) for axis in range(3)])
            along = (ahead - centre) / np.linalg.norm(ahead - centre)
            outward = np.cross(along, [0.0, 1.0, 0.0])
            outward *= np.sign(outward @ (centre - [0, 0, front - length]))
            vertices, triangles = crown(widths[k], heights[k], depths[k], chisel=k <= CANINE)
            placed = vertices[:, :1] * along + vertices[:, 2:] * outward
            placed[:, 1] += edge - down * (heights[k] - vertices[:, 1])
            pieces.append(placed + centre)
            if np.linalg.det(np.stack([along, [0, down, 0], outward])) < 0:
                triangles = triangles[:, ::-1]
            faces.append(triangles + count)
            count += len(vertices)
    row = _Arch(curve, steps, np.concatenate([-middles[::-1], middles]), heights, depths, edge, down)
    gum, gum_faces = _gum(row)
    is_gum = np.arange(count + len(gum)) >= count
    return TeethRow(np.concatenate([*pieces, gum]), np.concatenate([*faces, gum_faces + count]), is_gum)


def arch_curve(half_width: float, length: float, turn: np.ndarray) -> np.ndarray:
    """Points (N, 2), x and z, of half a superellipse, which is flatter in front than an ellipse."""
    across, ahead = np.sin(turn), np.maximum(np.cos(turn), 0)
    power = 2 / ARCH_POWER
    return np.stack([half_width * np.sign(across) * np.abs(across) ** power, length * ahead**power], 1)


def arch_length(half_width: float, half_perimeter: float) -> float:
    """Depth of the arch with a half-width and half of its perimeter, millimetres."""
    turn = np.linspace(0, np.pi / 2, 2001)

    def missing(length: float) -> float:
        steps = np.diff(arch_curve(half_width, length, turn), axis=0)
        return float(np.linalg.norm(steps, axis=1).sum()) - half_perimeter

    return float(brentq(missing, 1.0, 200.0))


def crown(width: float, height: float, depth: float, *, chisel: bool) -> tuple[np.ndarray, np.ndarray]:
    """One crown: x along the arch, y from its base (0) to its edge, z outward. Outward triangles for y up.

    Args:
        width: Largest size along the arch, millimetres.
        height: From base to edge.
        depth: Largest size across the arch.
        chisel: Whether it becomes thin towards its edge, as incisors and canines.
    """
    share = np.concatenate([np.linspace(0, 0.9, RINGS - 3), [0.96, 0.99, 1.0]])
    turn = 2 * np.pi * np.arange(SECTORS) / SECTORS
    power = 0.65
    across = np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** power
    outward = np.sign(np.sin(turn)) * np.abs(np.sin(turn)) ** power
    rings = []
    for s in share:
        rounding = np.sqrt(np.clip(1 - ((s - 0.86) / 0.14) ** 2, 0, 1)) if s > 0.86 else 1.0
        breadth = width / 2 * (0.84 + 0.16 * np.sin(min(s / 0.6, 1) * np.pi / 2)) * (0.55 + 0.45 * rounding)
        thick = depth / 2 * ((1 - 0.72 * s**1.4) if chisel else (1 - 0.12 * s)) * (0.35 + 0.65 * rounding)
        lean = 0.0 if not chisel else depth / 2 * 0.45 * s  # the outer face stays upright, the inner one slopes
        rings.append(np.stack([breadth * across, np.full(SECTORS, s * height), thick * outward + lean], 1))
    vertices = np.concatenate([*rings, rings[-1].mean(0, keepdims=True)])
    first = SECTORS * np.arange(len(share))[:, None] + np.arange(SECTORS)
    following = np.roll(first, -1, axis=1)
    walls = [
        triangle
        for low, low_next, high, high_next in zip(first[:-1], following[:-1], first[1:], following[1:], strict=True)
        for a, b, c, d in zip(low, low_next, high, high_next, strict=True)
        for triangle in ([a, d, b], [a, c, d])
    ]
    top = [[a, len(vertices) - 1, b] for a, b in zip(first[-1], following[-1], strict=True)]
    return vertices, np.array(walls + top)


@dataclass(frozen=True)
class _Arch:
    """A row of teeth along a curve."""

    curve: np.ndarray
    steps: np.ndarray
    """Length along the curve, 0 in the middle."""
    places: np.ndarray
    """Of all teeth, along the curve."""
    heights: np.ndarray
    """Of the crowns of one side, as are `depths`."""
    depths: np.ndarray
    edge: float
    """Height of the teeth's edges."""
    down: float
    """-1 if the teeth point down, else 1."""


def _gum(arch: _Arch) -> tuple[np.ndarray, np.ndarray]:
    """A band along the arch that covers the bases of the crowns; its edge rises between the teeth."""
    curve, steps, places, depths, down = arch.curve, arch.steps, arch.places, arch.depths, arch.down
    reach = np.abs(places).max() + 4.0
    along = np.linspace(-reach, reach, GUM_SECTIONS * 2 - 1).clip(steps[0], steps[-1])
    nearest = np.abs(along[:, None] - places).argmin(1)
    count = len(places) // 2
    tooth = np.where(nearest < count, count - 1 - nearest, nearest - count)
    between = np.abs(along - places[nearest])
    scallop = np.minimum(between / 4.0, 1.0) ** 2
    height = arch.heights[tooth]
    line = arch.edge - down * height * (1 - GUM_LINE - 0.16 * scallop)
    smooth = np.convolve(np.pad(line, 1, mode="edge"), [0.25, 0.5, 0.25], "valid")
    centre = np.stack([np.interp(along, steps, curve[:, axis]) for axis in range(3)], 1)
    tangent = np.gradient(centre, axis=0)
    outward = np.cross(tangent, [0.0, 1.0, 0.0])
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    middle = len(outward) // 2
    outward *= np.sign(outward[middle, 2])
    half = np.convolve(np.pad(depths[tooth] / 2, 4, mode="edge"), np.full(9, 1 / 9), "valid") + GUM_THICKNESS_MM
    profile = ((0.72, 0.0), (1.0, 0.12), (1.05, 0.5), (0.9, 0.9), (0.0, 1.0), (-0.9, 0.9), (-1.05, 0.5), (-1.0, 0.12),
               (-0.72, 0.0))  # fmt: skip
    rows = []
    for across, rise in profile:
        row = centre + outward * (half * across)[:, None]
        row[:, 1] = smooth - down * GUM_HEIGHT_MM * rise
        rows.append(row)
    vertices = np.concatenate(rows)
    count = len(along)
    faces = []
    for r in range(len(rows) - 1):
        for k in range(count - 1):
            a, b, c, d = r * count + k, r * count + k + 1, (r + 1) * count + k, (r + 1) * count + k + 1
            faces += [[a, b, d], [a, d, c]]
    faces = np.array(faces)
    normal = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
    outside = vertices[faces].mean(1) - vertices.reshape(len(rows), count, 3).mean(0)[(faces % count).min(1)]
    return vertices, faces if (normal * outside).sum() > 0 else faces[:, ::-1]
