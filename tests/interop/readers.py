"""Open GLB files in other projects' readers, and print what each of them reads as a Markdown table.

    make interop

Usage: python tests/interop/readers.py FOLDER [FOLDER ...]

FOLDER is a result of `mien reconstruct` or `mien model phenotype`. The readers must find the surface of its face.obj,
the names of its coefficients.json and the ranges in the GLB's JSON. The exit code is 1 if a reader refuses a file or
reads something else. Needs the packages of requirements.txt, but not mien.
"""

from __future__ import annotations

import json
import multiprocessing
import struct
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE_M = 1e-5
TIMEOUT_S = 120


@dataclass(frozen=True)
class Content:
    """What a reader gives access to."""

    parts: tuple[int, ...]
    """Vertices of each part; most readers make a mesh of each material."""
    triangles: int
    box: np.ndarray
    """Lowest and highest corner, 2 × 3."""
    offsets: tuple[float, ...] | None = None
    """Greatest offset of each morph target along an axis; None if the reader's API has no morph targets."""
    names: tuple[str, ...] | None = None
    """Names of the morph targets; None if the reader's API does not have them."""


def content(
    parts: Sequence[Any],
    *,
    triangles: int,
    offsets: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
) -> Content:
    """The content of parts, each an array of vertices."""
    if not any(map(np.size, parts)):
        raise ValueError("the reader returned an empty mesh")
    vertices = np.concatenate([np.asarray(part, float).reshape(-1, 3) for part in parts])
    return Content(
        parts=tuple(np.size(part) // 3 for part in parts),
        triangles=triangles,
        box=box(vertices),
        offsets=None if offsets is None else tuple(map(float, offsets)),
        names=None if names is None else tuple(names),
    )


def box(vertices: np.ndarray) -> np.ndarray:
    return np.stack([vertices.min(axis=0), vertices.max(axis=0)])


def read_assimp_py(path: str) -> Content:
    import assimp_py

    meshes = assimp_py.import_file(path, 0).meshes
    return content([np.asarray(mesh.vertices) for mesh in meshes], triangles=sum(mesh.num_faces for mesh in meshes))


def read_impasse(path: str) -> Content:
    try:
        import impasse
    except BaseException as error:  # AssimpError is no Exception, and cannot be imported without the library
        raise ModuleNotFoundError(str(error)) from None
    try:
        meshes = impasse.load(path).meshes
    except impasse.errors.AssimpError as error:
        raise ValueError(str(error)) from None
    skin = np.asarray(meshes[0].vertices)
    targets = meshes[0].anim_meshes
    return content(
        [np.asarray(mesh.vertices) for mesh in meshes],
        triangles=sum(len(mesh.faces) for mesh in meshes),
        offsets=[np.abs(np.asarray(target.vertices) - skin).max() for target in targets],
        names=[target.name for target in targets],
    )


def read_open3d(path: str) -> Content:
    import open3d

    mesh = open3d.io.read_triangle_mesh(path)  # warns and returns an empty mesh if it fails
    return content([np.asarray(mesh.vertices)], triangles=len(mesh.triangles))


def read_pyvista(path: str) -> Content:
    import pyvista

    blocks = list(pyvista.read(path).recursive_iterator())
    data = dict(blocks[0].point_data) if blocks else {}  # it reports errors on stderr alone
    targets = sum(name.startswith("target") and name.endswith("_position") for name in data)
    return content(
        [block.points for block in blocks],
        triangles=sum(block.n_cells for block in blocks),
        offsets=[np.abs(data[f"target{index}_position"]).max() for index in range(targets)],
    )


def read_trimesh(path: str) -> Content:
    import trimesh

    meshes = list(trimesh.load_scene(path, process=False).geometry.values())
    return content(
        [mesh.vertices for mesh in meshes],
        triangles=sum(len(mesh.faces) for mesh in meshes),
        names=meshes[0].metadata["targetNames"],
    )


def read_pygltflib(path: str) -> Content:
    import pygltflib

    document = pygltflib.GLTF2().load(path)
    if document is None:
        raise ValueError("not a GLB file")
    primitives, accessors = document.meshes[0].primitives, document.accessors
    positions = [accessors[primitive.attributes.POSITION] for primitive in primitives]
    targets = [accessors[target["POSITION"]] for target in primitives[0].targets]
    return Content(  # it decodes no data
        parts=tuple(position.count for position in positions),
        triangles=sum(accessors[primitive.indices].count // 3 for primitive in primitives),
        box=np.array([positions[0].min, positions[0].max]),
        offsets=tuple(float(np.abs([target.min, target.max]).max()) for target in targets),
        names=tuple(document.meshes[0].extras["targetNames"]),
    )


@dataclass(frozen=True)
class Reader:
    """A reader, and the packages whose versions the table names."""

    read: Callable[[str], Content]
    packages: tuple[str, ...]
    may_be_missing: bool = False
    """It has no wheel for some Pythons, or needs a library of the system."""


READERS = (
    Reader(read_assimp_py, ("assimp-py",), may_be_missing=True),
    Reader(read_impasse, ("impasse",), may_be_missing=True),
    Reader(read_open3d, ("open3d",)),
    Reader(read_pyvista, ("pyvista", "vtk")),
    Reader(read_trimesh, ("trimesh",)),
    Reader(read_pygltflib, ("pygltflib",)),
)


@dataclass(frozen=True)
class Expected:
    """What a reader must find in the GLB of a folder."""

    triangles: int
    shapes: dict[str, np.ndarray]
    """Boxes of the base mesh and of the mesh with the weights of the photo's expression."""
    offsets: tuple[float, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path) -> Expected:
        rows = [line.split() for line in (folder / "face.obj").read_text().splitlines()]
        data = (folder / "face.glb").read_bytes()
        document = json.loads(data[20 : 20 + struct.unpack_from("<I", data, 12)[0]])
        primitive = document["meshes"][0]["primitives"][0]

        def declared(accessor: int) -> np.ndarray:
            return np.array([document["accessors"][accessor][bound] for bound in ("min", "max")])

        return cls(
            triangles=sum(row[0] == "f" for row in rows),
            shapes={
                "neutral": declared(primitive["attributes"]["POSITION"]),
                "with expression": box(np.array([row[1:4] for row in rows if row[0] == "v"], float)),
            },
            offsets=tuple(float(np.abs(declared(target["POSITION"])).max()) for target in primitive["targets"]),
            names=tuple(json.loads((folder / "coefficients.json").read_text())["expression"]),
        )

    def shape(self, read: Content) -> str | None:
        near = (name for name, known in self.shapes.items() if np.abs(read.box - known).max() < TOLERANCE_M)
        return next(near, None)

    def faults(self, read: Content) -> list[str]:
        found = []
        if read.triangles != self.triangles:
            found.append(f"{read.triangles} triangles instead of {self.triangles}")
        if self.shape(read) is None:
            found.append(f"bounding box {read.box.round(5).tolist()}")
        if read.offsets is not None and not (
            len(read.offsets) == len(self.offsets) and np.allclose(read.offsets, self.offsets, rtol=0, atol=TOLERANCE_M)
        ):
            found.append("other morph targets")
        if read.names not in (None, self.names):
            found.append("other names of morph targets")
        return found


COLUMNS = ("file", "reader", "opens", "vertices", "morph targets", "shape", "box in mm", "up")


def table_row(folder: Path, expected: Expected, reader: Reader) -> tuple[list[str], bool]:
    """Cells of the table, and whether the reader failed."""
    name = reader.packages[0]
    try:
        name = ", ".join(f"{package} {version(package)}" for package in reader.packages)
        # In a process of its own, since readers can crash and bring libraries that do not go together.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            read = pool.submit(reader.read, str(folder / "face.glb")).result(TIMEOUT_S)
    except ModuleNotFoundError as error:
        return [folder.name, name, f"not tried: {error}"], not reader.may_be_missing
    except Exception as error:
        return [folder.name, name, f"**no**: {error or type(error).__name__}"], True
    if faults := expected.faults(read):
        return [folder.name, name, "**no**: " + ", ".join(faults)], True
    return [folder.name, name, "yes", *described(read, expected)], False


def described(read: Content, expected: Expected) -> list[str]:
    """The cells of a file that was read without faults."""
    targets = "not read" if read.offsets is None else str(len(read.offsets))
    names = "" if read.names is None else f", {len(read.names)} names"
    size = " × ".join(f"{1000 * side:.1f}" for side in np.ptp(read.box, axis=0))
    vertices = " + ".join(f"{count:,}" for count in read.parts)
    return [vertices, targets + names, str(expected.shape(read)), size, up_axis(read.box, expected.shapes["neutral"])]


def up_axis(read: np.ndarray, known: np.ndarray) -> str:
    """The longest axis of a head, and its end that is as far from the origin as the top of `known`, which is +Y up."""
    axis = int(np.ptp(read, axis=0).argmax())
    top = known[1, 1]
    return ("+" if abs(read[1, axis] - top) < abs(-read[0, axis] - top) else "−") + "XYZ"[axis]


def main(folders: Sequence[Path]) -> int:
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    failed = False
    for folder in folders:
        expected = Expected.of(folder)
        for reader in READERS:
            cells, wrong = table_row(folder, expected, reader)
            cells += [""] * (len(COLUMNS) - len(cells))
            print(f"| {' | '.join(cells)} |", flush=True)
            failed |= wrong
    return int(failed)


if __name__ == "__main__":
    sys.exit(main([Path(argument) for argument in sys.argv[1:]]))
