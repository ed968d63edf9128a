"""Every format that mien writes gives a face of the packaged model back, with an error of at most a millionth.

The model itself, as .safetensors and as generic .npz, is in test_model_file.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mien.camera import to_camera_axes
from mien.evaluation.shape import DistanceSummary
from mien.export import write_mesh
from mien.export.model_face import model_face
from mien.morphable import MorphableModel, load_model
from mien.morphable.formats.arkit import read_arkit_weights, write_arkit_weights
from mien.registration import Transfer
from mien.registration.foreign.deep3d import Deep3dCoefficients
from mien.registration.foreign.flame import DecaCoefficients, TddfaCoefficients
from mien.registration.transfer_files import write_transfer
from mien.result import Reconstruction
from tests.glb_reader import Glb

TOLERANCE = 1e-6


def relative_error(again: np.ndarray, original: np.ndarray) -> float:
    """Largest difference over the largest value."""
    assert again.shape == original.shape
    return float(np.abs(again.astype(np.float64) - original).max() / np.abs(original).max())


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module")
def face(model: MorphableModel) -> Reconstruction:
    generator = torch.Generator().manual_seed(0)
    identity = torch.randn(model.counts[0], generator=generator)
    expression = torch.rand(model.counts[1], generator=generator) * (torch.arange(model.counts[1]) % 5 == 0)
    neutral, _ = model_face(identity, model)
    vertices = model.vertices(identity[None], expression[None])[0].numpy()
    return replace(
        neutral,
        expression=expression.numpy(),
        vertices_model=vertices,
        vertices=(to_camera_axes(vertices) + neutral.translation).astype(np.float32),
    )


def obj_vertices(path: Path) -> np.ndarray:
    rows = [line.split() for line in path.read_text().splitlines() if line.startswith("v ")]
    return np.array([row[1:4] for row in rows], np.float64)


def test_result_folder(tmp_path: Path, face: Reconstruction) -> None:
    face.save(tmp_path / "face0")
    again = Reconstruction.load(tmp_path / "face0")
    for name in ("vertices", "vertices_model", "identity", "expression", "lighting", "translation", "uv"):
        original = getattr(face, name)
        assert relative_error(getattr(again, name), original) <= TOLERANCE, name


def test_glb(tmp_path: Path, face: Reconstruction, model: MorphableModel) -> None:
    write_mesh(face, model, tmp_path / "face.glb")
    glb = Glb((tmp_path / "face.glb").read_bytes())
    mesh = glb.document["meshes"][0]
    names, weights = mesh["extras"]["targetNames"], mesh["weights"]
    assert names == list(model.expression_names)
    for primitive in mesh["primitives"]:
        rows, used = glb.model_vertices(primitive), np.unique(glb.accessor(primitive["indices"]))
        assert relative_error(glb.shown(primitive)[used], face.vertices_model[rows[used]]) <= TOLERANCE
    assert relative_error(np.array(weights), face.expression) <= TOLERANCE
    assert relative_error(np.array(glb.document["asset"]["extras"]["identity"]), face.identity) <= TOLERANCE


def test_obj(tmp_path: Path, face: Reconstruction, model: MorphableModel) -> None:
    write_mesh(face, model, tmp_path / "face.obj")
    assert relative_error(obj_vertices(tmp_path / "face.obj"), face.vertices_model) <= TOLERANCE


def test_ply(tmp_path: Path, face: Reconstruction, model: MorphableModel) -> None:
    write_mesh(face, model, tmp_path / "face.ply")
    body = (tmp_path / "face.ply").read_bytes().split(b"end_header\n", 1)[1]
    count = len(face.vertices_model)
    assert relative_error(np.frombuffer(body[: 27 * count], "<3f4, <3f4, 3u1")["f0"], face.vertices_model) == 0


def test_transferred_mesh(tmp_path: Path, face: Reconstruction, model: MorphableModel) -> None:
    vertices = torch.from_numpy(face.vertices_model)
    zero = DistanceSummary(0.0, 0.0, 0.0)
    identity, expression = torch.from_numpy(face.identity), torch.from_numpy(face.expression)
    transferred = Transfer(model, vertices, identity, expression, landmark_error_m=0.0, surface_error=zero, face=face)
    write_transfer(transferred, tmp_path / "transferred")
    assert relative_error(obj_vertices(tmp_path / "transferred" / "mesh.obj"), face.vertices_model) <= TOLERANCE


def test_deep3d_mat(tmp_path: Path) -> None:
    coefficients = Deep3dCoefficients.of_vector(torch.randn(3, 257, generator=torch.Generator().manual_seed(1)))
    coefficients.write(tmp_path / "a.mat")
    assert torch.equal(Deep3dCoefficients.read(tmp_path / "a.mat").vector(), coefficients.vector())


def test_arkit_json(tmp_path: Path, face: Reconstruction) -> None:
    weights = dict(zip(face.expression_names, face.expression.astype(float).tolist(), strict=True))
    write_arkit_weights(tmp_path / "weights.json", weights)
    assert read_arkit_weights(tmp_path / "weights.json") == weights


def test_deca_vector() -> None:
    vector = torch.randn(2, 236, generator=torch.Generator().manual_seed(2))
    assert torch.equal(DecaCoefficients.of_vector(vector).vector(), vector)


def test_3ddfa_vector() -> None:
    generator = torch.Generator().manual_seed(3)
    vector, mean = (torch.randn(2, 62, generator=generator, dtype=torch.float64) for _ in range(2))
    deviation = torch.rand(62, generator=generator, dtype=torch.float64) + 0.5
    again = TddfaCoefficients.of_vector(vector, mean=mean[0], deviation=deviation).vector(
        mean=mean[0], deviation=deviation
    )
    assert relative_error(again.numpy(), vector.numpy()) <= TOLERANCE
