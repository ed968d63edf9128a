"""The files of a result folder.

    reconstruction.npz    the geometry: the arrays of `ARRAYS`
    coefficients.json     coefficients, camera, pose, lighting, errors, times and the scales of the maps
    texture.png           8 bits, sRGB
    texture_offset.png    8 bits, steps of `texture_offset_per_step` around 128
    displacement.png      16 bits, steps of `displacement_m_per_step` around 32768
    vertex_albedo.npy     (V, 3) float32

Reading never unpickles. docs/outputs.md describes all files of a result folder.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mien import __version__
from mien.camera import to_model_axes
from mien.errors import FormatError
from mien.io.files import writing_folder
from mien.io.pixels import to_uint8

if TYPE_CHECKING:
    import mien.result  # which imports this module

FORMAT = "mien-reconstruction-1"
ARRAYS_FILE, COEFFICIENTS_FILE = "reconstruction.npz", "coefficients.json"
TEXTURE_FILE, TEXTURE_OFFSET_FILE, DISPLACEMENT_FILE = "texture.png", "texture_offset.png", "displacement.png"
VERTEX_ALBEDO_FILE = "vertex_albedo.npy"
GLB_FILE, OBJ_FILE, PLY_FILE = "face.glb", "face.obj", "face.ply"
ALBEDO_FILE, NORMALS_FILE, OVERLAY_FILE, SHEET_FILE = "albedo.png", "normals.png", "overlay.png", "sheet.png"

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
"""Keys, types and shapes of reconstruction.npz."""

# One micrometre is far below what a photo shows, and ±32 mm far above any displacement.
_DISPLACEMENT_STEP_M = 1e-6
_DISPLACEMENT_ZERO = 32768
_OFFSET_STEP = 1 / 254
_OFFSET_ZERO = 128
_LARGEST_MAP = 8192
_LARGEST = float(np.finfo(np.float32).max)


def save_result(face: mien.result.Reconstruction, path: str | os.PathLike[str]) -> None:
    """Write a result folder atomically.

    Args:
        face: The result.
        path: The folder, or the `reconstruction.npz` in it.

    Raises:
        OutputError: The folder cannot be written; it is unchanged.
    """
    with writing_folder(_folder_of(path)) as folder:
        write_result_files(face, folder)


def write_result_files(face: mien.result.Reconstruction, folder: Path) -> None:
    """Write the files of this module's table into an existing folder.

    Args:
        face: The result.
        folder: Where the files go.

    Raises:
        OSError: A file cannot be written.
    """
    arrays = {key: np.asarray(getattr(face, key)).astype(dtype, copy=False) for key, (dtype, _) in ARRAYS.items()}
    np.savez_compressed(folder / ARRAYS_FILE, **arrays)  # pyright: ignore[reportArgumentType]
    np.save(folder / VERTEX_ALBEDO_FILE, face.vertex_albedo.astype(np.float32), allow_pickle=False)
    displacement_step = max(_DISPLACEMENT_STEP_M, float(np.abs(face.displacement).max()) / 32767)
    offset_step = max(_OFFSET_STEP, float(np.abs(face.texture_offset).max()) / 127)
    steps = np.rint(face.displacement / displacement_step) + _DISPLACEMENT_ZERO
    Image.fromarray(steps.astype(np.uint16)).save(folder / DISPLACEMENT_FILE)
    steps = np.rint(face.texture_offset / offset_step) + _OFFSET_ZERO
    Image.fromarray(steps.astype(np.uint8)).save(folder / TEXTURE_OFFSET_FILE)
    Image.fromarray(to_uint8(face.texture)).save(folder / TEXTURE_FILE)
    maps = {
        "displacement_m_per_step": displacement_step,
        "displacement_zero": _DISPLACEMENT_ZERO,
        "texture_offset_per_step": offset_step,
        "texture_offset_zero": _OFFSET_ZERO,
    }
    content = {**_coefficients(face), "maps": maps}
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    (folder / COEFFICIENTS_FILE).write_text(text, encoding="utf-8")


def _coefficients(face: mien.result.Reconstruction) -> dict[str, object]:
    """The content of coefficients.json, without the scales of the maps."""
    expression = _numbers(face.expression)
    named = bool(face.expression_names)
    return {
        "format": FORMAT,
        "mien_version": __version__,
        "model": face.model_name,
        "image_size_px": list(face.image_size),
        "camera": {"focal_px": float(face.focal_px), "centre_px": _numbers(face.centre_px)},
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
        "errors": {
            "landmark": _finite_or_none(face.landmark_error),
            "photometric": _finite_or_none(face.photometric_error),
        },
        "stage_seconds": [[name, round(seconds, 4)] for name, seconds in face.stage_seconds],
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
    folder = _folder_of(path)
    arrays = _read_arrays(folder / ARRAYS_FILE)
    stored = _Coefficients(folder / COEFFICIENTS_FILE)
    rotation, scale = stored.array("pose", "rotation", shape=(3, 3)), stored.number("pose", "scale")
    translation = stored.array("pose", "translation_m", shape=(3,))
    if scale <= 0:
        raise FormatError(f"{stored.path}: pose.scale={scale:g} is out of range; it must be positive")
    turned = to_model_axes(arrays["vertices"] - translation)
    vertex_albedo = _read_npy(folder / VERTEX_ALBEDO_FILE, shape=(len(turned), 3))
    texture, texture_offset, displacement = _read_maps(folder, stored)
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
        vertex_albedo=vertex_albedo,
        texture=texture,
        texture_offset=texture_offset,
        displacement=displacement,
        landmark_error=stored.number_or_nan("errors", "landmark"),
        photometric_error=stored.number_or_nan("errors", "photometric"),
        stage_seconds=stored.stage_seconds(),
        expression_names=names,
    )


def _read_maps(folder: Path, stored: _Coefficients) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texture, its offset, and the displacement in metres."""
    texture = _read_map(folder / TEXTURE_FILE, channels=3) / np.float32(255)
    offset = _read_map(folder / TEXTURE_OFFSET_FILE, channels=3) - np.float32(
        stored.number("maps", "texture_offset_zero")
    )
    displacement = _read_map(folder / DISPLACEMENT_FILE, channels=1) - np.float32(
        stored.number("maps", "displacement_zero")
    )
    if offset.shape[:2] != displacement.shape:
        raise FormatError(f"{folder}: {TEXTURE_OFFSET_FILE} and {DISPLACEMENT_FILE} differ in size; write it again")
    offset *= np.float32(stored.number("maps", "texture_offset_per_step"))
    displacement *= np.float32(stored.number("maps", "displacement_m_per_step"))
    return texture, offset, displacement


def _folder_of(path: str | os.PathLike[str]) -> Path:
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
    if not path.is_file():
        raise FormatError(f"{path}: no such file; give a folder that `mien reconstruct` or `save` wrote")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in ARRAYS if key in stored}
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise FormatError(f"{path}: damaged ({error}); write the reconstruction again") from error
    for key in ARRAYS:
        if key not in arrays:
            raise FormatError(f"{path}: lacks the array {key!r}; write the reconstruction again")
    _check_arrays(arrays, path)
    return arrays


def _check_arrays(arrays: dict[str, np.ndarray], path: Path) -> None:
    sizes: dict[str | int, int] = {}
    for key, (dtype, shape) in ARRAYS.items():
        array = arrays[key]
        fits = array.ndim == len(shape) and all(
            size == (sizes.setdefault(name, size) if isinstance(name, str) else name)
            for size, name in zip(array.shape, shape, strict=False)
        )
        if array.dtype != dtype or not fits:
            expected = f"{np.dtype(dtype)} {shape}".replace("'", "")
            raise FormatError(f"{path}: {key} is {array.dtype} {array.shape} and must be {expected}")
        if not np.isfinite(array).all():
            raise FormatError(f"{path}: {key} contains values that are not finite")
    for key in ("triangles", "landmarks68_vertices"):
        if arrays[key].size and not 0 <= arrays[key].min() <= arrays[key].max() < sizes["V"]:
            raise FormatError(f"{path}: {key} contains indices of vertices that do not exist")


def _read_npy(path: Path, *, shape: tuple[int, ...]) -> np.ndarray:
    if not path.is_file():
        raise FormatError(f"{path}: no such file; write the reconstruction again")
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise FormatError(f"{path}: damaged ({error}); write the reconstruction again") from error
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != shape:
        raise FormatError(f"{path}: must hold float32 {shape}; write the reconstruction again")
    return array


def _read_map(path: Path, *, channels: int) -> np.ndarray:
    if not path.is_file():
        raise FormatError(f"{path}: no such file; write the reconstruction again")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            width, height = image.size
            right_mode = image.mode == "RGB" if channels == 3 else image.mode.startswith("I")
            if width != height or width > _LARGEST_MAP or not right_mode:
                raise FormatError(f"{path}: {width} x {height} {image.mode} is not a map that mien writes")
            return np.asarray(image).astype(np.float32)
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError) as error:
        raise FormatError(f"{path}: damaged ({error}); write the reconstruction again") from error


class _Coefficients:
    """coefficients.json; every access is checked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FormatError(f"{path}: no such file; it belongs beside {ARRAYS_FILE}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise FormatError(f"{path}: damaged ({error}); write the reconstruction again") from error
        if self._get("format") != FORMAT:
            raise FormatError(f"{path}: format {self._get('format')!r}; this version of mien reads {FORMAT!r}")

    def _get(self, *keys: str) -> object:
        value = self._content
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                raise FormatError(f"{self.path}: lacks {'.'.join(keys)!r}; write the reconstruction again")
            value = value[key]
        return value

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
