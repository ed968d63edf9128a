"""eos models (.bin, cereal), such as the Surrey Face Model, with their blendshapes.

Versions 1 to 4 of `eos::morphablemodel::MorphableModel`. A PcaModel is mean, orthonormal basis, eigenvalues
(**variances**) and triangles; colours 0 to 1; millimetres; texture coordinates have v down. Huber et al., VISAPP 2016.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mien.errors import FormatError
from mien.morphable.formats.cereal import CerealStream
from mien.morphable.formats.limits import MAX_COMPONENTS
from mien.morphable.formats.source import SourceModel, checked, numbered, rows_as_fields, silently
from mien.morphable.model import ExpressionKind

MILLIMETRE = 1e-3
_NEWEST_VERSION = 4
_LICENCE = "licence of the file at hand; sfm_shape_3448 of eos: non-commercial, see github.com/patrikhuber/eos"

# iBUG point (from 1) and vertex (from 0) of sfm_shape_3448; the table of eos, share/ibug_to_sfm.txt.
_LANDMARKS = {
    9: 33, 18: 225, 19: 229, 20: 233, 21: 2086, 22: 157, 23: 590, 24: 2091, 25: 666, 26: 662, 27: 658, 28: 2842,
    29: 379, 30: 272, 31: 114, 32: 100, 33: 2794, 34: 270, 35: 2797, 36: 537, 37: 177, 38: 172, 39: 191, 40: 181,
    41: 173, 42: 174, 43: 614, 44: 624, 45: 605, 46: 610, 47: 607, 48: 606, 49: 398, 50: 315, 51: 413, 52: 329,
    53: 825, 54: 736, 55: 812, 56: 841, 57: 693, 58: 411, 59: 264, 60: 431, 62: 416, 63: 423, 64: 828, 66: 817,
    67: 442, 68: 404,
}  # fmt: skip
_SFM_COUNT = 3448


@dataclass(frozen=True, eq=False)
class _Pca:
    mean: np.ndarray
    basis: np.ndarray
    triangles: np.ndarray


@dataclass(frozen=True, eq=False)
class _Expressions:
    basis: np.ndarray
    names: tuple[str, ...]
    kind: ExpressionKind


@silently
def read_surrey(path: Path, *, blendshapes: Path | None = None) -> SourceModel:
    """Read an eos model.

    Args:
        path: The model file.
        blendshapes: Blendshape file that replaces the model's own expressions.

    Raises:
        FormatError: A file does not follow its format.
    """
    stream = CerealStream(path)
    version = stream.version()
    if not 1 <= version <= _NEWEST_VERSION:
        raise FormatError(f"{path}: eos model of version {version}; expected 1 to {_NEWEST_VERSION}")
    shape, colour = _pca(stream, "shape", MILLIMETRE), _pca(stream, "colour", 1.0)
    expressions, expression_mean = _expressions(stream) if version >= 2 else (None, None)
    if version >= 3 and stream.present("the landmark definitions"):
        for _ in range(_checked_count(stream, "landmark definitions", 10_000)):
            stream.text("a landmark's name")
            stream.integer("a landmark's vertex")
    coordinates = stream.rows("the texture coordinates", "<f8", 2)
    has_own_triangles = version >= 4 and len(stream.rows("the texture triangles", "<i4", 3)) > 0
    if not stream.at_end:
        raise FormatError(f"{path}: has more data after the model; expected its end")
    if blendshapes is not None:
        other = CerealStream(blendshapes)
        expressions, expression_mean = _blendshapes(other), None
        if not other.at_end:
            raise FormatError(f"{blendshapes}: has more data after the blendshapes; expected their end")
    count = len(shape.mean)
    if expressions is None:
        expressions = _Expressions(np.zeros((0, count, 3), np.float32), (), "strength")
    one_chart = len(coordinates) == count and not has_own_triangles
    has_colour = len(colour.mean) > 0
    model = SourceModel(
        name="surrey",
        family="surrey",
        licence=_LICENCE,
        mean=shape.mean if expression_mean is None else shape.mean + _matching(expression_mean, shape.mean, path),
        triangles=shape.triangles,
        identity_basis=shape.basis,
        expression_basis=expressions.basis,
        expression_names=expressions.names,
        expression_kind=expressions.kind,
        albedo_mean=colour.mean if has_colour else None,
        albedo_basis=colour.basis if has_colour else None,
        uv=np.stack([coordinates[:, 0], 1 - coordinates[:, 1]], 1).astype(np.float32) if one_chart else None,
        landmarks={k - 1: vertex for k, vertex in _LANDMARKS.items()} if count == _SFM_COUNT else {},
    )
    return checked(model, path)


def _pca(stream: CerealStream, what: str, unit: float) -> _Pca:
    mean, basis = stream.matrix(f"the {what} mean"), stream.matrix(f"the {what} basis")
    variances = stream.matrix(f"the {what} eigenvalues").reshape(-1)
    triangles = stream.rows(f"the {what} triangles", "<i4", 3).astype(np.int64)
    if mean.size == 0:
        return _Pca(np.zeros((0, 3), np.float32), np.zeros((0, 0, 3), np.float32), triangles)
    if mean.shape[1] != 1 or mean.size % 3 or basis.shape != (mean.size, len(variances)):
        raise FormatError(
            f"{stream.path}: the {what} basis is {basis.shape}; expected {mean.size} x {len(variances)} for its mean "
            "and eigenvalues"
        )
    if len(variances) > MAX_COMPONENTS or not np.isfinite(variances).all() or (variances < 0).any():
        raise FormatError(f"{stream.path}: the {what} eigenvalues are not variances; expected finite numbers from 0")
    fields = rows_as_fields(basis, np.sqrt(variances.astype(np.float64)) * unit, stream.path, f"the {what} basis")
    return _Pca((mean.astype(np.float64) * unit).astype(np.float32).reshape(-1, 3), fields, triangles)


def _expressions(stream: CerealStream) -> tuple[_Expressions | None, np.ndarray | None]:
    """Read the optional expressions: blendshapes, or a PCA model whose mean is to be added to the face's mean."""
    if not stream.present("the expression model"):
        return None, None
    alternative = stream.variant()
    if alternative == 1:
        return _blendshapes(stream), None
    if alternative != 0:
        raise FormatError(f"{stream.path}: expression model of kind {alternative}; expected 0 or 1")
    pca = _pca(stream, "expression", MILLIMETRE)
    return _Expressions(pca.basis, numbered("expression", len(pca.basis)), "deviation"), pca.mean


def _blendshapes(stream: CerealStream) -> _Expressions:
    names, fields = [], []
    for _ in range(_checked_count(stream, "blendshapes", MAX_COMPONENTS)):
        names.append(stream.text("a blendshape's name"))
        offsets = stream.matrix(f"the blendshape {names[-1]!r}")
        if offsets.size % 3 or (fields and offsets.size != fields[0].size):
            raise FormatError(f"{stream.path}: {names[-1]!r} has {offsets.size} values; expected 3 per vertex")
        fields.append(offsets.reshape(-1, 3).astype(np.float32) * np.float32(MILLIMETRE))
    if not fields:
        raise FormatError(f"{stream.path}: no blendshapes; expected at least one")
    return _Expressions(np.stack(fields), tuple(names), "strength")


def _checked_count(stream: CerealStream, what: str, most: int) -> int:
    count = stream.length(what)
    if count > most:
        raise FormatError(f"{stream.path}: {count} {what}; expected at most {most}")
    return count


def _matching(part: np.ndarray, mean: np.ndarray, path: Path) -> np.ndarray:
    if part.shape != mean.shape:
        raise FormatError(f"{path}: the expression mean has {len(part)} vertices; expected {len(mean)}")
    return part
