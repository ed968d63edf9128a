"""Morph targets of a mesh as lists of the vertices that move."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mien.rasterizer.cpu import native
from mien.typing import Bool, Float, Int

# Smaller changes are not stored: one micrometre, and of a normal less than one of 255 levels of shading.
POSITION_EPSILON_M = 1e-6
NORMAL_EPSILON = 3e-3

_LARGEST_16_BIT = 65535
_LARGEST_ERROR = math.tan(math.radians(1.0))
"""Normals of a view may be wrong by this; the sum of offsets below `NORMAL_EPSILON` reaches a part of it."""
_LEAST_LENGTH = 0.25
"""Shortest sum of a base normal and its offsets: folds can turn a normal around, and short sums turn fast."""


@dataclass(frozen=True)
class MorphTargets:
    """N morph targets with K moving vertices in all: `starts[n]` to `starts[n + 1]` are those of target n."""

    starts: Int[np.ndarray, "M"]
    """First moving vertex of each target, and K; int64."""
    rows: Int[np.ndarray, "K"]
    """The moving vertices, ascending in each target; int32."""
    offsets: Float[np.ndarray, "K 3"]
    """Their offsets at full weight; float32."""

    @classmethod
    def of(cls, dense: Float[np.ndarray, "N V 3"], *, epsilon: float) -> MorphTargets:
        """Keep the offsets that have a component above `epsilon`."""
        moves = exceeds(dense, epsilon)
        target, rows = moves.nonzero()
        starts = np.searchsorted(target, np.arange(len(dense) + 1))
        return cls(starts, rows.astype(np.int32), np.ascontiguousarray(dense[moves], np.float32))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def joined(self, other: MorphTargets) -> MorphTargets:
        """These targets, then the others."""
        starts = np.concatenate([self.starts, self.starts[-1] + other.starts[1:]])
        rows, offsets = np.concatenate([self.rows, other.rows]), np.concatenate([self.offsets, other.offsets])
        return MorphTargets(starts, rows, offsets)

    def at(self, vertices: Int[np.ndarray, "P"], *, used: Bool[np.ndarray, "P"]) -> MorphTargets:
        """The same targets for a part of the mesh.

        Args:
            vertices: The vertex of the mesh at each place of the part; a vertex can have several places.
            used: Which places can move; the others stay still.
        """
        inside = np.flatnonzero(used)
        counts = np.bincount(vertices[inside], minlength=max(vertices.max(), self.rows.max(initial=0)) + 1)
        by_vertex = inside[np.argsort(vertices[inside], kind="stable")]
        first = np.cumsum(counts) - counts
        copies = counts[self.rows]
        ends = np.concatenate([[0], np.cumsum(copies)])
        within = np.arange(ends[-1]) - np.repeat(ends[:-1], copies)
        rows = by_vertex[np.repeat(first[self.rows], copies) + within].astype(np.int32)
        offsets, starts = np.repeat(self.offsets, copies, axis=0), ends[self.starts]
        if (np.diff(by_vertex) <= 0).any():  # other orders in the part and in the mesh
            target = np.repeat(np.arange(len(self)), np.diff(starts))
            order = np.lexsort((rows, target))
            rows, offsets = rows[order], offsets[order]
        return MorphTargets(starts, rows, np.ascontiguousarray(offsets))

    def target(self, index: int) -> tuple[Int[np.ndarray, "K"], Float[np.ndarray, "K 3"]]:
        """Rows and offsets of one target."""
        one = slice(self.starts[index], self.starts[index + 1])
        return self.rows[one], self.offsets[one]

    def dense(self, vertices: int) -> Float[np.ndarray, "N V 3"]:
        """The offsets of all vertices of a mesh of this many."""
        dense = np.zeros((len(self), vertices, 3), np.float32)
        dense[np.repeat(np.arange(len(self)), np.diff(self.starts)), self.rows] = self.offsets
        return dense

    def bounds(self, vertices: int) -> tuple[Float[np.ndarray, "N 3"], Float[np.ndarray, "N 3"]]:
        """Smallest and largest offset of each target among all vertices, still ones included.

        Args:
            vertices: Number of vertices of the mesh.
        """
        low, high = (np.zeros((len(self), 3), np.float32) for _ in range(2))
        counts = np.diff(self.starts)
        some = counts > 0
        if some.any():
            first = self.starts[:-1][some]  # reduceat takes no empty parts
            low[some], high[some] = np.minimum.reduceat(self.offsets, first), np.maximum.reduceat(self.offsets, first)
        still = counts < vertices
        low[still], high[still] = low[still].clip(max=0), high[still].clip(min=0)
        return low, high


@dataclass(frozen=True)
class EncodedTargets:
    """Morph targets as a GLB file stores them."""

    plain: MorphTargets
    """The targets."""
    vertices: int
    """Number of vertices of the mesh."""
    low: list[list[float]]
    """Smallest offset of each target."""
    high: list[list[float]]
    """Largest offset of each target."""
    narrow: memoryview
    """Rows of all targets as 16-bit numbers."""
    wide: memoryview
    """The same with 32 bits."""
    offsets: memoryview
    """Offsets of all targets, float32."""

    @classmethod
    def of(cls, targets: MorphTargets, *, vertices: int) -> EncodedTargets:
        """Encode all targets at once, which is faster than one by one."""
        low, high = map(shortest, targets.bounds(vertices))
        arrays = (targets.rows.astype("<u2"), targets.rows.astype("<u4"), targets.offsets.astype("<f4", copy=False))
        return cls(targets, vertices, low, high, *(memoryview(array.tobytes()) for array in arrays))

    def sparse(self, index: int) -> tuple[int, bool, bytes | memoryview, bytes | memoryview]:
        """One target as sparse data.

        Returns:
            Number of rows; whether they need 32 bits; the rows and their offsets. A target that moves nothing has a
            zero that replaces a zero.
        """
        first, end = int(self.plain.starts[index]), int(self.plain.starts[index + 1])
        if first == end:
            return 1, False, bytes(2), bytes(12)
        # The largest value of 16 bits is reserved for primitive restart.
        wide = int(self.plain.rows[end - 1]) >= _LARGEST_16_BIT
        rows = self.wide[4 * first : 4 * end] if wide else self.narrow[2 * first : 2 * end]
        return end - first, wide, rows, self.offsets[12 * first : 12 * end]


def shortest(values: np.ndarray) -> list[Any]:
    """The shortest numbers that give these float32 back, in nested lists of the array's shape."""
    texts = values.astype(np.float32).astype("U")
    return texts.astype(np.float64).tolist()


def moved_normals(
    targets: MorphTargets,
    *,
    vertices: Float[np.ndarray, "V 3"],
    normals: Float[np.ndarray, "V 3"],
    triangles: Int[np.ndarray, "T 3"],
    epsilon: float,
) -> MorphTargets:
    """Offsets of the unit normals where morph targets move the surface, each target alone at full weight.

    Args:
        targets: Offsets of the positions.
        vertices: Positions without movement.
        normals: Their unit normals.
        triangles: Vertex indices.
        epsilon: Offsets without a component above it are left out.

    Raises:
        ValueError: An index is not that of a vertex.
    """
    most = len(targets) * len(vertices)  # the pages that are not written take no memory
    starts, rows = np.empty(len(targets) + 1, np.int64), np.empty(most, np.int32)
    offsets = np.empty((most, 3), np.float32)
    mesh = (np.ascontiguousarray(vertices, np.float32), normals, np.ascontiguousarray(triangles, np.int32))
    native().morph_normals(*mesh, targets.starts, targets.rows, targets.offsets, epsilon, starts, rows, offsets)
    return MorphTargets(starts, rows[: starts[-1]], offsets[: starts[-1]])


def exact_in_view(
    turned: MorphTargets,
    weights: Float[np.ndarray, "N"],
    *,
    normals: Float[np.ndarray, "V 3"],
    shown: Float[np.ndarray, "V 3"],
) -> MorphTargets:
    """Correct offsets of normals, so that base and weighted offsets give the normals of one view.

    Normals do not add: two targets that each turn a normal do not turn it by the sum. The smallest change of the
    offsets that makes one view right is a share of its error for each target, by its weight. Vertices whose error is
    small keep their offsets, which are right for each target alone.

    Args:
        turned: Offsets of the unit normals at full weight.
        weights: The weights of the view.
        normals: Unit normals without movement.
        shown: Unit normals of the view.

    Returns:
        The same rows with other offsets.
    """
    active = np.flatnonzero(weights).tolist()
    summed, squares = normals.astype(np.float32), np.zeros(len(normals), np.float32)
    for index in active:
        rows, offsets = turned.target(index)
        summed[rows] += weights[index] * offsets
        squares[rows] += weights[index] ** 2
    length = np.maximum((summed * shown).sum(1), _LEAST_LENGTH)
    error = length[:, None] * shown - summed
    wrong = (np.linalg.norm(error, axis=1) > _LARGEST_ERROR * length) & (squares > 0)
    share = np.where(wrong, 1 / np.where(squares > 0, squares, 1), 0)[:, None] * error
    corrected = turned.offsets.copy()
    for index in active:
        one = slice(turned.starts[index], turned.starts[index + 1])
        corrected[one] += weights[index] * share[turned.rows[one]]
    return MorphTargets(turned.starts, turned.rows, corrected)


def exceeds(vectors: Float[np.ndarray, "*s 3"], limit: float) -> Bool[np.ndarray, "*s"]:
    """Which vectors have a component above a limit."""
    above = np.abs(vectors) > limit
    return above[..., 0] | above[..., 1] | above[..., 2]  # ten times as fast as above.any(axis=-1)
