"""What is fuzzed: each reader with a small honest file, given as bytes. Used by hypothesis here and by atheris."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mien.errors import MienError
from mien.morphable.formats.anny import read_phenotype
from mien.morphable.formats.arkit import read_arkit_weights
from mien.morphable.formats.bfm2009 import read_bfm2009
from mien.morphable.formats.bfm2017 import read_bfm2017
from mien.morphable.formats.deep3d import read_deep3d
from mien.morphable.formats.flame import read_flame, read_landmark_embedding
from mien.morphable.formats.generic import read_generic
from mien.morphable.formats.ict import read_ict
from mien.morphable.formats.mat5 import read_mat
from mien.morphable.formats.surrey import read_surrey
from tests.formats import files


@dataclass(frozen=True)
class Target:
    """A reader, the file that is damaged, and a whole file to start from."""

    name: str
    file: str
    honest: Callable[[Path], bytes]
    """Makes the file, and whatever belongs beside it, in a folder; returns its bytes."""
    read: Callable[[Path], object]
    """Reads the damaged file."""
    wrap: Callable[[bytes], bytes] = bytes
    """From fuzzed bytes to a file: puts right what checksums would otherwise catch at once."""

    def survives(self, folder: Path, content: bytes) -> bool:
        """Whether the damaged file was read; a typed error counts as refusal, everything else is raised."""
        path = folder / self.file
        path.write_bytes(self.wrap(content))
        try:
            self.read(path)
        except MienError:
            return False
        return True


def _bytes_of(write: Callable[[Path], Path], name: str) -> Callable[[Path], bytes]:
    return lambda folder: write(folder / name).read_bytes()


def _bfm2009(folder: Path) -> bytes:
    files.write_bfm2009(folder)
    return (folder / "01_MorphableModel.mat").read_bytes()


def _expressions(folder: Path) -> bytes:
    files.write_bfm2009(folder)
    return (folder / "Exp_Pca.bin").read_bytes()


def _ict_folder(folder: Path) -> bytes:
    files.write_ict_folder(folder)
    return (folder / "generic_neutral_mesh.obj").read_bytes()


def _embedding(folder: Path) -> bytes:
    content = files.embedding_arrays()
    content |= {k: torch.from_numpy(v) for k, v in content.items() if k.startswith("dynamic")}
    np.save(folder / "landmark_embedding.npy", np.array(content, dtype=object), allow_pickle=True)
    return (folder / "landmark_embedding.npy").read_bytes()


def _flame_npz(path: Path) -> Path:
    np.savez(path, **files.flame_arrays())  # pyright: ignore[reportArgumentType]
    return path


def _arkit(folder: Path) -> bytes:
    return b'{"jawOpen": 0.5, "_neutral": 0.25, "mouthSmileLeft": 1}'


def _anny(folder: Path) -> bytes:
    return (
        b'{"phenotype_kwargs": {"gender": 0.25, "age": [0.75]}, "facial_actions": {}, "pose_parameters": {"root": []}}'
    )


def _packed_body(folder: Path) -> bytes:
    whole = files.mat_bytes({"x": np.arange(40.0).reshape(8, 5)})
    return whole[128:]


def _packed_mat(body: bytes) -> bytes:
    """The bytes as one compressed variable of an otherwise whole MAT-file."""
    squeezed = zlib.compress(body)
    return files.mat_bytes({}) + struct.pack("<II", 15, len(squeezed)) + squeezed


def _generic_member(folder: Path) -> bytes:
    return files.npy_bytes(files.generic_arrays()["identity_basis"])


def _archive_with(member: bytes) -> bytes:
    """A whole generic .npz, but for the bytes of one array; the checksum is right."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in files.generic_arrays().items():
            content = member if name == "identity_basis" else files.npy_bytes(np.asarray(array))
            archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


TARGETS = {
    target.name: target
    for target in (
        Target("bfm2009", "01_MorphableModel.mat", _bfm2009, read_bfm2009),
        Target("bfm2009_expressions", "Exp_Pca.bin", _expressions, lambda path: read_bfm2009(path.parent)),
        Target("mat_packed", "a.mat", _packed_body, lambda p: read_mat(p, frozenset({"x"})), _packed_mat),
        Target("deep3d", "a.mat", _bytes_of(files.write_deep3d, "a.mat"), read_deep3d),
        Target("bfm2017", "a.h5", _bytes_of(files.write_bfm2017, "a.h5"), read_bfm2017),
        Target("flame_pkl", "a.pkl", _bytes_of(files.write_flame, "a.pkl"), read_flame),
        Target("flame_npz", "a.npz", _bytes_of(_flame_npz, "a.npz"), read_flame),
        Target(
            "flame_landmarks",
            "landmark_embedding.npy",
            _embedding,
            lambda path: read_landmark_embedding(path, files.FACE.triangles),
        ),
        Target("ict_folder", "generic_neutral_mesh.obj", _ict_folder, lambda path: read_ict(path.parent)),
        Target("ict_npz", "a.npz", _bytes_of(files.write_ict_npz, "a.npz"), read_ict),
        Target("surrey", "a.bin", _bytes_of(files.write_surrey, "a.bin"), read_surrey),
        Target("generic", "a.npz", _bytes_of(files.write_generic, "a.npz"), read_generic),
        Target("generic_array", "a.npz", _generic_member, read_generic, _archive_with),
        Target("anny", "person.json", _anny, read_phenotype),
        Target("arkit", "weights.json", _arkit, read_arkit_weights),
    )
}
