"""The result of every reader: a face model in mien's units and conventions, with the parts that its file has."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mien.errors import FormatError
from mien.morphable.formats.limits import MAX_COMPONENTS, MAX_TRIANGLES, MAX_VERTICES
from mien.morphable.model import ExpressionKind

silently = np.errstate(all="ignore")
"""Decorator of readers: `checked` reports numbers that are not finite, so NumPy need not warn about them."""

LARGEST_FACE_M = 2.0
SMALLEST_FACE_M = 0.02
"""A mean face outside these sizes was read in the wrong unit."""
_BLOCK = 512
"""Rows of a matrix that are transposed at a time."""


@dataclass(frozen=True, eq=False)
class SkinningArrays:
    """Linear blend skinning with pose correctives (Loper et al. 2015), as FLAME has it."""

    joint_regressor: np.ndarray
    """(J, V)"""
    weights: np.ndarray
    """(V, J)"""
    pose_basis: np.ndarray
    """(P, V, 3), metres per entry of R - I of all joints but the root; P = 9 (J - 1)."""
    parents: np.ndarray
    """(J,), -1 for the root."""


@dataclass(frozen=True, eq=False)
class SourceModel:
    """A linear face model as its file has it: own topology and bases, metres, +y up, +z out of the face, RGB 0 to 1.

    Bases are scaled so that identity and albedo coefficients are standard deviations. A part that the file lacks is
    None or has no components; readers never invent parts. Shapes are documented and not part of the types, because
    until `checked` has run they come from an untrusted file.
    """

    name: str
    """Name of the model."""
    family: str
    """Key of `mien.morphable.formats.FAMILIES`."""
    licence: str
    """Licence terms."""
    mean: np.ndarray
    """(V, 3) float32"""
    triangles: np.ndarray
    """(T, 3) int64, outward by the right-hand rule"""
    identity_basis: np.ndarray
    """(I, V, 3) float32"""
    expression_basis: np.ndarray
    """(E, V, 3) float32"""
    expression_names: tuple[str, ...]
    """One name per expression component."""
    expression_kind: ExpressionKind
    """Unit of the expression coefficients."""
    albedo_mean: np.ndarray | None = None
    """(V, 3) float32"""
    albedo_basis: np.ndarray | None = None
    """(A, V, 3) float32"""
    uv: np.ndarray | None = None
    """(V, 2), one UV map in the unit square, v up"""
    landmarks: dict[int, int] = field(default_factory=dict)
    """iBUG index from 0 → vertex, for the points that the file or its family defines."""
    contour_candidates: np.ndarray | None = None
    """(17, K), vertices that may carry each contour landmark, -1 where a strip is shorter."""
    skinning: SkinningArrays | None = None
    """Joints and skin weights."""
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    """(V,) part masks by name."""
    mirror: np.ndarray | None = None
    """(V,) the corresponding vertex on the other side"""


def checked(model: SourceModel, path: Path) -> SourceModel:
    """Return the model if its parts fit together.

    Raises:
        FormatError: Names the part with a wrong shape, size, index or value.
    """
    count = len(model.mean)
    if not 3 <= count <= MAX_VERTICES:
        raise FormatError(f"{path}: {count} vertices; expected 3 to {MAX_VERTICES}")
    if not 1 <= len(model.triangles) <= MAX_TRIANGLES:
        raise FormatError(f"{path}: {len(model.triangles)} triangles; expected 1 to {MAX_TRIANGLES}")
    for name, array, tail in _numeric_parts(model):
        if array.shape[1:] != tail and array.shape != tail:
            raise FormatError(f"{path}: {name} has shape {array.shape}; expected {tail} for {count} vertices")
        if len(array) > MAX_COMPONENTS and array.ndim == 3:
            raise FormatError(f"{path}: {name} has {len(array)} components; expected at most {MAX_COMPONENTS}")
        if not _all_finite(array):
            raise FormatError(f"{path}: {name} holds values that are not finite")
    for name, indices in _index_parts(model):
        lowest = -1 if name == "contour_candidates" else 0
        if indices.size and not lowest <= int(indices.min()) <= int(indices.max()) < count:
            raise FormatError(
                f"{path}: {name} refers to vertex {int(indices.min())} to {int(indices.max())}; "
                f"expected 0 to {count - 1}"
            )
    if len(model.expression_names) != len(model.expression_basis):
        raise FormatError(
            f"{path}: {len(model.expression_names)} expression names for {len(model.expression_basis)} components"
        )
    size = float((model.mean.max(0) - model.mean.min(0)).max())
    if not SMALLEST_FACE_M <= size <= LARGEST_FACE_M:
        raise FormatError(
            f"{path}: the mean is {size:g} m large; expected {SMALLEST_FACE_M:g} to {LARGEST_FACE_M:g} m, so its "
            "unit is not the one of this format"
        )
    if model.skinning is not None:
        _check_skinning(model.skinning, count, path)
    return model


def _numeric_parts(model: SourceModel) -> list[tuple[str, np.ndarray, tuple[int, ...]]]:
    count = len(model.mean)
    parts = [("mean", model.mean, (count, 3)), ("identity_basis", model.identity_basis, (count, 3))]
    parts.append(("expression_basis", model.expression_basis, (count, 3)))
    if model.albedo_mean is not None:
        parts.append(("albedo_mean", model.albedo_mean, (count, 3)))
    if model.albedo_basis is not None:
        parts.append(("albedo_basis", model.albedo_basis, (count, 3)))
    if model.uv is not None:
        parts.append(("uv", model.uv, (count, 2)))
    parts += [(f"mask_{name}", mask, (count,)) for name, mask in model.masks.items()]
    return parts


def _index_parts(model: SourceModel) -> list[tuple[str, np.ndarray]]:
    parts = [("triangles", model.triangles), ("landmarks", np.array(list(model.landmarks.values()), np.int64))]
    if model.contour_candidates is not None:
        parts.append(("contour_candidates", model.contour_candidates))
    if model.mirror is not None:
        parts.append(("mirror", model.mirror))
    return parts


def _check_skinning(skinning: SkinningArrays, count: int, path: Path) -> None:
    joints = len(skinning.parents)
    expected = {
        "joint_regressor": (joints, count),
        "weights": (count, joints),
        "pose_basis": (9 * (joints - 1), count, 3),
    }
    for name, shape in expected.items():
        array = getattr(skinning, name)
        if array.shape != shape or not _all_finite(array):
            raise FormatError(f"{path}: {name} has shape {array.shape}; expected finite values of shape {shape}")
    parents = skinning.parents
    if joints < 1 or parents[0] != -1 or any(not 0 <= parents[j] < j for j in range(1, joints)):
        raise FormatError(
            f"{path}: kintree_table has the parents {parents.tolist()}; expected -1 first and each parent before its "
            "children"
        )


def _all_finite(array: np.ndarray) -> bool:
    # A sum in double precision is finite exactly if all float32 terms are; it allocates no second array.
    return bool(np.isfinite(array.sum(dtype=np.float64)))


def numbered(prefix: str, count: int) -> tuple[str, ...]:
    """Names for unnamed components: prefix1, prefix2 …"""
    return tuple(f"{prefix}{k + 1}" for k in range(count))


def as_metres(array: np.ndarray, unit_m: float) -> np.ndarray:
    """Float32 copy in metres, from an array in units of `unit_m` metres."""
    return np.multiply(array, np.float32(unit_m), dtype=np.float32, casting="unsafe")


def rows_as_fields(matrix: np.ndarray, scale: np.ndarray | float, path: Path, name: str) -> np.ndarray:
    """Convert (3V, K), one component per column, to (K, V, 3) float32, each component times its scale.

    MATLAB files store matrices column by column, so only the scaling costs time.
    """
    if matrix.ndim != 2 or len(matrix) % 3:
        raise FormatError(f"{path}: {name} has shape {matrix.shape}; expected 3 rows per vertex")
    scale = np.broadcast_to(np.asarray(scale, np.float32).reshape(-1), (matrix.shape[1],))
    fields = np.empty((matrix.shape[1], len(matrix)), np.float32)
    # Blocks of rows fit the cache: transposing a row-major matrix at once takes four times as long.
    for first in range(0, len(matrix), _BLOCK):
        block = slice(first, first + _BLOCK)
        np.multiply(matrix[block].T, scale[:, None], out=fields[:, block], casting="unsafe")
    return fields.reshape(matrix.shape[1], len(matrix) // 3, 3)
