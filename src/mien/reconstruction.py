"""What a user gets for one face, and the folder it is kept in.

    reconstruction.npz    the geometry, exactly the arrays of `ARRAYS`
    coefficients.json     coefficients, camera, pose, light, errors, times, and the scales of the maps
    texture.png           8 bits, sRGB
    texture_offset.png    8 bits; steps of `texture_offset_per_step` around 128
    displacement.png      16 bits; steps of `displacement_m_per_step` around 32768
    vertex_albedo.npy     (V, 3) float32

None of them is ever unpickled. docs/outputs.md describes every file of a result folder.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mien.arrays import Bool, Float, Int
from mien.camera import CAMERA_FROM_MODEL
from mien.errors import FormatError, OutputError

FORMAT = "mien-reconstruction-1"
ARRAYS_FILE, COEFFICIENTS_FILE = "reconstruction.npz", "coefficients.json"
TEXTURE_FILE, TEXTURE_OFFSET_FILE, DISPLACEMENT_FILE = "texture.png", "texture_offset.png", "displacement.png"
VERTEX_ALBEDO_FILE = "vertex_albedo.npy"

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

# One micrometre: far below what a photo can show, and ±32 mm is far beyond what a displacement reaches.
_DISPLACEMENT_STEP_M = 1e-6
_DISPLACEMENT_ZERO = 32768
_OFFSET_STEP = 1 / 254
_OFFSET_ZERO = 128
_LARGEST_MAP = 8192
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """One face of one photo. Lengths in metres, colours sRGB-encoded in [0, 1], maps with v = 1 in row 0.

    x_camera = diag(1, -1, -1) @ (scale · rotation @ x_model) + translation;
    x_pixel = focal_px · x_camera / z_camera + centre_px.
    """

    model_name: str
    image_size: tuple[int, int]
    """Width and height of the photo, upright as EXIF says; all pixel positions refer to it."""
    focal_px: float
    centre_px: Float[np.ndarray, "2"]
    scale: float
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]
    identity: Float[np.ndarray, "I"]
    """Standard deviations of the population."""
    expression: Float[np.ndarray, "E"]
    """Strength of each action, 0 to 1."""
    albedo: Float[np.ndarray, "A"]
    """Standard deviations of the population."""
    lighting: Float[np.ndarray, "9 3"]
    """Spherical harmonics per colour channel in view axes, see `mien.lighting`."""
    vertices_model: Float[np.ndarray, "V 3"]
    """Model space, with identity, expression and displacement, before the pose."""
    vertices: Float[np.ndarray, "V 3"]
    """Camera space: x right, y down, z forward."""
    triangles: Int[np.ndarray, "T 3"]
    uv: Float[np.ndarray, "V 2"]
    """v grows upwards."""
    xy: Float[np.ndarray, "V 2"]
    """Where each vertex lies in the photo, pixels."""
    visible: Bool[np.ndarray, "V"]
    """Vertices that the camera sees."""
    landmarks68: Float[np.ndarray, "68 2"]
    """The model's 68 points in the photo, pixels."""
    landmarks68_vertices: Int[np.ndarray, "68"]
    vertex_albedo: Float[np.ndarray, "V 3"]
    """Colour without light, of the linear model."""
    texture: Float[np.ndarray, "S S 3"]
    """The face's colours as the photo shows them, completed where it does not."""
    texture_offset: Float[np.ndarray, "D D 3"]
    """Added to the albedo by the detail step; zeros without it."""
    displacement: Float[np.ndarray, "D D"]
    """Along the normal, by the detail step; zeros without it."""
    landmark_error: float
    """Mean distance between the 51 inner landmarks, found and modelled, over that of the outer eye corners."""
    photometric_error: float
    """Root mean squared colour error of the textured mesh inside the face's mask, [0, 1]."""
    stage_seconds: tuple[tuple[str, float], ...]
    expression_names: tuple[str, ...] = ()
    """Names of the expression coefficients; empty where the maker did not say."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the files of this module's table into a folder; its reconstruction.npz may be named instead.

        Precision: float32 for all arrays and coefficients, 1 µm for the displacement, 1/255 for the texture,
        1/508 for its offset. Raises `OutputError` where the place cannot be written, leaving nothing
        half-written.
        """
        with writing_folder(_folder_of(path)) as folder:
            self.write_files(folder)

    def write_files(self, folder: Path) -> None:
        """Write the files of `save` straight into an existing folder; raises OSError."""
        arrays = {key: np.asarray(getattr(self, key)).astype(dtype, copy=False) for key, (dtype, _) in ARRAYS.items()}
        np.savez_compressed(folder / ARRAYS_FILE, **arrays)  # pyright: ignore[reportArgumentType]
        np.save(folder / VERTEX_ALBEDO_FILE, self.vertex_albedo.astype(np.float32), allow_pickle=False)
        displacement_step = max(_DISPLACEMENT_STEP_M, float(np.abs(self.displacement).max()) / 32767)
        offset_step = max(_OFFSET_STEP, float(np.abs(self.texture_offset).max()) / 127)
        steps = np.rint(self.displacement / displacement_step) + _DISPLACEMENT_ZERO
        Image.fromarray(steps.astype(np.uint16)).save(folder / DISPLACEMENT_FILE)
        steps = np.rint(self.texture_offset / offset_step) + _OFFSET_ZERO
        Image.fromarray(steps.astype(np.uint8)).save(folder / TEXTURE_OFFSET_FILE)
        Image.fromarray(np.rint(self.texture.clip(0, 1) * 255).astype(np.uint8)).save(folder / TEXTURE_FILE)
        expression = _numbers(self.expression)
        named = bool(self.expression_names)
        content: dict[str, object] = {
            "format": FORMAT,
            "mien_version": package_version(),
            "model": self.model_name,
            "image_size_px": list(self.image_size),
            "camera": {"focal_px": float(self.focal_px), "centre_px": _numbers(self.centre_px)},
            "pose": {
                "scale": float(self.scale),
                "rotation": _numbers(self.rotation),
                "translation_m": _numbers(self.translation),
            },
            "identity": _numbers(self.identity),
            "expression": dict(zip(self.expression_names, expression, strict=True)) if named else expression,
            "albedo": _numbers(self.albedo),
            "lighting": _numbers(self.lighting),
            "errors": {
                "landmark": _finite_or_none(self.landmark_error),
                "photometric": _finite_or_none(self.photometric_error),
            },
            "stage_seconds": [[name, round(seconds, 4)] for name, seconds in self.stage_seconds],
            "maps": {
                "displacement_m_per_step": displacement_step,
                "displacement_zero": _DISPLACEMENT_ZERO,
                "texture_offset_per_step": offset_step,
                "texture_offset_zero": _OFFSET_ZERO,
            },
        }
        lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        (folder / COEFFICIENTS_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Reconstruction:
        """Read a result folder, or the reconstruction.npz in one, as `save` or `mien reconstruct` wrote it.

        Raises `FormatError` that names the file for whatever is missing, damaged or of another version.
        """
        folder = _folder_of(path)
        arrays = _read_arrays(folder / ARRAYS_FILE)
        written = _Coefficients(folder / COEFFICIENTS_FILE)
        rotation, scale = written.array("pose", "rotation", shape=(3, 3)), written.number("pose", "scale")
        translation = written.array("pose", "translation_m", shape=(3,))
        if scale <= 0:
            raise FormatError(f"{written.path}: pose.scale is {scale:g} and must be positive")
        turned = (arrays["vertices"] - translation) * np.array(CAMERA_FROM_MODEL, np.float32)
        vertex_albedo = _read_npy(folder / VERTEX_ALBEDO_FILE, shape=(len(turned), 3))
        texture = _read_map(folder / TEXTURE_FILE, channels=3) / np.float32(255)
        offset = _read_map(folder / TEXTURE_OFFSET_FILE, channels=3) - np.float32(
            written.number("maps", "texture_offset_zero")
        )
        displacement = _read_map(folder / DISPLACEMENT_FILE, channels=1) - np.float32(
            written.number("maps", "displacement_zero")
        )
        if offset.shape[:2] != displacement.shape:
            raise FormatError(f"{folder}: {TEXTURE_OFFSET_FILE} and {DISPLACEMENT_FILE} differ in size; write it again")
        names, expression = written.expression()
        width, height = arrays["image_size"].tolist()
        return cls(
            model_name=written.text("model"),
            image_size=(width, height),
            focal_px=written.number("camera", "focal_px"),
            centre_px=written.array("camera", "centre_px", shape=(2,)),
            scale=scale,
            rotation=rotation,
            translation=translation,
            identity=written.array("identity", shape=(None,)),
            expression=expression,
            albedo=written.array("albedo", shape=(None,)),
            lighting=written.array("lighting", shape=(9, 3)),
            vertices_model=(turned @ rotation / np.float32(scale)).astype(np.float32),
            vertices=arrays["vertices"],
            triangles=arrays["triangles"],
            uv=arrays["uv"],
            xy=arrays["xy"],
            visible=arrays["visible"],
            landmarks68=arrays["landmarks68"],
            landmarks68_vertices=arrays["landmarks68_vertices"],
            vertex_albedo=vertex_albedo,
            texture=texture,
            texture_offset=offset * np.float32(written.number("maps", "texture_offset_per_step")),
            displacement=displacement * np.float32(written.number("maps", "displacement_m_per_step")),
            landmark_error=written.number_or_nan("errors", "landmark"),
            photometric_error=written.number_or_nan("errors", "photometric"),
            stage_seconds=written.stage_seconds(),
            expression_names=names,
        )


def package_version() -> str:
    """The installed version of mien."""
    try:
        return importlib.metadata.version("mien")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """Collect files in a hidden folder beside `folder` and move them there once all are written.

    Whatever goes wrong, the hidden folder is removed and `folder` is as it was; files of the same names are
    replaced whole. An OSError inside becomes an `OutputError`.
    """
    partial = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    created = [parent for parent in folder.parents if not parent.exists()]
    try:
        partial.mkdir(parents=True)
        yield partial
        _move_into_place(partial, folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in created:
            _remove_if_empty(parent)
        if isinstance(error, OSError):
            raise OutputError(
                f"{folder}: cannot be written ({error.strerror or error}); "
                "free some space or choose another place with write permission"
            ) from error
        raise


def _move_into_place(partial: Path, folder: Path) -> None:
    if not folder.exists():
        partial.replace(folder)
        return
    for file in sorted(partial.iterdir()):
        file.replace(folder / file.name)
    partial.rmdir()


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return  # not empty or never made; either way it is not ours to clear


def _folder_of(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path.parent if path.name == ARRAYS_FILE else path


def _numbers(values: np.ndarray) -> list[float] | list[list[float]]:
    """Nested lists with the fewest digits that give the same float32 back."""
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
            found = {key: stored[key] for key in ARRAYS if key in stored}
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise FormatError(f"{path}: damaged ({error}); write the reconstruction again") from error
    sizes: dict[str | int, int] = {}
    for key, (dtype, shape) in ARRAYS.items():
        if key not in found:
            raise FormatError(f"{path}: lacks the array {key!r}; write the reconstruction again")
        array = found[key]
        fits = array.ndim == len(shape) and all(
            size == (sizes.setdefault(name, size) if isinstance(name, str) else name)
            for size, name in zip(array.shape, shape, strict=False)
        )
        if array.dtype != dtype or not fits:
            wanted = f"{np.dtype(dtype)} {shape}".replace("'", "")
            raise FormatError(f"{path}: {key} is {array.dtype} {array.shape} and must be {wanted}")
        if not np.isfinite(array).all():
            raise FormatError(f"{path}: {key} holds values that are not finite")
    for key in ("triangles", "landmarks68_vertices"):
        if found[key].size and not 0 <= found[key].min() <= found[key].max() < sizes["V"]:
            raise FormatError(f"{path}: {key} points at vertices that are not there")
    return found


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
                raise FormatError(f"{path}: {width} x {height} {image.mode} is not a map that mien wrote")
            return np.asarray(image).astype(np.float32)
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError) as error:
        raise FormatError(f"{path}: damaged ({error}); write the reconstruction again") from error


class _Coefficients:
    """coefficients.json, every access checked."""

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
            raise FormatError(f"{self.path}: {'.'.join(keys)} must be a text")
        return value

    def number(self, *keys: str) -> float:
        value = self._get(*keys)
        # Compared as it stands: JSON's whole numbers may be too large for a float.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -_LARGEST <= value <= _LARGEST:
            raise FormatError(f"{self.path}: {'.'.join(keys)} must be a finite number")
        return float(value)

    def number_or_nan(self, *keys: str) -> float:
        return math.nan if self._get(*keys) is None else self.number(*keys)

    def array(self, *keys: str, shape: tuple[int | None, ...]) -> np.ndarray:
        return self._as_array(self._get(*keys), ".".join(keys), shape)

    def _as_array(self, value: object, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        try:
            with np.errstate(over="ignore"):  # infinite then, and refused below
                array = np.array(value, dtype=np.float32)
        except (TypeError, ValueError, OverflowError):
            raise FormatError(f"{self.path}: {name} must be an array of numbers") from None
        right = array.ndim == len(shape) and all(b in (a, None) for a, b in zip(array.shape, shape, strict=False))
        if not right or not np.isfinite(array).all():
            wanted = " x ".join("n" if size is None else str(size) for size in shape)
            raise FormatError(f"{self.path}: {name} must be {wanted} finite numbers")
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
