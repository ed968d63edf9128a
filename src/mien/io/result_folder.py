"""The numbers of a result folder: reconstruction.npz, coefficients.json and the UV maps that `load` may need.

    reconstruction.npz    geometry, colours and maps: the arrays of `ARRAYS` and `MAP_ARRAYS`
    coefficients.json     coefficients, camera, pose, lighting, errors, times and the scales of the maps
    texture.png           8 bits, sRGB
    texture_offset.png    8 bits, steps of `texture_offset_per_step` around 128
    displacement.png      16 bits, steps of `displacement_m_per_step` around 32768

`Reconstruction.load` reads the first two. Results of mien 0.1 have the maps in the PNG files alone, and the file
vertex_albedo.npy, (V, 3) float32. Reading never unpickles. docs/outputs.md describes all files of a result folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import msgspec
import numpy as np

from mien import __version__
from mien.camera import FocalSource, to_model_axes
from mien.errors import FormatError
from mien.io.formats import open_image
from mien.io.npz import NpzReader, read_npy, write_npz
from mien.io.pixels import to_uint8
from mien.io.png import write_png
from mien.io.reading import converted, file_size, read_json
from mien.io.result_files import (
    ARRAYS_FILE,
    COEFFICIENTS_FILE,
    DISPLACEMENT_FILE,
    TEXTURE_FILE,
    TEXTURE_OFFSET_FILE,
    VERTEX_ALBEDO_FILE,
)
from mien.quality import FaceQuality

if TYPE_CHECKING:
    import mien.result  # which imports this module

FORMAT = "mien-reconstruction-1"

ARRAYS: dict[str, tuple[type[np.generic], tuple[str | int, ...]]] = {
    "vertices": (np.float32, ("V", 3)),
    "triangles": (np.int32, ("T", 3)),
    "uv": (np.float32, ("V", 2)),
    "xy": (np.float32, ("V", 2)),
    "visible": (np.bool_, ("V",)),
    "landmarks68": (np.float32, (68, 2)),
    "landmarks68_vertices": (np.int32, (68,)),
    "image_size": (np.int32, (2,)),
}
"""Keys, types and shapes of the geometry in reconstruction.npz."""
MAP_ARRAYS: dict[str, tuple[type[np.generic], tuple[str | int, ...]]] = {
    "vertex_albedo": (np.float32, ("V", 3)),
    "texture": (np.uint8, ("S", "S", 3)),
    "texture_offset": (np.uint8, ("D", "D", 3)),
    "displacement": (np.uint16, ("D", "D")),
}
"""Colours and maps in reconstruction.npz, the maps with the steps of the PNG files; absent from results of mien 0.1."""

# One micrometre is far below what a photo shows, and ±32 mm far above any displacement.
_DISPLACEMENT_STEP_M = 1e-6
_DISPLACEMENT_ZERO = 32768
_OFFSET_STEP = 1 / 254
_OFFSET_ZERO = 128
_LARGEST_MAP = 2048
"""Twice the side of the largest map that mien writes; a small file could claim a picture of any size."""
_LARGEST_SIZES: dict[str | int, int] = {"V": 1_000_000, "T": 2_000_000, "S": _LARGEST_MAP, "D": _LARGEST_MAP}
_MAX_BYTES = 256 << 20
"""All arrays of a result of the largest sizes."""
_LARGEST = float(np.finfo(np.float32).max)


def write_result_files(face: mien.result.Reconstruction, folder: Path) -> None:
    """Write reconstruction.npz and coefficients.json into an existing folder: what `load_result` needs.

    Args:
        face: The result.
        folder: Where the files go.

    Raises:
        OSError: A file cannot be written.
    """
    arrays = _stored_arrays(face)
    write_npz(arrays, folder / ARRAYS_FILE)
    _write_coefficients(face, arrays, folder)


def _stored_arrays(face: mien.result.Reconstruction) -> dict[str, np.ndarray]:
    """The content of reconstruction.npz."""
    arrays = {key: np.asarray(getattr(face, key)).astype(dtype, copy=False) for key, (dtype, _) in ARRAYS.items()}
    arrays["vertex_albedo"] = face.vertex_albedo.astype(np.float32)
    arrays["texture"] = to_uint8(face.texture)
    return arrays | _offset_steps(face)


def _arrays_sha256(arrays: dict[str, np.ndarray]) -> str:
    """The fingerprint in coefficients.json of the arrays that belong to it."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(f"{key} {arrays[key].dtype.str} {arrays[key].shape}\n".encode())
        digest.update(arrays[key].tobytes())
    return digest.hexdigest()


def write_coefficients(face: mien.result.Reconstruction, folder: Path) -> None:
    """Write coefficients.json into an existing folder.

    Args:
        face: The result.
        folder: Where the file goes.

    Raises:
        OSError: The file cannot be written.
    """
    _write_coefficients(face, _stored_arrays(face), folder)


def _write_coefficients(face: mien.result.Reconstruction, arrays: dict[str, np.ndarray], folder: Path) -> None:
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in _coefficients(face, arrays).items())
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    (folder / COEFFICIENTS_FILE).write_text(text, encoding="utf-8")


def write_offset_maps(face: mien.result.Reconstruction, folder: Path) -> None:
    """Write texture_offset.png and displacement.png into an existing folder.

    Args:
        face: The result.
        folder: Where the files go.

    Raises:
        OSError: A file cannot be written.
    """
    steps = _offset_steps(face)
    write_png(steps["displacement"], folder / DISPLACEMENT_FILE)
    write_png(steps["texture_offset"], folder / TEXTURE_OFFSET_FILE)


def _offset_steps(face: mien.result.Reconstruction) -> dict[str, np.ndarray]:
    """The maps of the detail step as whole numbers of steps."""
    displacement_step, offset_step = _step_sizes(face)
    displacement = np.rint(face.displacement / displacement_step) + _DISPLACEMENT_ZERO
    offset = np.rint(face.texture_offset / offset_step) + _OFFSET_ZERO
    return {"displacement": displacement.astype(np.uint16), "texture_offset": offset.astype(np.uint8)}


def _step_sizes(face: mien.result.Reconstruction) -> tuple[float, float]:
    """Steps of displacement (metres) and texture offset; larger than usual where a value would not fit."""
    return (
        max(_DISPLACEMENT_STEP_M, float(np.abs(face.displacement).max()) / 32767),
        max(_OFFSET_STEP, float(np.abs(face.texture_offset).max()) / 127),
    )


def _coefficients(face: mien.result.Reconstruction, arrays: dict[str, np.ndarray]) -> dict[str, object]:
    """The content of coefficients.json."""
    expression = _numbers(face.expression)
    displacement_step, offset_step = _step_sizes(face)
    named = bool(face.expression_names)
    return {
        "format": FORMAT,
        "mien_version": __version__,
        "arrays_sha256": _arrays_sha256(arrays),
        "model": face.model_name,
        "image_size_px": list(face.image_size),
        "camera": {
            "focal_px": float(face.focal_px),
            "focal_source": face.focal_source,
            "centre_px": _numbers(face.centre_px),
        },
        "pose": {
            "scale": float(face.scale),
            "rotation": _numbers(face.rotation),
            "translation_m": _numbers(face.translation),
        },
        "matrices": {
            "camera": _numbers(face.camera_matrix),
            "view": _numbers(face.view_matrix),
            "view_opengl": _numbers(face.view_matrix_opengl),
            "projection_opengl": _numbers(face.projection_matrix_opengl()),
        },
        "identity": _numbers(face.identity),
        "expression": dict(zip(face.expression_names, expression, strict=True)) if named else expression,
        "albedo": _numbers(face.albedo),
        "lighting": _numbers(face.lighting),
        "hair_colour": None if face.hair_colour is None else _numbers(face.hair_colour),
        "errors": {
            "landmark": _finite_or_none(face.landmark_error),
            "photometric": _finite_or_none(face.photometric_error),
        },
        "quality": None if face.quality is None else msgspec.to_builtins(face.quality),
        "stage_seconds": [[name, round(seconds, 4)] for name, seconds in face.stage_seconds],
        "maps": {
            "displacement_m_per_step": displacement_step,
            "displacement_zero": _DISPLACEMENT_ZERO,
            "texture_offset_per_step": offset_step,
            "texture_offset_zero": _OFFSET_ZERO,
        },
    }


def load_result(
    path: str | os.PathLike[str], *, build: Callable[..., mien.result.Reconstruction]
) -> mien.result.Reconstruction:
    """Read a result folder.

    Args:
        path: The folder, or the `reconstruction.npz` in it.
        build: The class of the result; this module does not import it, since that class imports this module.

    Returns:
        The result.

    Raises:
        FormatError: A file is missing, damaged or of another version; the message names it.
    """
    folder = folder_of(path)
    arrays = _read_arrays(folder / ARRAYS_FILE)
    stored = _Coefficients(folder / COEFFICIENTS_FILE)
    stored.check_arrays(arrays)
    rotation, scale = stored.array("pose", "rotation", shape=(3, 3)), stored.number("pose", "scale")
    translation = stored.array("pose", "translation_m", shape=(3,))
    if scale <= 0:
        raise FormatError(f"{stored.path}: pose.scale={scale:g} is out of range; it must be positive")
    turned = to_model_axes(arrays["vertices"] - translation)
    if "texture" not in arrays:
        arrays |= _read_map_files(folder, vertices=len(turned))
    _scale_maps(arrays, stored)
    names, expression = stored.expression()
    width, height = arrays.pop("image_size").tolist()
    return build(
        model_name=stored.text("model"),
        image_size=(width, height),
        focal_px=stored.number("camera", "focal_px"),
        centre_px=stored.array("camera", "centre_px", shape=(2,)),
        scale=scale,
        rotation=rotation,
        translation=translation,
        identity=stored.array("identity", shape=(None,)),
        expression=expression,
        albedo=stored.array("albedo", shape=(None,)),
        lighting=stored.array("lighting", shape=(9, 3)),
        vertices_model=(turned @ rotation / np.float32(scale)).astype(np.float32),
        **arrays,
        landmark_error=stored.number_or_nan("errors", "landmark"),
        photometric_error=stored.number_or_nan("errors", "photometric"),
        stage_seconds=stored.stage_seconds(),
        expression_names=names,
        focal_source=stored.focal_source(),
        hair_colour=stored.hair_colour(),
        quality=stored.quality(),
    )


def _read_map_files(folder: Path, *, vertices: int) -> dict[str, np.ndarray]:
    """The arrays of `MAP_ARRAYS` in the files of mien 0.1."""
    maps = {
        "vertex_albedo": _read_npy(folder / VERTEX_ALBEDO_FILE, shape=(vertices, 3)),
        "texture": _read_map(folder / TEXTURE_FILE, channels=3),
        "texture_offset": _read_map(folder / TEXTURE_OFFSET_FILE, channels=3),
        "displacement": _read_map(folder / DISPLACEMENT_FILE, channels=1),
    }
    if maps["texture_offset"].shape[:2] != maps["displacement"].shape:
        raise FormatError(f"{folder}: {TEXTURE_OFFSET_FILE} and {DISPLACEMENT_FILE} differ in size; write it again")
    return maps


def _scale_maps(arrays: dict[str, np.ndarray], stored: _Coefficients) -> None:
    """Turn whole numbers of steps into colours and metres, in place."""
    arrays["texture"] = arrays["texture"].astype(np.float32) / np.float32(255)
    for key, unit in (("texture_offset", ""), ("displacement", "_m")):
        steps = arrays[key].astype(np.float32) - np.float32(stored.number("maps", f"{key}_zero"))
        arrays[key] = steps * np.float32(stored.number("maps", f"{key}{unit}_per_step"))


def folder_of(path: str | os.PathLike[str]) -> Path:
    """The folder of a result: the path itself, or the parent of reconstruction.npz."""
    path = Path(path)
    return path.parent if path.name == ARRAYS_FILE else path


def _numbers(values: np.ndarray) -> list[float] | list[list[float]]:
    """Nested lists of numbers, with the fewest digits that give the same float32 values."""
    if values.ndim > 1:
        return [_numbers(row) for row in values]  # pyright: ignore[reportReturnType]
    return [float(str(np.float32(value))) for value in values]


def _finite_or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    file_size(path, advice="give a folder that `mien reconstruct` or `save` wrote with format npz")
    archive = NpzReader(path, max_bytes=_MAX_BYTES)
    expected = ARRAYS | MAP_ARRAYS if any(key in archive for key in MAP_ARRAYS) else ARRAYS
    _check_shapes(archive, expected)
    arrays = {key: archive.array(key) for key in expected}
    for key, array in arrays.items():
        if not np.isfinite(array).all():
            raise FormatError(f"{path}: {key} contains values that are not finite")
    for key in ("triangles", "landmarks68_vertices"):
        if arrays[key].size and not 0 <= arrays[key].min() <= arrays[key].max() < len(arrays["vertices"]):
            raise FormatError(f"{path}: {key} contains indices of vertices that do not exist")
    return arrays


def _check_shapes(archive: NpzReader, expected: dict[str, tuple[type[np.generic], tuple[str | int, ...]]]) -> None:
    """Compare the headers before the arrays need memory."""
    sizes: dict[str | int, int] = {}
    for key, (dtype, names) in expected.items():
        shape, found = archive.shape(key)
        fits = len(shape) == len(names) and all(
            size == (sizes.setdefault(name, size) if isinstance(name, str) else name)
            and size <= _LARGEST_SIZES.get(name, size)
            for size, name in zip(shape, names, strict=False)
        )
        if found != dtype or not fits:
            wanted = f"{np.dtype(dtype)} {names}".replace("'", "")
            raise FormatError(f"{archive.path}: {key} is {found} {shape} and must be {wanted}")


def _read_npy(path: Path, *, shape: tuple[int, ...]) -> np.ndarray:
    array = read_npy(path)
    if array.dtype != np.float32 or array.shape != shape:
        raise FormatError(f"{path}: must hold float32 {shape}; write the reconstruction again")
    return array


def _read_map(path: Path, *, channels: int) -> np.ndarray:
    if not path.is_file():
        raise FormatError(f"{path}: no such file, or not a regular one; write the reconstruction again")
    try:
        with path.open("rb") as file, open_image(file, "PNG") as image:
            width, height = image.size
            right_mode = image.mode == "RGB" if channels == 3 else image.mode.startswith("I")
            if width != height or width > _LARGEST_MAP or not right_mode:
                raise FormatError(f"{path}: {width} x {height} {image.mode} is not a map that mien writes")
            return np.asarray(image).astype(np.float32)
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
        raise FormatError(f"{path}: damaged ({error}); write the reconstruction again") from error


class _Coefficients:
    """coefficients.json; every access is checked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        advice = f"it belongs beside {ARRAYS_FILE}, and format npz writes both"
        self._content = read_json(path, dict[str, object], advice=advice)
        if self._get("format") != FORMAT:
            raise FormatError(f"{path}: format {self._get('format')!r}; this version of mien reads {FORMAT!r}")

    def _get(self, *keys: str) -> object:
        value = self._content
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                raise FormatError(f"{self.path}: lacks {'.'.join(keys)!r}; write the reconstruction again")
            value = value[key]
        return value

    def check_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """Refuse the arrays of another result; coefficients of mien 0.2 do not say which arrays are theirs."""
        if self._content.get("arrays_sha256", "") not in ("", _arrays_sha256(arrays)):
            raise FormatError(
                f"{self.path}: belongs to another result than {ARRAYS_FILE} beside it, probably because writing was "
                "interrupted; write the reconstruction again"
            )

    def text(self, *keys: str) -> str:
        value = self._get(*keys)
        if not isinstance(value, str):
            raise FormatError(f"{self.path}: {'.'.join(keys)} must be a string")
        return value

    def number(self, *keys: str) -> float:
        value = self._get(*keys)
        # Compared before the conversion: integers of JSON may be too large for a float.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -_LARGEST <= value <= _LARGEST:
            raise FormatError(f"{self.path}: {'.'.join(keys)} must be a finite number")
        return float(value)

    def number_or_nan(self, *keys: str) -> float:
        return math.nan if self._get(*keys) is None else self.number(*keys)

    def array(self, *keys: str, shape: tuple[int | None, ...]) -> np.ndarray:
        return self._as_array(self._get(*keys), ".".join(keys), shape)

    def _as_array(self, value: object, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        try:
            with np.errstate(over="ignore"):  # becomes infinite, which is refused below
                array = np.array(value, dtype=np.float32)
        except (TypeError, ValueError, OverflowError):
            raise FormatError(f"{self.path}: {name} must be an array of numbers") from None
        fits = array.ndim == len(shape) and all(b in (a, None) for a, b in zip(array.shape, shape, strict=False))
        if not fits or not np.isfinite(array).all():
            expected = " x ".join("n" if size is None else str(size) for size in shape)
            raise FormatError(f"{self.path}: {name} must be {expected} finite numbers")
        return array

    def focal_source(self) -> FocalSource:
        camera, known = self._get("camera"), get_args(FocalSource)
        source = camera.get("focal_source", "unknown") if isinstance(camera, dict) else None
        for name in known:
            if source == name:
                return name
        raise FormatError(f"{self.path}: camera.focal_source must be one of {', '.join(known)}")

    def hair_colour(self) -> np.ndarray | None:
        """Results of mien 0.2 have none."""
        if self._content.get("hair_colour") is None:
            return None
        return self.array("hair_colour", shape=(3,))

    def quality(self) -> FaceQuality | None:
        """The quality of the face; None in results of mien 0.2 and earlier."""
        value = self._content.get("quality")
        if value is None:
            return None
        return converted(value, FaceQuality, self.path, advice="write the reconstruction again")

    def expression(self) -> tuple[tuple[str, ...], np.ndarray]:
        value = self._get("expression")
        if isinstance(value, dict):
            return tuple(value), self._as_array(list(value.values()), "expression", (None,))
        return (), self._as_array(value, "expression", (None,))

    def stage_seconds(self) -> tuple[tuple[str, float], ...]:
        value = self._get("stage_seconds")
        try:
            return tuple((str(name), float(seconds)) for name, seconds in value)  # pyright: ignore[reportGeneralTypeIssues]
        except (TypeError, ValueError, OverflowError):
            raise FormatError(f"{self.path}: stage_seconds must be pairs of name and seconds") from None
