"""Eyeballs behind the lids of the face, in place of its eye caps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree
from surface import similarity

CORNEA_RADIUS_MM, CORNEA_HEIGHT_MM = 5.9, 0.6
"""The cornea's edge (W. Bron et al., Wolff's anatomy of the eye: 11.7 mm across) and its height over the ball, a
quarter of the real one: the model's lids lie closer to the ball than a real cornea is high."""
CLEARANCE_MM = 0.35
"""Space between the eyeball and the face's eye caps, on which the lids of some people lie."""
EYE_RINGS, EYE_SECTORS = 20, 32
DENT_WIDTH = np.deg2rad(10.0)
"""How far the eyeball gives way beside a point of a lid that would enter it."""
DENT_STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""Of an action, at which lids are held before the ball: a lid moves along a chord, deepest on half of its way."""
DENT_CLEARANCE_MM = 0.15
TOUCHING_MM = 1.5
"""A lid's points at most this far from the ball lie on it."""


@dataclass(frozen=True)
class Ball:
    """A unit ball around the origin that looks along +z, with a cornea."""

    directions: np.ndarray
    """(N, 3) unit vectors; the last one points forward."""
    triangles: np.ndarray


def unit_ball() -> Ball:
    """Rings around the axis of sight, denser in front."""
    polar = np.pi * (1 - np.linspace(0, 1, EYE_RINGS + 1)[:-1] ** 0.7)  # from the back to the front
    turn = 2 * np.pi * np.arange(EYE_SECTORS) / EYE_SECTORS
    rings = [np.stack([np.sin(p) * np.cos(turn), np.sin(p) * np.sin(turn), np.full_like(turn, np.cos(p))], 1)
             for p in polar[1:]]  # fmt: skip
    directions = np.concatenate([[[0, 0, -1.0]], *rings, [[0, 0, 1.0]]])
    first = 1 + EYE_SECTORS * np.arange(len(rings))[:, None] + np.arange(EYE_SECTORS)
    following = np.roll(first, -1, axis=1)
    front = len(directions) - 1
    back_fan = [[0, b, a] for a, b in zip(first[0], following[0], strict=True)]
    front_fan = [[front, a, b] for a, b in zip(first[-1], following[-1], strict=True)]
    walls = [
        [[a, b, d], [a, d, c]]
        for low, low_next, high, high_next in zip(first[:-1], following[:-1], first[1:], following[1:], strict=True)
        for a, b, c, d in zip(low, low_next, high, high_next, strict=True)
    ]
    return Ball(directions, np.array(back_fan + [t for pair in walls for t in pair] + front_fan))


def eyeball(ball: Ball, radius: float) -> np.ndarray:
    """Vertices (N, 3) of an eyeball around the origin, in millimetres, with its cornea."""
    from_axis = radius * np.linalg.norm(ball.directions[:, :2], axis=1)
    bulge = np.where(ball.directions[:, 2] > 0, np.clip(1 - (from_axis / CORNEA_RADIUS_MM) ** 2, 0, None), 0.0)
    return ball.directions * (radius + CORNEA_HEIGHT_MM * bulge)[:, None]


class EyeFollower:
    """An eyeball behind the lids of the face, in place of one of its eye caps.

    Args:
        cap: (N, 3) the cap in the mean face.
        lids: (L, 3) the skin around it.
    """

    def __init__(self, cap: np.ndarray, lids: np.ndarray) -> None:
        equations = np.concatenate([2 * cap, np.ones((len(cap), 1))], 1)
        solution = np.linalg.lstsq(equations, (cap**2).sum(1), rcond=None)[0]
        self.centre = solution[:3]
        self.radius = float(np.sqrt(solution[3] + self.centre @ self.centre))
        self.ball = unit_ball()
        self._cap, self._lids = cap - self.centre, lids - self.centre

    @property
    def vertices(self) -> np.ndarray:
        """(M, 3) the eyeball in the mean head, and its centre as the last one."""
        return np.concatenate([eyeball(self.ball, self.radius - CLEARANCE_MM), np.zeros((1, 3))]) + self.centre

    def grow(self, offsets: np.ndarray, lid_offsets: np.ndarray) -> np.ndarray:
        """Changes (K, M, 3) for changes (K, N, 3) of the cap and (K, L, 3) of the lids.

        By translation and size; then the ball's front follows the lids that lie on it.
        """
        out = self._cap / self.radius
        solution = np.linalg.lstsq(_translations_and_growth(out), offsets.reshape(len(offsets), -1).T, rcond=None)[0].T
        relative = self.vertices - self.centre

        def whole(points: np.ndarray) -> np.ndarray:
            return solution[:, None, :3] + solution[:, 3, None, None] * points / self.radius

        far, up = _polar(self._lids)
        on_ball = far < self.radius + TOUCHING_MM
        up = up[on_ball]
        missing = ((lid_offsets - whole(self._lids))[:, on_ball] * up).sum(2)
        directions = _polar(relative)[1]
        near = np.exp(-((_angles(directions, up) / DENT_WIDTH) ** 2))
        follow = missing @ (near / (near.sum(1, keepdims=True) + 1)).T
        return whole(relative) + follow[..., None] * directions

    def turn(self, offsets: np.ndarray) -> np.ndarray:
        """Change (M, 3) by the rotation about the centre that follows a change (N, 3) of the cap best."""
        _, rotation, _ = similarity(self._cap, self._cap + offsets, with_scale=False)
        relative = self.vertices - self.centre
        return relative @ rotation.T - relative

    def give_way(self, lid_offsets: np.ndarray, turned: np.ndarray) -> np.ndarray:
        """Change (M, 3) that keeps the ball, turned by (M, 3), behind lids that move by (L, 3)."""
        relative = self.vertices - self.centre
        depth, where = np.zeros(len(self._lids)), self._lids
        for strength in DENT_STRENGTHS:
            radius, directions = _polar((relative + strength * turned)[:-1])
            far, up = _polar(self._lids + strength * lid_offsets)
            deeper = (radius[cKDTree(directions).query(up)[1]] + DENT_CLEARANCE_MM - far) / strength
            where = np.where((deeper > depth)[:, None], up, where)
            depth = np.maximum(depth, deeper)
        entering = depth > 0
        directions = _polar(relative + turned)[1]
        if not entering.any():
            return np.zeros_like(relative)
        near = np.exp(-((_angles(directions, where[entering]) / DENT_WIDTH) ** 2))
        dent = (near * depth[entering]).max(1)
        dent[-1] = 0.0  # the centre
        return -dent[:, None] * directions


def _translations_and_growth(points: np.ndarray) -> np.ndarray:
    return np.concatenate([np.tile(np.eye(3), (len(points), 1)), points.reshape(-1, 1)], 1)


def _polar(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances from the origin and unit vectors; no direction at the origin."""
    far = np.linalg.norm(points, axis=-1)
    return far, points / np.maximum(far, 1e-9)[..., None]


def _angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles (A, B) between unit vectors."""
    return np.arccos(np.clip(a @ b.T, -1, 1))
