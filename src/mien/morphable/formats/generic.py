"""A face model as an .npz of plain arrays, for models without a reader of their own; specified in docs/formats.md.

format            "mien-npz-1"                       name, licence    texts, optional
length_unit_m     metres per unit of length          colour_scale     value of full colour: 1 or 255, default 1
mean (V, 3)       triangles (T, 3), from 0           identity_basis (I, V, 3), one standard deviation each
expression_basis (E, V, 3), expression_names (E,), expression_kind "strength" or "deviation"     optional
albedo_mean (V, 3), albedo_basis (A, V, 3); uv (V, 2), v up; landmarks68 (68,), -1 for unknown   optional
contour_candidates (17, K), -1 for none; mirror (V,); mask_<part> (V,)                           optional
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mien.errors import FormatError
from mien.io.npz import NpzReader, indices, names_of, numbers
from mien.morphable.formats.source import SourceModel, checked, numbered, silently
from mien.morphable.landmark_tables import PARTS

FORMAT = "mien-npz-1"


@silently
def read_generic(path: Path) -> SourceModel:
    """Read an .npz of this module's layout; raises FormatError."""
    archive = NpzReader(path)
    found = archive.text("format", "")
    if found != FORMAT:
        raise FormatError(f"{path}: format is {found!r}; expected {FORMAT!r}, see docs/formats.md")
    unit, colour = _scalar(archive, "length_unit_m", None), _scalar(archive, "colour_scale", 1.0)
    kind = archive.text("expression_kind", "strength")
    if kind not in ("strength", "deviation"):
        raise FormatError(f"{path}: expression_kind is {kind!r}; expected 'strength' or 'deviation'")
    mean = _field(archive, "mean", unit, 2)
    expression = _field(archive, "expression_basis", unit, 3) if "expression_basis" in archive else None
    if expression is None:
        expression = np.zeros((0, *mean.shape), np.float32)
    names = numbered("expression", len(expression))
    if "expression_names" in archive and len(expression):
        names = names_of(archive.array("expression_names"), "expression_names", path)
    albedo_mean = _field(archive, "albedo_mean", 1 / colour, 2) if "albedo_mean" in archive else None
    known = indices(archive.array("landmarks68"), "landmarks68", path) if "landmarks68" in archive else np.array([])
    if known.ndim != 1 or len(known) not in (0, 68):
        raise FormatError(f"{path}: landmarks68 is {known.shape}; expected 68 vertices, -1 for unknown")
    model = SourceModel(
        name=archive.text("name", path.stem),
        family="generic",
        licence=archive.text("licence", "not stated in the file"),
        mean=mean,
        triangles=indices(archive.array("triangles"), "triangles", path),
        identity_basis=_field(archive, "identity_basis", unit, 3),
        expression_basis=expression,
        expression_names=names,
        expression_kind="strength" if kind == "strength" else "deviation",
        albedo_mean=albedo_mean,
        albedo_basis=_field(archive, "albedo_basis", 1 / colour, 3) if "albedo_basis" in archive else None,
        uv=_field(archive, "uv", 1.0, 2) if "uv" in archive else None,
        landmarks={k: int(vertex) for k, vertex in enumerate(known) if vertex >= 0},
        contour_candidates=_indices(archive, "contour_candidates"),
        mirror=_indices(archive, "mirror"),
        masks={part: _field(archive, f"mask_{part}", 1.0, 1) for part in PARTS if f"mask_{part}" in archive},
    )
    return checked(model, path)


def write_generic(path: Path, model: SourceModel) -> None:
    """Write a model in this module's layout, in metres and colours 0 to 1; raises OSError."""
    arrays: dict[str, np.ndarray] = {
        "format": np.array(FORMAT),
        "name": np.array(model.name),
        "licence": np.array(model.licence),
        "length_unit_m": np.array(1.0),
        "expression_kind": np.array(model.expression_kind),
        "mean": model.mean,
        "triangles": model.triangles.astype(np.int32),
        "identity_basis": model.identity_basis,
        "expression_basis": model.expression_basis,
        "expression_names": np.array(model.expression_names, dtype=np.str_),
    }
    for name in ("albedo_mean", "albedo_basis", "uv", "contour_candidates", "mirror"):
        if getattr(model, name) is not None:
            arrays[name] = getattr(model, name)
    if model.landmarks:
        arrays["landmarks68"] = np.array([model.landmarks.get(k, -1) for k in range(68)], np.int32)
    arrays |= {f"mask_{part}": mask for part, mask in model.masks.items()}
    with path.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def _field(archive: NpzReader, name: str, unit: float, rank: int) -> np.ndarray:
    array = numbers(archive.array(name), name, archive.path)
    if array.ndim != rank:
        raise FormatError(f"{archive.path}: {name} is {array.shape}; expected {rank} dimensions")
    if unit == 1.0:
        return np.ascontiguousarray(array, np.float32)
    return np.ascontiguousarray(np.multiply(array, unit, dtype=np.float32, casting="unsafe"))


def _indices(archive: NpzReader, name: str) -> np.ndarray | None:
    return indices(archive.array(name), name, archive.path) if name in archive else None


def _scalar(archive: NpzReader, name: str, default: float | None) -> float:
    if name not in archive and default is not None:
        return default
    array = numbers(archive.array(name), name, archive.path)
    if array.shape != () or not np.isfinite(array) or array <= 0:
        raise FormatError(f"{archive.path}: {name} is {array}; expected one positive number")
    return float(array)
