"""FLAME 2020 and 2023: a linear model with neck, jaw and eyes on linear blend skinning.

.pkl (Python 2, with chumpy and scipy.sparse objects; `pickles` reads it without executing it) or .npz with these keys:
v_template (V, 3), f (T, 3), shapedirs (V, 3, 300 + 100), posedirs (V, 3, 36), J_regressor (5, V), weights (V, 5),
kintree_table (2, 5). Metres. Li et al., Learning a model of facial shape and expression from 4D scans, TOG 2017.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mien.errors import FormatError
from mien.io.npz import NpzReader, indices, numbers
from mien.morphable.formats.limits import MAX_COMPONENTS, MAX_VERTICES
from mien.morphable.formats.pickles import read_pickled_arrays, read_pickled_npy
from mien.morphable.formats.source import SkinningArrays, SourceModel, checked, numbered, silently
from mien.morphable.landmark_tables import IBUG_CONTOUR_COUNT
from mien.typing import Int

IDENTITY_COUNT = 300
"""The first components of shapedirs are identity, the others expression."""
_NAMES = ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table")
_LICENCE = "FLAME licence of the file at hand: 2020 non-commercial, 2023 Open CC-BY-4.0; see flame.is.tue.mpg.de"


@silently
def read_flame(path: Path, *, landmarks: Path | None = None) -> SourceModel:
    """Read generic_model.pkl, FLAME2020.pkl, FLAME2023.pkl or an .npz with the same keys.

    Args:
        path: The model file.
        landmarks: Landmark embedding of DECA or of FLAME's tools (.npy or .pkl). Its dynamic contour becomes the
            candidate strips of the contour landmarks.

    Raises:
        FormatError: A file does not follow its format.
    """
    stored: dict[str, Any]
    if path.suffix == ".npz":
        archive = NpzReader(path)
        stored = {name: archive.array(name) for name in _NAMES if name in archive}
    else:
        stored = read_pickled_arrays(path)
    arrays = {name: stored.get(name) for name in _NAMES}
    missing = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if missing:
        raise FormatError(f"{path}: lacks the arrays {', '.join(missing)}; expected a FLAME model")
    model = _assembled({name: numbers(np.asarray(a), name, path) for name, a in arrays.items()}, path)
    if landmarks is None:
        return checked(model, path)
    known, strips = read_landmark_embedding(landmarks, model.triangles)
    return checked(_with_landmarks(model, known, strips), path)


def _assembled(arrays: dict[str, np.ndarray], path: Path) -> SourceModel:
    mean = arrays["v_template"].astype(np.float32)
    if mean.ndim != 2 or mean.shape[1] != 3 or not 3 <= len(mean) <= MAX_VERTICES:
        raise FormatError(f"{path}: v_template is {mean.shape}; expected (V, 3)")
    count = len(mean)
    for name in ("shapedirs", "posedirs"):
        shape = arrays[name].shape
        if len(shape) != 3 or shape[:2] != (count, 3) or shape[2] > MAX_COMPONENTS:
            raise FormatError(f"{path}: {name} is {shape}; expected ({count}, 3, K)")
    tree = arrays["kintree_table"]
    if tree.ndim != 2 or len(tree) != 2 or not tree.size:
        raise FormatError(f"{path}: kintree_table is {tree.shape}; expected (2, J)")
    # The file stores the root's parent, -1, as the largest uint32.
    parents = np.concatenate([[-1], indices(tree[0, 1:], "kintree_table", path)])
    fields = np.ascontiguousarray(arrays["shapedirs"].transpose(2, 0, 1), np.float32)
    return SourceModel(
        name="flame",
        family="flame",
        licence=_LICENCE,
        mean=mean,
        triangles=indices(arrays["f"], "f", path),
        identity_basis=fields[:IDENTITY_COUNT],
        expression_basis=fields[IDENTITY_COUNT:],
        expression_names=numbered("expression", len(fields[IDENTITY_COUNT:])),
        expression_kind="deviation",
        skinning=SkinningArrays(
            joint_regressor=arrays["J_regressor"].astype(np.float32),
            weights=arrays["weights"].astype(np.float32),
            pose_basis=np.ascontiguousarray(arrays["posedirs"].transpose(2, 0, 1), np.float32),
            parents=parents,
        ),
    )


def _with_landmarks(model: SourceModel, known: dict[int, int], strips: np.ndarray | None) -> SourceModel:
    values = {name: getattr(model, name) for name in model.__dataclass_fields__}
    return SourceModel(**(values | {"landmarks": known, "contour_candidates": strips}))


def read_landmark_embedding(path: Path, triangles: np.ndarray) -> tuple[dict[int, int], np.ndarray | None]:
    """Read iBUG points → nearest vertices, and the candidate strips of the dynamic contour if there is one.

    Raises:
        FormatError: The file is not a FLAME landmark embedding of this mesh.
    """
    stored = read_pickled_npy(path) if path.suffix == ".npy" else read_pickled_arrays(path)
    known: dict[int, int] = {}
    if "full_lmk_faces_idx" in stored:
        known |= dict(enumerate(_vertices(stored, "full_lmk", triangles, path).tolist()))
    prefix = next((p for p in ("static_lmk", "lmk") if _face_key(stored, p)), None)
    if prefix is not None:
        inner = _vertices(stored, prefix, triangles, path)
        known |= {IBUG_CONTOUR_COUNT + k: int(vertex) for k, vertex in enumerate(inner)}
    if not known or max(known) >= 68:
        raise FormatError(f"{path}: {len(known)} landmarks; expected a FLAME embedding of 51 or 68 iBUG points")
    if _face_key(stored, "dynamic_lmk") is None:
        return known, None
    dynamic = _vertices(stored, "dynamic_lmk", triangles, path)
    if dynamic.size % IBUG_CONTOUR_COUNT:
        raise FormatError(f"{path}: {dynamic.size} dynamic points; expected a multiple of {IBUG_CONTOUR_COUNT}")
    strips = [np.unique(strip) for strip in dynamic.reshape(-1, IBUG_CONTOUR_COUNT).T]
    longest = max(len(strip) for strip in strips)
    return known, np.stack([np.pad(strip, (0, longest - len(strip)), constant_values=-1) for strip in strips])


def _face_key(stored: dict[str, Any], prefix: str) -> str | None:
    return next((k for k in (f"{prefix}_faces_idx", f"{prefix}_face_idx") if k in stored), None)


def _vertices(stored: dict[str, Any], prefix: str, triangles: np.ndarray, path: Path) -> Int[np.ndarray, "K"]:
    """For each embedded point, the triangle corner with the largest weight."""
    faces = stored.get(_face_key(stored, prefix) or "")
    weights = stored.get(f"{prefix}_bary_coords", stored.get(f"{prefix}_b_coords"))
    if not isinstance(faces, np.ndarray) or not isinstance(weights, np.ndarray):
        raise FormatError(f"{path}: lacks the triangles or weights of {prefix}; expected both")
    faces = indices(faces, prefix, path).reshape(-1)
    weights = numbers(weights, prefix, path).reshape(-1, 3) if weights.size % 3 == 0 else weights.reshape(-1, 1)
    if len(weights) != len(faces) or weights.shape[1] != 3 or not np.isfinite(weights).all():
        raise FormatError(f"{path}: {prefix} has {len(faces)} triangles and weights {weights.shape}; expected 3 each")
    if faces.size and not 0 <= faces.min() <= faces.max() < len(triangles):
        raise FormatError(f"{path}: {prefix} refers to triangle {faces.max()}; expected 0 to {len(triangles) - 1}")
    return triangles[faces, weights.argmax(1)]
