"""How long models of the Basel Face Model's size take to read: made-up files, true layouts and sizes.

python benchmarks/model_formats.py [FOLDER]     FOLDER takes about 1 GB; default: a temporary one
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch

from mien.evaluation.report import markdown_table
from mien.morphable import MorphableModel, load_model, save_model
from mien.morphable.formats import read_model
from mien.morphable.landmark_tables import PARTS

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.formats.files import mat_bytes

VERTICES, COMPONENTS, EXPRESSIONS, TRIANGLES = 53_490, 199, 100, 106_466
REPEATS = 5


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    side = int(np.ceil(np.sqrt(VERTICES)))
    u, v = (g.ravel()[:VERTICES] for g in np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side)))
    mean = np.stack([0.07 * u, 0.09 * v, 0.05 - 0.04 * (u**2 + v**2)], 1)
    triangles = rng.integers(0, VERTICES, (TRIANGLES, 3))
    basis = (rng.normal(size=(3 * VERTICES, COMPONENTS)) / np.sqrt(3 * VERTICES)).astype(np.float32)
    files = [
        write_bfm2009(folder / "01_MorphableModel.mat", mean, triangles, basis),
        write_bfm2017(folder / "model2017-1_bfm_nomouth.h5", mean, triangles, basis),
    ]
    rows = [
        [path.name, f"{path.stat().st_size / 1e6:.0f}", *timed(lambda path=path: read_model(path))] for path in files
    ]
    converted = write_converted(folder / "converted.safetensors", files[0])
    rows.append([converted.name, f"{converted.stat().st_size / 1e6:.0f}", *timed(lambda: load_model(converted))])
    print(markdown_table(["file", "MB", "seconds, best", "seconds, median"], rows))


def timed(read: Callable[[], object]) -> tuple[str, str]:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        read()
        times.append(time.perf_counter() - start)
    return f"{min(times):.2f}", f"{sorted(times)[REPEATS // 2]:.2f}"


def write_bfm2009(path: Path, mean: np.ndarray, triangles: np.ndarray, basis: np.ndarray) -> Path:
    deviations = np.full((COMPONENTS, 1), 1e6, np.float32)
    colour = np.full((mean.size, 1), 128.5, np.float32)
    shape = (mean.reshape(-1, 1) * 1e6).astype(np.float32)
    variables = {
        "shapeMU": shape, "shapePC": basis, "shapeEV": deviations, "texMU": colour, "texPC": basis,
        "texEV": deviations, "tl": triangles + 1.0,
    }  # fmt: skip
    path.write_bytes(mat_bytes(variables))
    return path


def write_bfm2017(path: Path, mean: np.ndarray, triangles: np.ndarray, basis: np.ndarray) -> Path:
    parts = {"shape": (mean * 1e3, COMPONENTS), "expression": (0 * mean, EXPRESSIONS), "color": (mean, COMPONENTS)}
    with h5py.File(path, "w") as file:
        for name, (part_mean, count) in parts.items():
            file[f"{name}/model/mean"] = part_mean.reshape(-1).astype("<f4")
            file[f"{name}/model/pcaBasis"] = basis[:, :count]
            file[f"{name}/model/pcaVariance"] = np.ones(count, "<f4")
        file["shape/representer/cells"] = triangles.T.astype("<i4")
    return path


def write_converted(path: Path, source: Path) -> Path:
    """With the parts that a conversion adds, whatever they hold."""
    model, names = read_model(source), load_model().expression_names
    assert model.albedo_mean is not None
    assert model.albedo_basis is not None
    tables = {"mirror": torch.arange(VERTICES), "landmarks68": torch.arange(68)}
    arrays = {
        "mean": torch.from_numpy(model.mean), "triangles": torch.from_numpy(model.triangles),
        "identity_basis": torch.from_numpy(model.identity_basis), "albedo_mean": torch.from_numpy(model.albedo_mean),
        "albedo_basis": torch.from_numpy(model.albedo_basis), "uv": torch.rand(VERTICES, 2), **tables,
        "expression_basis": torch.zeros(0, VERTICES, 3), "blendshape_basis": torch.rand(len(names), VERTICES, 3),
        "contour_candidates": torch.arange(17 * 24).view(17, 24), "mediapipe_triangles": torch.arange(468),
        "mediapipe_barycentrics": torch.full((468, 3), 1 / 3),
        **{f"mask_{part}": torch.zeros(VERTICES) for part in PARTS},
    }  # fmt: skip
    converted = MorphableModel(
        "made up", arrays, expression_names=(), licence="", expression_kind="deviation", blendshape_names=names
    )
    save_model(converted, path)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="folder for the files; temporary if not given")
    options = parser.parse_args()
    if options.folder:
        main(options.folder)
    else:
        with tempfile.TemporaryDirectory() as made:
            main(Path(made))
