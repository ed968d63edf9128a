"""The Basel Face Models 2017 and 2019 (.h5, full head and face12): shape, expression and colour.

`/{shape,expression,color}/model/{mean,pcaBasis,pcaVariance}` with the basis (3V, K) and **variances**;
`/shape/representer/cells` (3, T) from 0. Millimetres, colours 0 to 1. Gerig et al., Morphable Face Models: An Open
Framework, FG 2018. The mean is that of the shape plus that of the expressions, as the authors' software has it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mien.errors import FormatError
from mien.io.npz import indices
from mien.morphable.formats.hdf5 import read_hdf5
from mien.morphable.formats.limits import MAX_COMPONENTS
from mien.morphable.formats.source import SourceModel, checked, numbered, silently

MILLIMETRE = 1e-3
_PARTS = ("shape", "expression", "color")
_ARRAYS = ("mean", "pcaBasis", "pcaVariance")
_CELLS = "shape/representer/cells"
_LICENCE = "Basel Face Model licence: non-commercial research, not to be passed on; see faces.dmi.unibas.ch/bfm"

# iBUG point (from 1) and vertex (from 0) of model2017-1_bfm_nomouth; the table of eos.
_LANDMARKS = {
    9: 47846, 31: 8156, 37: 2602, 40: 5830, 43: 10390, 46: 13481, 49: 5522, 50: 6026, 51: 7355, 52: 8181, 53: 9007,
    54: 10329, 55: 10857, 56: 9730, 57: 8670, 58: 8199, 59: 7726, 60: 6898, 61: 6291, 62: 7364, 63: 8190, 64: 9016,
    65: 10088, 66: 8663, 67: 8191, 68: 7719,
}  # fmt: skip
_NOMOUTH_COUNT = 53_149


@silently
def read_bfm2017(path: Path) -> SourceModel:
    """Read an .h5 of 2017 or 2019; raises FormatError, and BackendUnavailable without h5py."""
    names = tuple(f"{part}/model/{array}" for part in _PARTS for array in _ARRAYS)
    bases = frozenset(f"{part}/model/pcaBasis" for part in _PARTS)
    arrays = read_hdf5(path, (*names, _CELLS), transposed=bases)
    missing = [name for name in (*names[:3], _CELLS) if name not in arrays]
    if missing:
        raise FormatError(f"{path}: lacks {', '.join(missing)}; expected a Basel Face Model of 2017 or 2019")
    mean, identity = _part(arrays, "shape", MILLIMETRE, path)
    expression = np.zeros((0, len(mean), 3), np.float32)
    albedo_mean = albedo_basis = None
    if "expression/model/mean" in arrays:
        expression_mean, expression = _part(arrays, "expression", MILLIMETRE, path)
        _same_size(expression_mean, mean, "expression", path)
        mean = mean + expression_mean
    if "color/model/mean" in arrays:
        albedo_mean, albedo_basis = _part(arrays, "color", 1.0, path)
        _same_size(albedo_mean, mean, "color", path)
    cells = indices(arrays[_CELLS], _CELLS, path)
    if cells.ndim != 2 or 3 not in cells.shape:
        raise FormatError(f"{path}: {_CELLS} is {cells.shape}; expected (3, T)")
    model = SourceModel(
        name="bfm2017",
        family="bfm2017",
        licence=_LICENCE,
        mean=mean,
        triangles=np.ascontiguousarray(cells.T if len(cells) == 3 else cells),
        identity_basis=identity,
        expression_basis=expression,
        expression_names=numbered("expression", len(expression)),
        expression_kind="deviation",
        albedo_mean=albedo_mean,
        albedo_basis=albedo_basis,
        landmarks={k - 1: vertex for k, vertex in _LANDMARKS.items()} if len(mean) == _NOMOUTH_COUNT else {},
    )
    return checked(model, path)


def _part(arrays: dict[str, np.ndarray], part: str, unit: float, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean (V, 3) and basis (K, V, 3) of shape, expression or colour, in mien's units."""
    mean, basis, variance = (arrays.get(f"{part}/model/{name}") for name in _ARRAYS)
    if mean is None or basis is None or variance is None:
        raise FormatError(f"{path}: {part}/model is incomplete; expected {', '.join(_ARRAYS)}")
    mean, variance = mean.reshape(-1), variance.reshape(-1)
    if mean.size % 3 or basis.shape != (len(variance), mean.size) or len(variance) > MAX_COMPONENTS:
        raise FormatError(
            f"{path}: {part}/model/pcaBasis is {basis.shape[::-1]}; expected ({mean.size}, {variance.size})"
        )
    if not np.isfinite(variance).all() or (variance < 0).any():
        raise FormatError(f"{path}: {part}/model/pcaVariance holds {variance.min()}; expected no negative variance")
    deviations = (np.sqrt(variance.astype(np.float64)) * unit).astype(np.float32)
    in_place = basis if basis.dtype == np.float32 else None
    fields = np.multiply(basis, deviations[:, None], out=in_place, dtype=np.float32, casting="unsafe")
    return (mean.astype(np.float64) * unit).astype(np.float32).reshape(-1, 3), fields.reshape(len(basis), -1, 3)


def _same_size(part: np.ndarray, mean: np.ndarray, name: str, path: Path) -> None:
    if part.shape != mean.shape:
        raise FormatError(f"{path}: {name} has {len(part)} vertices and shape {len(mean)}; expected the same number")
