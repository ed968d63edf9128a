"""`BFM_model_front.mat` of Deep3DFaceRecon: the front of the Basel Face Model 2009 with 80 + 64 + 80 components.

Decimetres, colours 0 to 255, all indices from 1; bases include their standard deviations. Deng et al., CVPRW 2019. The
mean is moved so that the centroid of its vertices is the origin, as Deep3DFaceRecon's code does on loading.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mien.errors import FormatError
from mien.io.npz import indices
from mien.morphable.formats.mat5 import read_mat
from mien.morphable.formats.source import SourceModel, checked, numbered, rows_as_fields, silently

DECIMETRE = 0.1
_NAMES = ("meanshape", "meantex", "idBase", "exBase", "texBase", "tri", "keypoints", "skinmask")
_LICENCE = "made from the Basel Face Model 2009: non-commercial research, not to be passed on"


@silently
def read_deep3d(path: Path) -> SourceModel:
    """Read BFM_model_front.mat; raises FormatError."""
    arrays = read_mat(path, frozenset(_NAMES))
    missing = [name for name in _NAMES if name not in arrays]
    if missing:
        raise FormatError(f"{path}: lacks {', '.join(missing)}; expected Deep3DFaceRecon's BFM_model_front.mat")
    count, rest = divmod(arrays["meanshape"].size, 3)
    if rest or arrays["meantex"].size != 3 * count or arrays["skinmask"].size != count:
        raise FormatError(
            f"{path}: meanshape, meantex and skinmask have {arrays['meanshape'].size}, {arrays['meantex'].size} and "
            f"{arrays['skinmask'].size} values; expected 3, 3 and 1 per vertex"
        )
    for name in ("idBase", "exBase", "texBase"):
        if arrays[name].ndim != 2 or len(arrays[name]) != 3 * count:
            raise FormatError(f"{path}: {name} is {arrays[name].shape}; expected {3 * count} rows")
    mean = arrays["meanshape"].reshape(-1, 3).astype(np.float32)
    keypoints = indices(arrays["keypoints"], "keypoints", path).reshape(-1) - 1
    if len(keypoints) != 68:
        raise FormatError(f"{path}: {len(keypoints)} keypoints; expected 68")
    expression = rows_as_fields(arrays["exBase"], DECIMETRE, path, "exBase")
    model = SourceModel(
        name="deep3d",
        family="deep3d",
        licence=_LICENCE,
        mean=(mean - mean.mean(0)) * np.float32(DECIMETRE),
        triangles=indices(arrays["tri"], "tri", path) - 1,
        identity_basis=rows_as_fields(arrays["idBase"], DECIMETRE, path, "idBase"),
        expression_basis=expression,
        expression_names=numbered("expression", len(expression)),
        expression_kind="deviation",
        albedo_mean=arrays["meantex"].reshape(-1, 3).astype(np.float32) / np.float32(255),
        albedo_basis=rows_as_fields(arrays["texBase"], 1 / 255, path, "texBase"),
        landmarks=dict(enumerate(keypoints.tolist())),
        masks={"skin": arrays["skinmask"].reshape(-1).astype(np.float32)},
    )
    return checked(model, path)
