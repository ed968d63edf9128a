"""The Basel Face Model 2009, alone or with FaceWarehouse's expressions as Deep3DFaceRecon joins them.

    01_MorphableModel.mat    53,490 vertices, micrometres, colours 0 to 255, triangles from 1 and wound inwards
    Exp_Pca.bin              int32 count, float32 mean (3 * 53215), float32 components (count x 3 * 53215)
    std_exp.txt              standard deviations of the expression components
    BFM_exp_idx.mat          `trimIndex`: the 53,215 of the 53,490 vertices, from 1
    BFM_front_idx.mat        `idx`: Deep3D's 35,709 of the 53,215 vertices, from 1

Paysan et al., AVSS 2009; Cao et al., FaceWarehouse, TVCG 2014. `shapeEV` and `texEV` are standard deviations. The mean
expression of Exp_Pca.bin is left out, as Deep3DFaceRecon leaves it out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mien.errors import FormatError
from mien.io.npz import indices
from mien.io.reading import file_size
from mien.morphable.formats.limits import MAX_COMPONENTS
from mien.morphable.formats.mat5 import read_mat
from mien.morphable.formats.source import SourceModel, checked, numbered, rows_as_fields, silently
from mien.typing import Int

MODEL_FILE, EXPRESSION_FILE, DEVIATION_FILE = "01_MorphableModel.mat", "Exp_Pca.bin", "std_exp.txt"
TRIM_FILE, FRONT_FILE = "BFM_exp_idx.mat", "BFM_front_idx.mat"
MICROMETRE = 1e-6
_LICENCE = "Basel Face Model licence: non-commercial research, not to be passed on; see faces.dmi.unibas.ch/bfm"

# iBUG point (from 1) and vertex (from 0) of the full mesh; the table of eos, share/ibug_to_bfm.txt.
_LANDMARKS = {
    18: 38792, 20: 40087, 22: 40514, 23: 41091, 25: 41511, 27: 42825, 31: 8319, 34: 8334, 37: 2088, 40: 5959,
    43: 10603, 46: 14472, 49: 5006, 52: 8344, 55: 11714, 58: 8374, 63: 8354, 67: 8366,
}  # fmt: skip
_FULL_COUNT = 53_490


@silently
def read_bfm2009(path: Path, *, front: bool = False) -> SourceModel:
    """Read 01_MorphableModel.mat, or a folder that holds it.

    Args:
        path: The file or folder. With Exp_Pca.bin in the folder, expressions on 53,215 vertices are read too.
        front: Reduce the mesh to Deep3D's 35,709 vertices, which needs BFM_front_idx.mat.

    Raises:
        FormatError: A file is missing or does not follow its format.
    """
    file = path / MODEL_FILE if path.is_dir() else path
    arrays = _model_arrays(file)
    count = len(arrays["shapeMU"].reshape(-1)) // 3
    kept = np.arange(count)
    expression = np.zeros((0, count, 3), np.float32)
    if path.is_dir() and (path / EXPRESSION_FILE).is_file():
        kept = _index_list(path / TRIM_FILE, "trimIndex", count)
        expression = _expression_basis(path, len(kept))
    if front:
        if not path.is_dir():
            raise FormatError(f"{path}: front needs {FRONT_FILE}; give the folder that holds both files")
        chosen = _index_list(path / FRONT_FILE, "idx", len(kept))
        kept, expression = kept[chosen], expression[:, chosen] if len(expression) else expression[:, : len(chosen)]
    return checked(_assembled(file, arrays, kept, expression), file)


def _model_arrays(file: Path) -> dict[str, np.ndarray]:
    names = ("shapeMU", "shapePC", "shapeEV", "texMU", "texPC", "texEV", "tl")
    arrays = read_mat(file, frozenset(names))
    missing = [name for name in names if name not in arrays]
    if missing:
        raise FormatError(f"{file}: lacks {', '.join(missing)}; expected the Basel Face Model 2009")
    rows = arrays["shapeMU"].size
    if rows == 0 or rows % 3 or arrays["texMU"].size != rows:
        raise FormatError(f"{file}: shapeMU has {rows} and texMU {arrays['texMU'].size} values; expected 3 per vertex")
    for part in ("shape", "tex"):
        basis, deviations = arrays[f"{part}PC"], arrays[f"{part}EV"].reshape(-1)
        if basis.ndim != 2 or basis.shape != (rows, len(deviations)) or len(deviations) > MAX_COMPONENTS:
            raise FormatError(f"{file}: {part}PC is {basis.shape}; expected ({rows}, {len(deviations)}) as in {part}EV")
    return arrays


def _index_list(file: Path, name: str, count: int) -> Int[np.ndarray, "K"]:
    """Read vertex numbers from 1, return indices from 0."""
    arrays = read_mat(file, frozenset((name,)))
    if name not in arrays:
        raise FormatError(f"{file}: lacks {name!r}; expected a list of vertices")
    chosen = indices(arrays[name], name, file).reshape(-1) - 1
    if not chosen.size or not 0 <= chosen.min() <= chosen.max() < count:
        raise FormatError(f"{file}: {name} refers outside the {count} vertices; expected 1 to {count}")
    if len(np.unique(chosen)) != len(chosen):
        raise FormatError(f"{file}: {name} lists a vertex twice; expected each once")
    return chosen


def _expression_basis(folder: Path, count: int) -> np.ndarray:
    file = folder / EXPRESSION_FILE
    size = file_size(file)
    components = int(np.fromfile(file, "<i4", 1)[0]) if size >= 4 else 0
    stored, rest = divmod(size - 4, 12 * (components + 1)) if 0 < components <= MAX_COMPONENTS else (0, 0)
    if stored < count or (stored > count and rest == 0):  # more: another mesh's file, unless the rest is incomplete
        raise FormatError(
            f"{file}: {components} components in {size} bytes; expected {4 * (1 + 3 * count * (components + 1))} "
            f"bytes for {count} vertices"
        )
    basis = np.fromfile(file, "<f4", 3 * count * components, offset=4 * (1 + 3 * count)).reshape(components, count, 3)
    basis *= (_deviations(folder / DEVIATION_FILE, components) * np.float32(MICROMETRE))[:, None, None]
    return basis


def _deviations(file: Path, components: int) -> np.ndarray:
    if file_size(file) > 1 << 20:
        raise FormatError(f"{file}: too large for a list of {components} numbers")
    try:
        values = np.array(file.read_text("ascii").split(), np.float32)
    except ValueError as error:
        raise FormatError(f"{file}: not a list of numbers ({error})") from error
    if len(values) < components:
        raise FormatError(f"{file}: {len(values)} numbers; expected {components}")
    return values[:components]


def _assembled(file: Path, arrays: dict[str, np.ndarray], kept: np.ndarray, expression: np.ndarray) -> SourceModel:
    full = len(arrays["shapeMU"].reshape(-1)) // 3
    whole = len(kept) == full
    place = np.full(full, -1)
    place[kept] = np.arange(len(kept))
    triangles = indices(arrays["tl"], "tl", file) - 1
    if triangles.ndim != 2 or triangles.shape[1] != 3 or not 0 <= triangles.min(initial=0) <= triangles.max() < full:
        raise FormatError(f"{file}: tl is {triangles.shape} and refers outside the mesh; expected (T, 3), 1 to {full}")
    triangles = place[triangles[:, [0, 2, 1]]]
    identity = rows_as_fields(arrays["shapePC"], arrays["shapeEV"] * MICROMETRE, file, "shapePC")
    albedo = rows_as_fields(arrays["texPC"], arrays["texEV"] / 255, file, "texPC")
    mean = arrays["shapeMU"].reshape(-1, 3).astype(np.float32) * np.float32(MICROMETRE)
    albedo_mean = arrays["texMU"].reshape(-1, 3).astype(np.float32) / np.float32(255)
    known = _LANDMARKS if full == _FULL_COUNT else {}
    return SourceModel(
        name="bfm2009",
        family="bfm2009",
        licence=_LICENCE,
        mean=mean[kept],
        triangles=triangles[(triangles >= 0).all(1)],
        identity_basis=identity if whole else identity[:, kept],
        expression_basis=expression,
        expression_names=numbered("expression", len(expression)),
        expression_kind="deviation",
        albedo_mean=albedo_mean[kept],
        albedo_basis=albedo if whole else albedo[:, kept],
        landmarks={point - 1: int(place[vertex]) for point, vertex in known.items() if place[vertex] >= 0},
    )
