"""Tiny files in the exact formats of the field's models: dtypes, index bases, orders, groups, pickle instructions."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mien.morphable.formats.arkit import ARKIT_NAMES
from mien.morphable.formats.source import SourceModel

COLUMNS, ROWS = 9, 11
V = COLUMNS * ROWS


@dataclass(frozen=True)
class Face:
    """A bulged grid of face size, metres, with orthonormal bases and deviations apart, as the files store them."""

    mean: np.ndarray
    triangles: np.ndarray
    directions: np.ndarray
    """(8, 3V) orthonormal rows."""
    deviations: np.ndarray
    albedo: np.ndarray

    def basis(self, first: int, count: int) -> np.ndarray:
        """(count, V, 3) scaled components."""
        rows = self.directions[first : first + count] * self.deviations[first : first + count, None]
        return rows.reshape(count, V, 3)


def tiny_face(seed: int = 0) -> Face:
    rng = np.random.default_rng(seed)
    u, v = (g.ravel() for g in np.meshgrid(np.linspace(-1, 1, COLUMNS), np.linspace(-1, 1, ROWS)))
    mean = np.stack([0.07 * u, 0.09 * v, 0.05 - 0.04 * (u**2 + v**2)], 1)
    corner = (np.arange(ROWS - 1)[:, None] * COLUMNS + np.arange(COLUMNS - 1)).ravel()
    triangles = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + COLUMNS + 1], 1),
            np.stack([corner, corner + COLUMNS + 1, corner + COLUMNS], 1),
        ]
    )
    directions = np.linalg.qr(rng.normal(size=(3 * V, 8)))[0].T
    return Face(mean, triangles, directions, np.linspace(0.02, 0.005, 8), rng.uniform(0.2, 0.9, (V, 3)))


FACE = tiny_face()


# Basel Face Model 2009 and Deep3D: MATLAB files


def mat_bytes(variables: dict[str, np.ndarray], *, packed: bool = False, order: str = "<") -> bytes:
    """A MAT-file of level 5 as MATLAB writes it, with zlib around each variable where `packed`."""
    codes = {"f4": (7, 7), "f8": (6, 9), "i4": (12, 5), "u1": (9, 2)}
    chunks = [b"MATLAB 5.0 MAT-file".ljust(124), struct.pack(order + "H", 0x0100), b"IM" if order == "<" else b"MI"]
    for name, array in variables.items():
        matrix = np.atleast_2d(array)
        kind, code = codes[matrix.dtype.str[1:]]
        data = matrix.astype(order + matrix.dtype.str[1:]).tobytes(order="F")
        if matrix.dtype.kind == "f" and ((matrix >= 0) & (matrix < 256) & (matrix % 1 == 0)).all():
            code, data = 2, matrix.astype(np.uint8).tobytes(order="F")  # MATLAB keeps whole numbers small
        body = b"".join(
            [
                element(6, struct.pack(order + "II", kind, 0), order),
                element(5, struct.pack(order + f"{matrix.ndim}i", *matrix.shape), order),
                element(1, name.encode(), order),
                element(code, data, order),
            ]
        )
        whole = struct.pack(order + "II", 14, len(body)) + body
        if packed:
            squeezed = zlib.compress(whole)
            whole = struct.pack(order + "II", 15, len(squeezed)) + squeezed
        chunks.append(whole)
    return b"".join(chunks)


def element(kind: int, data: bytes, order: str = "<") -> bytes:
    if 0 < len(data) <= 4:  # the small form
        return struct.pack(order + "I", len(data) << 16 | kind) + data.ljust(4, b"\0")
    return struct.pack(order + "II", kind, len(data)) + data + bytes(-len(data) % 8)


def packed(body: bytes) -> bytes:
    squeezed = zlib.compress(body)
    return struct.pack("<II", 15, len(squeezed)) + squeezed


def bfm2009_variables(face: Face = FACE) -> dict[str, np.ndarray]:
    single = np.float32
    return {
        "shapeMU": (face.mean.reshape(-1, 1) * 1e6).astype(single),
        "shapePC": face.directions[:3].T.astype(single),
        "shapeEV": (face.deviations[:3, None] * 1e6).astype(single),
        "texMU": (face.albedo.reshape(-1, 1) * 255).astype(single),
        "texPC": face.directions[3:5].T.astype(single),
        "texEV": (face.deviations[3:5, None] * 255).astype(single),
        "tl": (face.triangles[:, [0, 2, 1]] + 1).astype(np.float64),
        "segbin": np.zeros((V, 4)),
    }


def write_bfm2009(folder: Path, *, packed: bool = False, drop: tuple[int, ...] = (0, 1)) -> Path:
    """The whole folder; the expressions leave out the vertices `drop`, the front five more."""
    (folder / "01_MorphableModel.mat").write_bytes(mat_bytes(bfm2009_variables(), packed=packed))
    trimmed = np.setdiff1d(np.arange(V), drop)
    expression = FACE.directions[5:7].reshape(2, V, 3)[:, trimmed]
    with (folder / "Exp_Pca.bin").open("wb") as file:
        np.array([2], "<i4").tofile(file)
        np.full(3 * len(trimmed), 7.0, "<f4").tofile(file)  # the mean, which is left out
        expression.astype("<f4").tofile(file)
    (folder / "std_exp.txt").write_text(" ".join(f"{d * 1e6:.8g}" for d in FACE.deviations[5:7]) + "\n")
    one_based = {"trimIndex": (trimmed + 1).astype(np.float64)[:, None]}
    (folder / "BFM_exp_idx.mat").write_bytes(mat_bytes(one_based))
    front = np.arange(len(trimmed))[:-5] + 1
    (folder / "BFM_front_idx.mat").write_bytes(mat_bytes({"idx": front.astype(np.float64)[:, None]}))
    return folder


def write_deep3d(path: Path, face: Face = FACE, *, identity: int = 3, expression: int = 2, albedo: int = 2) -> Path:
    scaled = (face.directions * face.deviations[:, None]).astype(np.float32)
    variables = {
        "meanshape": (face.mean.reshape(1, -1) * 10 + np.tile([0.3, -0.2, 0.1], V)).astype(np.float32),
        "meantex": (face.albedo.reshape(1, -1) * 255).astype(np.float32),
        "idBase": scaled[:identity].T * 10,
        "exBase": scaled[identity : identity + expression].T * 10,
        "texBase": scaled[-albedo:].T * 255,
        "tri": (face.triangles + 1).astype(np.int32),
        "point_buf": np.ones((V, 8), np.int32),
        "tri_mask2": np.ones((4, 3), np.int32),
        "keypoints": (np.arange(68)[None] % V + 1).astype(np.int32),
        "frontmask2_idx": np.ones((5, 1), np.int32),
        "skinmask": (np.arange(V)[None] % 2).astype(np.float64),
    }
    path.write_bytes(mat_bytes(variables))
    return path


# Basel Face Model 2017: HDF5


def write_bfm2017(path: Path, face: Face = FACE, *, expression: bool = True, colour: bool = True) -> Path:
    with h5py.File(path, "w") as file:
        parts = {"shape": (face.mean.reshape(-1) * 1e3, face.directions[:3], (face.deviations[:3] * 1e3) ** 2)}
        if expression:
            offset = np.tile([0.5, 0.0, 0.0], len(face.mean))
            parts["expression"] = (offset, face.directions[3:5], (face.deviations[3:5] * 1e3) ** 2)
        if colour:
            parts["color"] = (face.albedo.reshape(-1), face.directions[5:7], face.deviations[5:7] ** 2)
        for name, (mean, rows, variance) in parts.items():
            model = file.create_group(f"{name}/model")
            model.create_dataset("mean", data=mean.astype("<f4"))
            model.create_dataset("pcaBasis", data=rows.T.astype("<f4"))
            model.create_dataset("pcaVariance", data=variance.astype("<f4"))
            model.create_dataset("noiseVariance", data=np.float32(0))
            representer = file.create_group(f"{name}/representer")
            representer.create_dataset("cells", data=face.triangles.T.astype("<i4"))
            representer.create_dataset("points", data=face.mean.T.astype("<f4"))
            representer.attrs["name"] = "vtkStandardMeshRepresenter"
        file.create_dataset("version/majorVersion", data=np.int32(0))
    return path


# FLAME: a pickle of Python 2 with chumpy and scipy.sparse


class Ch:
    """chumpy's array object, as far as a pickle shows it."""

    def __init__(self, x: np.ndarray) -> None:
        self.x, self._dirty_vars, self._itr = x, set(), None


class Csc:
    """scipy.sparse.csc.csc_matrix, as far as a pickle shows it."""

    def __init__(self, dense: np.ndarray) -> None:
        columns = [np.flatnonzero(column) for column in dense.T]
        self._shape = dense.shape
        self.maxprint = 50
        self.indices = np.concatenate(columns).astype(np.int32)
        self.indptr = np.concatenate([[0], np.cumsum([len(c) for c in columns])]).astype(np.int32)
        self.data = np.concatenate([dense[rows, k] for k, rows in enumerate(columns)]).astype(np.float64)
        self.format = "csc"


PYTHON2_NAMES: dict[type, str] = {Ch: "chumpy.ch\nCh", Csc: "scipy.sparse.csc\ncsc_matrix"}


class Python2Pickler(pickle._Pickler):
    """Writes what cPickle of Python 2 wrote with protocol 2: byte strings, and the modules' old names."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012 (as the base class has it)

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, protocol=2)

    def save_text(self, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        self.write(b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_text

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = {"numpy._core.multiarray": "numpy.core.multiarray", "copyreg": "copy_reg"}.get(
            obj.__module__, obj.__module__
        )
        self.write(b"c" + (PYTHON2_NAMES.get(obj) or f"{module}\n{name or obj.__qualname__}").encode() + b"\n")
        self.memoize(obj)

    dispatch[type] = save_global
    dispatch[type(zlib.compress)] = save_global
    dispatch[type(tiny_face)] = save_global


def python2_pickle(content: Any) -> bytes:
    stream = io.BytesIO()
    Python2Pickler(stream).dump(content)
    return stream.getvalue()


class Runs:
    """Pickled, it is a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def flame_arrays(face: Face = FACE) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    shapedirs = np.zeros((V, 3, 302))
    shapedirs[..., :4] = face.basis(0, 4).transpose(1, 2, 0)
    shapedirs[..., 300:] = face.basis(4, 2).transpose(1, 2, 0)
    regressor = np.zeros((5, V))
    regressor[np.arange(5)[:, None], rng.integers(0, V, (5, 4))] = 0.25
    weights = rng.uniform(size=(V, 5))
    return {
        "v_template": face.mean,
        "f": face.triangles.astype(np.uint32),
        "shapedirs": shapedirs,
        "posedirs": rng.normal(size=(V, 3, 36)) * 1e-3,
        "J_regressor": regressor,
        "weights": weights / weights.sum(1, keepdims=True),
        "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]], np.uint32),
    }


def flame_content(face: Face = FACE) -> dict[str, Any]:
    arrays = flame_arrays(face)
    chumpy = {name: Ch(arrays[name]) for name in ("v_template", "shapedirs")}
    notes = {"bs_style": "lbs", "bs_type": "lrotmin", "J": Ch(np.zeros((5, 3))), "eyelids": [1, 2]}
    fortran = {"posedirs": np.asfortranarray(arrays["posedirs"])}
    return arrays | chumpy | fortran | {"J_regressor": Csc(arrays["J_regressor"])} | notes


def write_flame(path: Path, face: Face = FACE) -> Path:
    path.write_bytes(python2_pickle(flame_content(face)))
    return path


def embedding_arrays(*, points: int = 68) -> dict[str, np.ndarray]:
    """Landmark k lies mostly on the second corner of triangle k."""
    weights = np.tile([0.1, 0.8, 0.1], (points, 1))
    dynamic = np.stack([np.arange(17) + 3 * (row // 40) for row in range(79)])
    return {
        "full_lmk_faces_idx": np.arange(points)[None],
        "full_lmk_bary_coords": weights[None],
        "static_lmk_faces_idx": np.arange(17, 68).astype(np.uint32),
        "static_lmk_bary_coords": weights[:51],
        "dynamic_lmk_faces_idx": dynamic,
        "dynamic_lmk_bary_coords": np.tile([0.2, 0.2, 0.6], (79, 17, 1)),
    }


# eos: cereal


def eigen(matrix: np.ndarray) -> bytes:
    matrix = np.asarray(matrix, "<f4").reshape(len(matrix), -1)
    return struct.pack("<ii", *matrix.shape) + matrix.tobytes(order="F")


def cereal_pca(mean: np.ndarray, rows: np.ndarray, variances: np.ndarray, triangles: np.ndarray) -> bytes:
    listed = struct.pack("<Q", len(triangles)) + triangles.astype("<i4").tobytes()
    basis = rows.T if rows.size else np.zeros((0, 0))
    return eigen(mean) + (eigen(basis) if rows.size else struct.pack("<ii", 0, 0)) + eigen(variances) + listed


def cereal_blendshapes(names: tuple[str, ...], offsets: np.ndarray) -> bytes:
    chunks = [struct.pack("<Q", len(names))]
    for name, field in zip(names, offsets, strict=True):
        chunks += [struct.pack("<Q", len(name)), name.encode(), eigen(field.reshape(-1))]
    return b"".join(chunks)


NOTHING = b"\x01"
EMPTY_PCA = struct.pack("<ii", 0, 1) + struct.pack("<ii", 0, 0) + struct.pack("<ii", 0, 1) + struct.pack("<Q", 0)


def write_surrey(path: Path, *, version: int = 4, expression: str = "blendshapes", colour: bool = True) -> Path:
    face = FACE
    variances = (face.deviations * 1e3) ** 2
    chunks = [struct.pack("<I", version)]
    chunks.append(cereal_pca(face.mean.reshape(-1) * 1e3, face.directions[:3], variances[:3], face.triangles))
    tinted = cereal_pca(face.albedo.reshape(-1), face.directions[5:7], face.deviations[5:7] ** 2, face.triangles)
    chunks.append(tinted if colour else EMPTY_PCA)
    if version >= 2:
        shapes = cereal_blendshapes(("anger", "joy"), face.basis(3, 2) * 1e3)
        offset = np.tile([0.5, 0.0, 0.0], V)
        pca = cereal_pca(offset, face.directions[3:5], variances[3:5], face.triangles)
        chunks.append(
            {
                "none": NOTHING,
                "blendshapes": b"\0" + struct.pack("<i", 1) + shapes,
                "pca": b"\0" + struct.pack("<i", 0) + pca,
            }[expression]
        )
    if version >= 3:
        chunks.append(b"\0" + struct.pack("<Q", 1) + struct.pack("<Q", 4) + b"nose" + struct.pack("<i", 49))
    grid = np.stack([(face.mean[:, 0] + 0.07) / 0.14, 1 - (face.mean[:, 1] + 0.09) / 0.18], 1)
    chunks.append(struct.pack("<Q", V) + grid.astype("<f8").tobytes())
    if version >= 4:
        chunks.append(struct.pack("<Q", 0))
    path.write_bytes(b"".join(chunks))
    return path


# ICT-FaceKit


ICT_ACTIONS = ("browDown_L", "browInnerUp_L", "browInnerUp_R", "jawOpen", "PupilDilate_L")


def ict_offsets() -> np.ndarray:
    return FACE.basis(2, len(ICT_ACTIONS)) * 100


def write_ict_folder(folder: Path) -> Path:
    mean = FACE.mean * 100
    quads = [
        (r * COLUMNS + c, r * COLUMNS + c + 1, (r + 1) * COLUMNS + c + 1, (r + 1) * COLUMNS + c)
        for r in range(ROWS - 1)
        for c in range(COLUMNS - 1)
    ]
    faces = [" ".join(f"{v + 1}/{v + 1}/{v + 1}" for v in quad) for quad in quads]
    meshes = {"generic_neutral_mesh": mean}
    meshes |= {f"identity{k:03d}": mean + FACE.basis(k, 1)[0] * 100 for k in range(2)}
    meshes |= {name: mean + offset for name, offset in zip(ICT_ACTIONS, ict_offsets(), strict=True)}
    for name, vertices in meshes.items():
        lines = [f"v {x:.9f} {y:.9f} {z:.9f}" for x, y, z in vertices] + ["vt 0.5 0.5", "usemtl M_Face"]
        lines += [f"f {face}" for face in faces[:-2]] + ["usemtl M_EyeLashes"] + [f"f {face}" for face in faces[-2:]]
        (folder / f"{name}.obj").write_text("\n".join(lines) + "\n")
    return folder


def write_ict_npz(path: Path, **changed: np.ndarray) -> Path:
    arrays = {
        "vertices": (FACE.mean * 100).astype(np.float32),
        "triangles": FACE.triangles.astype(np.int32),
        "triangle_to_quad": np.arange(len(FACE.triangles), dtype=np.int32) // 2,
        "identity_deltas": (FACE.basis(0, 2) * 100).astype(np.float32),
        "expression_deltas": ict_offsets().astype(np.float32),
        "expression_names": np.array(ICT_ACTIONS),
        "landmarks68": np.arange(68, dtype=np.int32),
        "material_names": np.array(["M_Face", "M_EyeLashes"]),
        "material_quad_range": np.array([[0, 70], [70, 80]], np.int32),
    }
    np.savez_compressed(path, **(arrays | changed))  # pyright: ignore[reportArgumentType]
    return path


# The generic npz


def generic_arrays(**changed: Any) -> dict[str, Any]:
    return {
        "format": np.array("mien-npz-1"),
        "length_unit_m": np.array(0.001),
        "colour_scale": np.array(255.0),
        "mean": FACE.mean * 1e3,
        "triangles": FACE.triangles,
        "identity_basis": FACE.basis(0, 3) * 1e3,
        "expression_basis": FACE.basis(3, 2) * 1e3,
        "expression_names": np.array(["jawOpen", "smile"]),
        "albedo_mean": FACE.albedo * 255,
        "albedo_basis": FACE.basis(5, 2) * 255,
        "uv": np.clip(FACE.mean[:, :2] * 5 + 0.5, 0, 1),
        "landmarks68": np.where(np.arange(68) < 60, np.arange(68), -1),
        "mask_skin": np.ones(V),
    } | changed


def write_generic(path: Path, **changed: Any) -> Path:
    arrays = {name: value for name, value in generic_arrays(**changed).items() if value is not None}
    np.savez(path, **arrays)
    return path


def source_model() -> SourceModel:
    return SourceModel(
        name="tiny",
        family="generic",
        licence="CC0-1.0",
        mean=FACE.mean.astype(np.float32),
        triangles=FACE.triangles,
        identity_basis=FACE.basis(0, 3).astype(np.float32),
        expression_basis=np.zeros((52, V, 3), np.float32),
        expression_names=ARKIT_NAMES,
        expression_kind="strength",
    )


def npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()
