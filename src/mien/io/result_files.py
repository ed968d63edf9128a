"""Names of the files of a result folder, and the formats that users choose from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from mien.errors import ConfigError

ARRAYS_FILE, COEFFICIENTS_FILE = "reconstruction.npz", "coefficients.json"
TEXTURE_FILE, TEXTURE_OFFSET_FILE, DISPLACEMENT_FILE = "texture.png", "texture_offset.png", "displacement.png"
GLB_FILE, OBJ_FILE, MATERIALS_FILE, PLY_FILE = "face.glb", "face.obj", "face.mtl", "face.ply"
HEAD_GLB_FILE = "head.glb"
EXPRESSIONS_FILE, TURNTABLE_FILE, VIDEO_FILE = "expressions.png", "turntable.webp", "turntable.mp4"
ALBEDO_FILE, NORMALS_FILE, OVERLAY_FILE, SHEET_FILE = "albedo.png", "normals.png", "overlay.png", "sheet.png"
VERTEX_ALBEDO_FILE = "vertex_albedo.npy"
"""Part of the results of mien 0.1 only; today reconstruction.npz holds it."""

FORMAT_FILES = {
    "glb": (GLB_FILE,),
    "head": (HEAD_GLB_FILE,),
    "obj": (OBJ_FILE, MATERIALS_FILE, TEXTURE_FILE),
    "ply": (PLY_FILE,),
    "maps": (TEXTURE_FILE, ALBEDO_FILE, NORMALS_FILE, DISPLACEMENT_FILE, TEXTURE_OFFSET_FILE),
    "sheet": (SHEET_FILE,),
    "overlay": (OVERLAY_FILE,),
    "expressions": (EXPRESSIONS_FILE,),
    "turntable": (TURNTABLE_FILE,),
    "video": (VIDEO_FILE,),
    "npz": (ARRAYS_FILE, COEFFICIENTS_FILE),
    "json": (COEFFICIENTS_FILE,),
}
"""The files of each format; two formats can share a file."""

DEFAULT_FORMATS = ("glb", "sheet", "npz", "json")
MODEL_FORMATS = frozenset({"glb", "head", "obj", "maps", "sheet", "overlay", "expressions", "turntable", "video"})
"""Formats that the face model is needed for."""
HEAD_FORMATS = frozenset({"head", "expressions", "turntable", "video"})
"""Formats that show the whole head, which only `mien-face` has."""
PHOTO_FORMATS = frozenset({"sheet", "overlay"})
"""Formats that show the photo."""
MESH_ENDINGS = (".glb", ".obj", ".ply")
"""Endings of a path that names one mesh file instead of a folder."""

_ALL_FILES = frozenset(name for names in FORMAT_FILES.values() for name in names) | {VERTEX_ALBEDO_FILE}


def parse_formats(formats: str | Iterable[str]) -> tuple[str, ...]:
    """Check the names of formats.

    Args:
        formats: Names, or one text with commas: "glb,obj".

    Returns:
        The names in the order of `FORMAT_FILES`, each once.

    Raises:
        ConfigError: A name is unknown, or there is none.
    """
    names = [name.strip() for name in (formats.split(",") if isinstance(formats, str) else formats)]
    unknown = [name for name in names if name not in FORMAT_FILES]
    if unknown or not names:
        given = f"formats contains {unknown[0]!r}" if unknown else "formats is empty"
        raise ConfigError(f"{given}; choose from {', '.join(FORMAT_FILES)}.")
    return tuple(name for name in FORMAT_FILES if name in names)


def is_mesh_file(path: Path) -> bool:
    """Whether a path names one mesh file, not a folder, by its ending."""
    return path.suffix.lower() in MESH_ENDINGS and not path.is_dir()


def is_result(folder: Path) -> bool:
    """Whether a folder holds a file of a result."""
    return any((folder / name).is_file() for name in _ALL_FILES)


def is_face_folder(folder: Path) -> bool:
    """Whether a folder is the result of one face: by its numbers, or by the name faceN and any file of a result."""
    numbers = (folder / COEFFICIENTS_FILE).is_file() or (folder / ARRAYS_FILE).is_file()
    return numbers or (re.fullmatch(r"face\d+", folder.name) is not None and is_result(folder))


def remove_other_formats(folder: Path, formats: Iterable[str]) -> None:
    """Remove the files of an earlier result that the chosen formats do not replace; other files stay.

    Args:
        folder: The folder of one face.
        formats: The formats just written.

    Raises:
        OSError: A file cannot be removed.
    """
    kept = {name for chosen in formats for name in FORMAT_FILES[chosen]}
    for name in sorted(_ALL_FILES - kept):
        (folder / name).unlink(missing_ok=True)
