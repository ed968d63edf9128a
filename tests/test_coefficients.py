"""Other projects' coefficient vectors against their own formulas, written down again here from docs/formats.md."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from mien.errors import ConfigError, FormatError
from mien.morphable import MorphableModel
from mien.morphable.formats import read_model
from mien.morphable.formats.mat5 import read_mat, write_mat
from mien.registration.foreign.deep3d import Deep3dCoefficients, deep3d_camera, deep3d_colours
from mien.registration.foreign.flame import DecaCoefficients, TddfaCoefficients
from tests.formats import files
from tests.tiny import tiny_model


def as_model(path: Path) -> MorphableModel:
    """The tiny face as its reader has it, with what a conversion would add left empty."""
    source = read_model(path)
    tiny = tiny_model()
    arrays = {key: tiny.get_buffer(key) for key in dict(tiny.named_buffers())}
    arrays |= {
        key: torch.from_numpy(np.asarray(value))
        for key in ("mean", "triangles", "identity_basis", "expression_basis", "albedo_mean", "albedo_basis")
        if (value := getattr(source, key)) is not None
    }
    if source.skinning is not None:
        arrays |= {
            "joint_regressor": torch.from_numpy(source.skinning.joint_regressor),
            "skin_weights": torch.from_numpy(source.skinning.weights),
            "pose_basis": torch.from_numpy(source.skinning.pose_basis),
            "joint_parents": torch.from_numpy(source.skinning.parents),
        }
    return MorphableModel(
        "d", arrays, expression_names=source.expression_names, licence="", expression_kind="deviation"
    )


def random_deep3d(seed: int = 0) -> Deep3dCoefficients:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"identity": 3, "expression": 2, "albedo": 2, "angle": 3, "gamma": 27, "translation": 3}
    return Deep3dCoefficients(**{name: 0.4 * torch.randn(2, size, generator=generator) for name, size in sizes.items()})


def theirs(path: Path, c: Deep3dCoefficients) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Camera-space vertices (dm), pixels of the crop (y up) and colours, by Deep3DFaceRecon's own formulas."""
    names = frozenset({"meanshape", "idBase", "exBase", "meantex", "texBase", "tri"})
    m = {k: np.asarray(v, float) for k, v in read_mat(path, names).items()}
    shape = m["meanshape"].reshape(-1, 3)
    shape = shape - shape.mean(0)
    offset = c.identity.numpy() @ m["idBase"].T + c.expression.numpy() @ m["exBase"].T
    vertices = shape + offset.reshape(2, -1, 3)
    texture = (m["meantex"] + c.albedo.numpy() @ m["texBase"].T).reshape(2, -1, 3) / 255
    x, y, z = c.angle.numpy().T
    o, e = np.zeros(2), np.ones(2)
    rx = np.array([[e, o, o], [o, np.cos(x), -np.sin(x)], [o, np.sin(x), np.cos(x)]]).transpose(2, 0, 1)
    ry = np.array([[np.cos(y), o, np.sin(y)], [o, e, o], [-np.sin(y), o, np.cos(y)]]).transpose(2, 0, 1)
    rz = np.array([[np.cos(z), -np.sin(z), o], [np.sin(z), np.cos(z), o], [o, o, e]]).transpose(2, 0, 1)
    turn = (rz @ ry @ rx).transpose(0, 2, 1)
    tri = m["tri"].astype(int) - 1
    a, b, d = (vertices[:, tri[:, k]] for k in range(3))
    faces = np.cross(a - b, b - d)
    faces /= np.linalg.norm(faces, axis=-1, keepdims=True)
    normals = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(normals, (slice(None), tri[:, k]), faces)
    normals = normals / np.linalg.norm(normals, axis=-1, keepdims=True) @ turn
    moved = vertices @ turn + c.translation.numpy()[:, None]
    moved[..., 2] = 10 - moved[..., 2]
    pixels = 1015 * moved[..., :2] / moved[..., 2:] + 112
    nx, ny, nz = normals[..., 0], normals[..., 1], normals[..., 2]
    basis = np.stack(
        [0.886227 + 0 * nx, -1.772454 * ny, 1.772454 * nz, -1.772454 * nx, 2.427032 * nx * ny, -2.427032 * ny * nz,
         0.700624 * (3 * nz**2 - 1), -2.427032 * nx * nz, 1.213516 * (nx**2 - ny**2)], -1)  # fmt: skip
    gamma = c.gamma.numpy().reshape(2, 3, 9) + np.eye(9)[0] * 0.8
    return moved, pixels, texture * (basis @ gamma.transpose(0, 2, 1))


def test_deep3d_vertices_pixels_and_colours_match_its_formulas(tmp_path: Path) -> None:
    path = files.write_deep3d(tmp_path / "a.mat")
    model, c = as_model(path), random_deep3d()
    camera_dm, pixels, colours = theirs(path, c)
    face = c.face()
    ours = face.pose.to_camera(model.vertices(face.identity, face.expression))
    np.testing.assert_allclose(ours.numpy() * [10, -10, 10], camera_dm, atol=2e-5)
    projected = deep3d_camera(2).project(ours).numpy()
    np.testing.assert_allclose(projected[..., 0] - 0.5, pixels[..., 0], atol=2e-3)
    np.testing.assert_allclose(projected[..., 1] - 0.5, 223 - pixels[..., 1], atol=2e-3)
    np.testing.assert_allclose(deep3d_colours(model, c).numpy(), colours, atol=5e-5)


def test_deep3d_vectors_survive_a_round_trip() -> None:
    c = random_deep3d()
    back = Deep3dCoefficients.of_face(c.face())
    for field in fields(c):
        assert torch.allclose(getattr(back, field.name), getattr(c, field.name), atol=1e-4), field.name


@pytest.mark.parametrize("length", [257, 258])
def test_deep3d_vectors_of_either_length(length: int) -> None:
    vector = torch.arange(float(length))[None]
    c = Deep3dCoefficients.of_vector(vector)
    assert c.gamma[0, 0] == 227
    assert torch.equal(c.vector(), vector[:, :257])
    with pytest.raises(FormatError, match="expected Deep3DFaceRecon's"):
        Deep3dCoefficients.of_vector(vector[:, :200])


def test_deep3d_mat_is_read_back(tmp_path: Path) -> None:
    c = Deep3dCoefficients.of_vector(torch.rand(1, 257))
    c.write(tmp_path / "a.mat", torch.rand(1, 68, 2))
    again = Deep3dCoefficients.read(tmp_path / "a.mat")
    assert torch.equal(again.vector(), c.vector())
    assert read_mat(tmp_path / "a.mat", frozenset({"lm68"}))["lm68"].shape == (1, 68, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"gamma": None}, "lacks gamma"), ({"angle": (1, 4)}, "angle is"), ({"tex": (2, 80)}, "tex is"), ({}, "finite")],
)
def test_invalid_deep3d_mat_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    shapes = {
        "id": (1, 80),
        "exp": (1, 64),
        "tex": (1, 80),
        "angle": (1, 3),
        "gamma": (1, 27),
        "trans": (1, 3),
    } | change
    arrays = {k: np.zeros(shape, np.float32) for k, shape in shapes.items() if shape}
    if not change:
        arrays["id"][0, 0] = np.nan
    write_mat(tmp_path / "a.mat", arrays)
    with pytest.raises(FormatError, match=message):
        Deep3dCoefficients.read(tmp_path / "a.mat")
    arrays = {k: np.zeros(shape) for k, shape in (shapes | {"gamma": (1, 27), "angle": (1, 3), "tex": (1, 80)}).items()}
    write_mat(tmp_path / "a.mat", arrays | {"trans": np.full((1, 3), 1e300)})  # finite, but not in single precision
    with pytest.raises(FormatError, match="trans holds values that are not finite"):
        Deep3dCoefficients.read(tmp_path / "a.mat")


def test_deca_poses_flame_and_projects(tmp_path: Path) -> None:
    flame = as_model(files.write_flame(tmp_path / "m.pkl"))
    vector = torch.zeros(1, 236)
    vector[0, :4] = torch.tensor([1.0, -1.0, 0.5, 2.0])
    with pytest.raises(ConfigError, match="50 coefficients for a model of 2"):
        DecaCoefficients.of_vector(vector).vertices(flame)
    c = DecaCoefficients(
        vector[:, :100], vector[:, :50], torch.tensor([[1.0, -1.0]]), torch.zeros(1, 6), torch.zeros(1, 3),
        torch.zeros(1, 27),
    )  # fmt: skip
    expected = flame.vertices(torch.nn.functional.pad(c.shape, (0, 200)), c.expression)
    assert torch.allclose(c.vertices(flame), expected, atol=1e-7)
    with pytest.raises(ConfigError, match="no joints"):
        c.vertices(tiny_model())
    with pytest.raises(FormatError, match="DECA's 236"):
        DecaCoefficients.of_vector(vector[:, :100])


def test_deca_camera_is_scaled_orthographic() -> None:
    vector = torch.zeros(1, 236)
    vector[0, 206:209] = torch.tensor([8.0, 0.01, -0.02])
    c = DecaCoefficients.of_vector(vector)
    point = torch.tensor([[[0.03, 0.05, 0.1]]])
    # s (x + tx) = 0.32, and y, shifted and scaled to 0.24, points up: the row is above the middle.
    assert torch.allclose(c.project(point), torch.tensor([[[112 * 1.32, 112 * 0.76]]]))


def test_3ddfa_vectors() -> None:
    mean, deviation = torch.arange(62.0), torch.full((62,), 2.0)
    R = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    R = R * torch.linalg.det(R)
    P = torch.cat([1e-3 * R, torch.tensor([[60.0], [50.0], [-5.0]])], dim=1)
    vector = torch.cat([P.reshape(-1), torch.arange(50.0)])[None]
    c = TddfaCoefficients.of_vector((vector - mean) / deviation, mean=mean, deviation=deviation)
    assert torch.allclose(c.projection[0], P, atol=1e-4)
    rotation, scale = c.rotation_and_scale()
    assert torch.allclose(rotation[0], R, atol=2e-2)
    assert float(scale) == pytest.approx(1e-3, rel=2e-2)
    point = torch.tensor([[[1000.0, 2000.0, 3000.0]]])
    x, y, z = (P[:, :3] @ point[0, 0] + P[:, 3]).tolist()
    # Its own code gives column x - 1, row 120 - y and depth z - 1, with pixel centres at whole numbers.
    expected = torch.tensor([x - 1 + 0.5, 120 - y + 0.5, z - 1])
    assert torch.allclose(c.project(point)[0, 0], expected, atol=1e-2)
    shape, expression = c.deviations(torch.full((40,), 2.0), torch.full((10,), 4.0))
    assert torch.allclose(shape[0], torch.arange(40.0) / 2, atol=1e-4)
    assert torch.allclose(expression[0], torch.arange(40.0, 50.0) / 4, atol=1e-4)
    with pytest.raises(FormatError, match="3DDFA's 62"):
        TddfaCoefficients.of_vector(vector[:, :60], mean=mean, deviation=deviation)


def test_3ddfa_vertices_match_its_formulas(tmp_path: Path) -> None:
    """`u + w_shp a + w_exp b` in micrometres, its arrays brought as a generic .npz scaled by any deviations."""
    rng = np.random.default_rng(0)
    u = files.FACE.mean * 1e6
    w_shp, w_exp = rng.normal(size=(40, *u.shape)), rng.normal(size=(10, *u.shape))
    sigma_shp, sigma_exp = rng.uniform(1e2, 1e3, 40), rng.uniform(1, 9, 10)
    path = files.write_generic(
        tmp_path / "3ddfa.npz", length_unit_m=np.array(1e-6), mean=u, identity_basis=w_shp * sigma_shp[:, None, None],
        expression_basis=w_exp * sigma_exp[:, None, None], expression_kind=np.array("deviation"), expression_names=None,
    )  # fmt: skip
    c = TddfaCoefficients(torch.zeros(1, 3, 4), torch.randn(1, 40) * 500, torch.randn(1, 10) * 5)
    identity, expression = c.deviations(torch.from_numpy(sigma_shp).float(), torch.from_numpy(sigma_exp).float())
    ours = as_model(path).vertices(identity, expression)[0].numpy() * 1e6
    theirs_um = u + np.einsum("k,kvd->vd", c.shape[0].numpy(), w_shp)
    theirs_um += np.einsum("k,kvd->vd", c.expression[0].numpy(), w_exp)
    np.testing.assert_allclose(ours, theirs_um, atol=0.5)
