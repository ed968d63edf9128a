"""Names of the files of a result folder, and the formats and options of meshes that users choose from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from mien.errors import ConfigError

ARRAYS_FILE, COEFFICIENTS_FILE = "reconstruction.npz", "coefficients.json"
TEXTURE_FILE, TEXTURE_OFFSET_FILE, DISPLACEMENT_FILE = "texture.png", "texture_offset.png", "displacement.png"
GLB_FILE, OBJ_FILE = "face.glb", "face.obj"
HEAD_TEXTURE_FILE = "head_texture.png"
EXPRESSIONS_FILE, TURNTABLE_FILE, VIDEO_FILE = "expressions.png", "turntable.webp", "turntable.mp4"
ALBEDO_FILE, NORMALS_FILE, OVERLAY_FILE, SHEET_FILE = "albedo.png", "normals.png", "overlay.png", "sheet.png"
VERTEX_ALBEDO_FILE = "vertex_albedo.npy"
"""Part of the results of mien 0.1 only; today reconstruction.npz holds it."""

FACE, HEAD = "face", "head"
PARTS = (FACE, HEAD)
"""What a mesh file shows: the face alone or the whole head. Mesh files begin with this name."""
MESH_ENDINGS = {".glb": "glb", ".obj": "obj", ".ply": "ply", ".usdz": "usd", ".vrm": "vrm"}
"""The formats of meshes by the endings of their files."""
_ENDINGS = {format_name: ending for ending, format_name in MESH_ENDINGS.items()}

_OTHER_FILES = {
    "maps": (TEXTURE_FILE, ALBEDO_FILE, NORMALS_FILE, DISPLACEMENT_FILE, TEXTURE_OFFSET_FILE),
    "sheet": (SHEET_FILE,),
    "overlay": (OVERLAY_FILE,),
    "expressions": (EXPRESSIONS_FILE,),
    "turntable": (TURNTABLE_FILE,),
    "video": (VIDEO_FILE,),
    "npz": (ARRAYS_FILE, COEFFICIENTS_FILE),
    "json": (COEFFICIENTS_FILE,),
}
FORMATS = (*_ENDINGS, *_OTHER_FILES)
"""The names that users choose formats by."""
DEFAULT_FORMATS = ("glb", "sheet", "npz", "json")
PICTURE_FORMATS = frozenset({"expressions", "turntable", "video"})
"""Pictures of the whole head."""
PHOTO_FORMATS = frozenset({"sheet", "overlay"})
"""Formats that show the photo."""

_WITHOUT_MODEL = frozenset({"ply", "npz", "json"})
_WITH_UNITS = frozenset({"obj", "ply", "usd"})
_WITH_CAMERA = frozenset({"glb", "usd"})

UNITS_PER_METRE = {"m": 1.0, "cm": 100.0, "mm": 1000.0}
Scalp = Literal["hair", "skin"]
"""What the scalp of a head shows: short hair in the colour of the photo's, or shaved skin."""
MORPH_STORAGE = ("sparse", "dense")
"""How GLBs store morph targets: the vertices that move, or all vertices, which makes the file 2.4 times as large."""


@dataclass(frozen=True)
class MeshOptions:
    """How meshes are written; the constructor checks the values.

    Raises:
        ConfigError: A value is unknown.
    """

    parts: tuple[str, ...] = (FACE,)
    """Which meshes, some of `PARTS`."""
    neutral: bool = False
    """Whether the default view is the neutral face instead of the photo's expression."""
    units: str = "m"
    """Unit of lengths in OBJ, PLY and USD, one of `UNITS_PER_METRE`. glTF prescribes metres."""
    embed_camera: bool = False
    """Whether GLB and USD contain the photo's camera, with the face where the camera saw it."""
    morphs: str = "sparse"
    """How GLBs store morph targets, one of `MORPH_STORAGE`."""
    scalp: Scalp = "hair"
    """What the scalp of a head shows."""

    def __post_init__(self) -> None:
        for name, values in (("units", tuple(UNITS_PER_METRE)), ("morphs", MORPH_STORAGE)):
            if getattr(self, name) not in values:
                raise ConfigError(f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(values)}.")
        parse_parts(self.parts)

    @classmethod
    def parsed(
        cls,
        parts: str | Iterable[str],
        *,
        neutral: bool = False,
        units: str = "m",
        embed_camera: bool = False,
        morphs: str = "sparse",
        scalp: str = "hair",
    ) -> MeshOptions:
        """Make options of what a user writes: `parts` may be one text with commas, and `scalp` any text.

        Raises:
            ConfigError: A value is unknown.
        """
        return cls(parse_parts(parts), neutral, units, embed_camera, morphs, parse_scalp(scalp))

    @property
    def units_per_metre(self) -> float:
        """Factor from metres to `units`."""
        return UNITS_PER_METRE[self.units]

    def check_effect(self, formats: Sequence[str]) -> None:
        """Check that each chosen option changes one of the files.

        Args:
            formats: The chosen formats.

        Raises:
            ConfigError: An option has no effect on any of them.
        """
        given = {
            "neutral": (self.neutral, frozenset({"glb", "obj", "ply", "usd"})),  # a VRM is always neutral
            "parts": (self.parts != (FACE,), frozenset(_ENDINGS) - {"vrm"}),
            "units": (self.units != "m", _WITH_UNITS),
            "embed_camera": (self.embed_camera, _WITH_CAMERA),
            "morphs": (self.morphs != "sparse", frozenset({"glb", "vrm"})),
        }
        for name, (chosen, concerned) in given.items():
            if chosen and not concerned & set(formats):
                use = ", ".join(known for known in FORMATS if known in concerned)
                value = ",".join(self.parts) if name == "parts" else getattr(self, name)
                raise ConfigError(
                    f"{name}={value!r} has no effect on the formats {', '.join(formats)}; choose one of "
                    f"{use}, or leave {name} out."
                )
        # Pictures of the head show no hair.
        meshes = [name for name in formats if name not in PICTURE_FORMATS]
        if self.scalp != "hair" and not needs_head(meshes, self.parts):
            raise ConfigError(
                f"scalp={self.scalp!r} changes only meshes of heads; choose parts='head' and a mesh, or leave it out."
            )


def parse_formats(formats: str | Iterable[str]) -> tuple[str, ...]:
    """Check the names of formats.

    Args:
        formats: Names, or one text with commas: "glb,obj".

    Returns:
        The names in the order of `FORMATS`, each once.

    Raises:
        ConfigError: A name is unknown, or there is none.
    """
    return _parsed("formats", formats, FORMATS)


def parse_parts(parts: str | Iterable[str]) -> tuple[str, ...]:
    """Check what mesh files show.

    Args:
        parts: Names, or one text with commas: "face,head".

    Returns:
        The names in the order of `PARTS`, each once.

    Raises:
        ConfigError: A name is unknown, or there is none.
    """
    return _parsed("parts", parts, PARTS)


def parse_scalp(scalp: str) -> Scalp:
    """Check what the scalp of a head shows.

    Raises:
        ConfigError: The value is not one of `Scalp`.
    """
    for known in get_args(Scalp):
        if scalp == known:
            return known
    raise ConfigError(f"scalp={scalp!r} is unknown; choose one of {', '.join(get_args(Scalp))}.")


def _parsed(name: str, given: str | Iterable[str], known: tuple[str, ...]) -> tuple[str, ...]:
    chosen = [one.strip() for one in (given.split(",") if isinstance(given, str) else given)]
    unknown = [one for one in chosen if one not in known]
    if unknown or not chosen:
        fault = f"{name} contains {unknown[0]!r}" if unknown else f"{name} is empty"
        raise ConfigError(f"{fault}; choose from {', '.join(known)}.")
    return tuple(one for one in known if one in chosen)


def needs_model(format_name: str, options: MeshOptions) -> bool:
    """Whether a format needs the face model."""
    shown = format_name == "ply" and (HEAD in options.parts or options.neutral)
    return shown or format_name not in _WITHOUT_MODEL


def needs_head(formats: Iterable[str], parts: Iterable[str]) -> bool:
    """Whether one of the files shows the head."""
    always = {"vrm"} | PICTURE_FORMATS
    return bool(always & set(formats)) or (HEAD in parts and bool(set(_ENDINGS) & set(formats)))


def mesh_file(format_name: str, part: str) -> str:
    """Name of a mesh file in a result folder."""
    return part + _ENDINGS[format_name]


def texture_file(part: str) -> str:
    """Name of the texture beside an OBJ in a result folder."""
    return TEXTURE_FILE if part == FACE else HEAD_TEXTURE_FILE


def files_of(format_name: str, parts: Iterable[str]) -> tuple[str, ...]:
    """The files of a format in a result folder; two formats can share a file.

    Args:
        format_name: One of `FORMATS`.
        parts: What meshes show.
    """
    if format_name in _OTHER_FILES:
        return _OTHER_FILES[format_name]
    if format_name == "vrm":
        return (mesh_file("vrm", HEAD),)
    files = [mesh_file(format_name, part) for part in parts]
    if format_name == "obj":
        files += [name for part in parts for name in (f"{part}.mtl", texture_file(part))]
    return tuple(files)


RESULT_FILES = frozenset(name for known in FORMATS for name in files_of(known, PARTS))
"""All files of a result."""
_ALL_FILES = RESULT_FILES | {VERTEX_ALBEDO_FILE}


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


def remove_other_files(folder: Path, formats: Iterable[str], parts: Iterable[str]) -> None:
    """Remove the files of an earlier result that the chosen formats do not replace; other files stay.

    Args:
        folder: The folder of one face.
        formats: The formats just written.
        parts: The parts just written.

    Raises:
        OSError: A file cannot be removed.
    """
    kept = {name for chosen in formats for name in files_of(chosen, parts)}
    for name in sorted(_ALL_FILES - kept):
        (folder / name).unlink(missing_ok=True)
