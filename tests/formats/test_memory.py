"""What reading takes, and bombs."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mien.errors import FormatError
from mien.morphable.formats import read_model
from tests.formats import files
from tests.formats.files import FACE, V, mat_bytes


def peak_bytes(read: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        read()
    except FormatError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def big_face() -> dict[str, np.ndarray]:
    return files.generic_arrays(identity_basis=np.random.default_rng(0).normal(size=(900, V, 3)).astype(np.float32))


def test_reading_takes_no_more_than_four_times_the_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "generic.npz", **big_face())
    basis = np.random.default_rng(0).normal(size=(3 * V, 900)).astype(np.float32)
    large = files.bfm2009_variables() | {"shapePC": basis, "shapeEV": np.ones((900, 1), np.float32)}
    (tmp_path / "01_MorphableModel.mat").write_bytes(mat_bytes(large))
    flame = files.flame_arrays() | {"shapedirs": basis.reshape(V, 3, 900).astype(np.float32)}
    (tmp_path / "flame.pkl").write_bytes(files.python2_pickle(flame))
    np.savez(tmp_path / "flame.npz", **flame)  # pyright: ignore[reportArgumentType]
    deep3d = {"meanshape": FACE.mean.reshape(1, -1) * 10, "meantex": FACE.albedo.reshape(1, -1) * 255}
    deep3d |= {"idBase": basis, "exBase": basis[:, :64], "texBase": basis[:, :80], "tri": FACE.triangles + 1.0}
    deep3d |= {"keypoints": np.arange(68.0)[None] + 1, "skinmask": np.ones((1, V))}
    (tmp_path / "BFM_model_front.mat").write_bytes(mat_bytes(deep3d))
    pca = files.cereal_pca(FACE.mean.reshape(-1) * 1e3, basis.T, np.ones(900), FACE.triangles)
    (tmp_path / "sfm.bin").write_bytes(struct.pack("<I", 1) + pca + files.EMPTY_PCA + struct.pack("<Q", 0))
    files.write_ict_npz(tmp_path / "ict.npz", identity_deltas=basis.T.reshape(900, V, 3))
    models = ("generic.npz", "01_MorphableModel.mat", "flame.pkl", "flame.npz", "BFM_model_front.mat", "sfm.bin")
    for name in (*models, "ict.npz"):
        path = tmp_path / name
        assert peak_bytes(lambda path=path: read_model(path)) <= 4 * path.stat().st_size, name


def test_reading_a_folder_takes_no_more_than_four_times_its_files(tmp_path: Path) -> None:
    files.write_ict_folder(tmp_path)
    lines = (tmp_path / "identity000.obj").read_text()
    for k in range(100):  # as many as ICT-FaceKit has: one file alone is read into more than its size
        (tmp_path / f"identity{k:03d}.obj").write_text(lines)
    total = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert peak_bytes(lambda: read_model(tmp_path)) <= 4 * total


def test_decompression_bombs_are_refused_before_unpacking(tmp_path: Path) -> None:
    """Honest beginnings, and content that would unfold to hundreds of megabytes."""
    zeros = np.zeros((300, 200_000, 3), np.float32)
    np.savez_compressed(tmp_path / "generic.npz", **files.generic_arrays(identity_basis=zeros))
    header, body = files.mat_bytes({}), files.mat_bytes({"shapeMU": zeros.reshape(-1, 1)})[128:]
    (tmp_path / "01_MorphableModel.mat").write_bytes(header + files.packed(body))
    del zeros, body
    for name in ("generic.npz", "01_MorphableModel.mat"):
        path = tmp_path / name
        with pytest.raises(FormatError, match="are allowed"):
            read_model(path)
        honest = 4 << 20
        assert peak_bytes(lambda path=path: read_model(path)) <= 4 * honest, name
