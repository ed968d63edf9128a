"""ICT-FaceKit (MIT): the folder of OBJ files, or an .npz of the same arrays. Centimetres, quads, like ARKit.

A folder holds generic_neutral_mesh.obj, identity000.obj … and one OBJ per blendshape (browDown_L.obj …). Li et al.,
Learning Formation of Physically-Based Face Attributes, CVPR 2020. Its free model has no albedo.

The blendshapes are renamed to ARKit's 52: `_L` and `_R` become `Left` and `Right`. browInnerUp and cheekPuff, which ICT
splits in two, are the sums of their halves. tongueOut, which ICT lacks, moves nothing. PupilDilate and cheekRaiser are
left out. All vertices stay; triangles of transparent parts (tears, eye blend, occlusion, lashes) are left out, since
mien renders opaque surfaces.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from mien.errors import FormatError
from mien.io.npz import NpzReader, indices, names_of, numbers
from mien.io.reading import file_size
from mien.morphable.formats.arkit import ARKIT_NAMES
from mien.morphable.formats.limits import MAX_COMPONENTS, MAX_TRIANGLES, MAX_VERTICES
from mien.morphable.formats.source import SourceModel, as_metres, checked, silently
from mien.typing import Float, Int

CENTIMETRE = 0.01
NEUTRAL_FILE = "generic_neutral_mesh.obj"
_LICENCE = "MIT (ICT-FaceKit, USC Institute for Creative Technologies)"
_TRANSPARENT = frozenset({"M_LacrimalFluid", "M_EyeBlend", "M_EyeOcclusion", "M_EyeLashes"})
_LARGEST_OBJ = 64 << 20
_LONGEST_NUMBER = 32

# Vertices of the 68 iBUG points, from ICT-FaceKit's README (MIT).
_LANDMARKS = (
    1225, 1888, 1052, 367, 1719, 1722, 2199, 1447, 966, 3661, 4390, 3927, 3924, 2608, 3272, 4088, 3443, 268, 493, 1914,
    2044, 1401, 3615, 4240, 4114, 2734, 2509, 978, 4527, 4942, 4857, 1140, 2075, 1147, 4269, 3360, 1507, 1542, 1537,
    1528, 1518, 1511, 3742, 3751, 3756, 3721, 3725, 3732, 5708, 5695, 2081, 0, 4275, 6200, 6213, 6346, 6461, 5518,
    5957, 5841, 5702, 5711, 5533, 6216, 6207, 6470, 5517, 5966,
)  # fmt: skip
_FULL_COUNT = 26_719


@silently
def read_ict(path: Path) -> SourceModel:
    """Read the folder FaceXModel or the .npz; raises FormatError."""
    return _read_folder(path) if path.is_dir() else _read_npz(path)


def _read_npz(path: Path) -> SourceModel:
    archive = NpzReader(path)
    mean = _array(archive, "vertices", 2)
    triangles = indices(archive.array("triangles"), "triangles", path)
    if "material_names" in archive:
        triangles = triangles[_opaque(archive, triangles)]
    known = indices(archive.array("landmarks68"), "landmarks68", path)
    if known.shape != (68,):
        raise FormatError(f"{path}: landmarks68 is {known.shape}; expected 68 vertices")
    names = names_of(archive.array("expression_names"), "expression_names", path)
    # First, because this step briefly holds two copies of the blendshapes.
    expression = _as_arkit(_array(archive, "expression_deltas", 3), names, mean, path)
    identity = _array(archive, "identity_deltas", 3)
    return _assembled(path, mean, triangles, identity, expression, landmarks=dict(enumerate(known.tolist())))


def _opaque(archive: NpzReader, triangles: np.ndarray) -> np.ndarray:
    """Mask of the triangles that do not belong to a transparent material."""
    path = archive.path
    names = names_of(archive.array("material_names"), "material_names", path)
    ranges = indices(archive.array("material_quad_range"), "material_quad_range", path)
    quads = indices(archive.array("triangle_to_quad"), "triangle_to_quad", path)
    if ranges.shape != (len(names), 2) or quads.shape != (len(triangles),):
        raise FormatError(
            f"{path}: material_quad_range is {ranges.shape} and triangle_to_quad {quads.shape}; expected "
            f"{(len(names), 2)} and {(len(triangles),)}"
        )
    hidden = np.zeros(len(quads), bool)
    for name, (first, end) in zip(names, ranges, strict=True):
        if name in _TRANSPARENT:
            hidden |= (quads >= first) & (quads < end)
    return ~hidden


def _array(archive: NpzReader, name: str, rank: int) -> np.ndarray:
    array = numbers(archive.array(name), name, archive.path)
    if array.ndim != rank or array.shape[-1] != 3:
        raise FormatError(f"{archive.path}: {name} is {array.shape}; expected {rank} dimensions, the last of 3")
    in_place = array if array.dtype == np.float32 else None
    return np.multiply(array, np.float32(CENTIMETRE), out=in_place, dtype=np.float32, casting="unsafe")


def _as_arkit(
    blendshapes: np.ndarray, names: tuple[str, ...], mean: np.ndarray, path: Path
) -> Float[np.ndarray, "52 V 3"]:
    """ICT's blendshapes as ARKit's, in ARKit's order."""
    if len(names) != len(blendshapes) or blendshapes.shape[1:] != mean.shape:
        raise FormatError(f"{path}: {len(names)} names for blendshapes {blendshapes.shape}; expected one each")
    expression = np.zeros((len(ARKIT_NAMES), *mean.shape), np.float32)
    place = {name: k for k, name in enumerate(ARKIT_NAMES)}
    unknown = []
    for name, offsets in zip(names, blendshapes, strict=True):
        target = arkit_name(name)
        if target is None:
            unknown.append(name)
        else:
            expression[place[target]] += offsets
    if len(unknown) == len(names):
        raise FormatError(f"{path}: none of {unknown[:5]} has an ARKit name; expected browDown_L and so on")
    return expression


def _assembled(
    path: Path,
    mean: np.ndarray,
    triangles: np.ndarray,
    identity: np.ndarray,
    expression: np.ndarray,
    *,
    landmarks: dict[int, int],
) -> SourceModel:
    model = SourceModel(
        name="ict",
        family="ict",
        licence=_LICENCE,
        mean=mean,
        triangles=triangles,
        identity_basis=identity,
        expression_basis=expression,
        expression_names=ARKIT_NAMES,
        expression_kind="strength",
        landmarks=landmarks,
    )
    return checked(model, path)


def arkit_name(ict_name: str) -> str | None:
    """ARKit's name of an ICT blendshape; None if ARKit has no such blendshape."""
    name = ict_name.replace("_L", "Left").replace("_R", "Right")
    if name in ARKIT_NAMES:
        return name
    whole = ict_name.removesuffix("_L").removesuffix("_R")
    return whole if whole in ARKIT_NAMES else None


def _read_folder(folder: Path) -> SourceModel:
    mean, triangles = read_obj(folder / NEUTRAL_FILE)
    others = sorted(file for file in folder.glob("*.obj") if file.name != NEUTRAL_FILE)
    if len(others) > MAX_COMPONENTS:
        raise FormatError(f"{folder}: {len(others)} OBJ files; expected at most {MAX_COMPONENTS}")
    identities = [file for file in others if re.fullmatch(r"identity\d+", file.stem)]
    blendshapes = [file for file in others if arkit_name(file.stem) is not None]
    if not identities or not blendshapes:
        raise FormatError(f"{folder}: lacks identity000.obj or browDown_L.obj; expected the folder FaceXModel")
    expression = _as_arkit(_offsets(blendshapes, mean), tuple(file.stem for file in blendshapes), mean, folder)
    landmarks: dict[int, int] = dict(enumerate(_LANDMARKS)) if len(mean) == _FULL_COUNT else {}
    metres = as_metres(mean, CENTIMETRE)
    return _assembled(folder, metres, triangles, _offsets(identities, mean), expression, landmarks=landmarks)


def _offsets(files: list[Path], mean: np.ndarray) -> np.ndarray:
    offsets = np.empty((len(files), *mean.shape), np.float32)
    for k, file in enumerate(files):
        vertices = _obj_vertices(_obj_content(file), file)
        if vertices.shape != mean.shape:
            raise FormatError(f"{file}: {len(vertices)} vertices; expected {len(mean)} as the neutral mesh has")
        np.multiply(vertices - mean, CENTIMETRE, out=offsets[k], casting="unsafe")
    return offsets


def read_obj(path: Path) -> tuple[Float[np.ndarray, "V 3"], Int[np.ndarray, "T 3"]]:
    """Vertices and the triangles of all opaque faces of an OBJ file; a quad (a, b, c, d) is split from a to c."""
    content = _obj_content(path)
    vertices = _obj_vertices(content, path)
    triangles: list[tuple[int, int, int]] = []
    material = ""
    try:
        for line in content.splitlines():
            if line.startswith(b"usemtl"):
                material = line[6:].strip().decode("latin-1")
            elif line.startswith(b"f ") and material not in _TRANSPARENT:
                corners = [int(corner.split(b"/", 1)[0]) - 1 for corner in line.split()[1:]]
                triangles += [(corners[0], corners[k], corners[k + 1]) for k in range(1, len(corners) - 1)]
                if len(triangles) > MAX_TRIANGLES:
                    raise FormatError(f"{path}: more than {MAX_TRIANGLES} triangles")
    except (ValueError, OverflowError) as error:
        raise FormatError(f"{path}: a face is not a list of vertex numbers ({error})") from error
    try:
        return vertices, np.array(triangles, np.int64).reshape(-1, 3)
    except OverflowError as error:
        raise FormatError(f"{path}: a face has a vertex number that is too large") from error


def _obj_content(path: Path) -> bytes:
    if file_size(path) > _LARGEST_OBJ:
        raise FormatError(f"{path}: larger than {_LARGEST_OBJ} bytes; expected a mesh of ICT-FaceKit")
    return path.read_bytes()


def _obj_vertices(content: bytes, path: Path) -> np.ndarray:
    rows = [line[2:].split()[:3] for line in content.splitlines() if line.startswith(b"v ")]
    if not 3 <= len(rows) <= MAX_VERTICES or any(len(row) != 3 for row in rows):
        raise FormatError(f"{path}: {len(rows)} vertices; expected 3 to {MAX_VERTICES} with 3 numbers each")
    # In the array of texts below every entry takes the memory of the longest.
    longest = max(len(word) for row in rows for word in row)
    if longest > _LONGEST_NUMBER:
        raise FormatError(f"{path}: a vertex has a number of {longest} characters; expected {_LONGEST_NUMBER} or fewer")
    try:
        return np.array(rows, np.bytes_).astype(np.float64)
    except ValueError as error:
        raise FormatError(f"{path}: a vertex is not three numbers ({error})") from error
