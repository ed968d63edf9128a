"""The packaged model, disguised as a stranger's, is recognised again."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mien.camera import Camera, to_camera_axes
from mien.cli import app as cli
from mien.errors import ConfigError, FormatError
from mien.export.gltf import glb_bytes
from mien.export.model_sheet import model_picture
from mien.fitting.landmarks import LandmarkPriors, fit_landmarks
from mien.geometry import Matcher, boundary_vertices, nearest
from mien.morphable import MorphableModel, load_model, save_model
from mien.morphable.formats.source import SourceModel
from mien.morphable.registry import converted_model_path
from mien.registration import Transfer, complete, register, transfer
from mien.registration.landmark_file import read_landmarks, with_landmarks
from mien.registration.transfer import _followed
from mien.registration.transfer_files import write_transfer
from mien.registration.uv_layout import connected_parts, unwrapped
from mien.rendering import sample_map
from mien.result import Reconstruction
from tests.formats import files
from tests.test_model_file import model_with_every_part
from tests.tiny_face import tiny_model as tiny_face_model
from tests.tiny_face import tiny_reconstruction


@dataclass(frozen=True)
class Disguised:
    """The packaged model, its vertices shuffled, some identity for a mean, larger by a tenth and moved."""

    order: np.ndarray
    source: SourceModel
    converted: MorphableModel


@pytest.fixture(scope="module")
def packaged() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module")
def disguised(packaged: MorphableModel) -> Disguised:
    rng = np.random.default_rng(0)
    order = rng.permutation(len(packaged.mean))
    place = np.argsort(order)
    coefficients = torch.from_numpy(rng.normal(size=(1, packaged.counts[0])).astype(np.float32))
    person = packaged.vertices(coefficients, torch.zeros(1, packaged.counts[1]))[0].numpy()
    known = packaged.landmarks68.numpy()
    source = SourceModel(
        name="stranger",
        family="generic",
        licence="CC0-1.0",
        mean=(1.1 * person + [0.05, -0.2, 0.1]).astype(np.float32)[order],
        triangles=place[packaged.triangles.numpy()],
        identity_basis=packaged.identity_basis.numpy()[:5, order],
        expression_basis=packaged.identity_basis.numpy()[5:8, order],
        expression_names=("one", "two", "three"),
        expression_kind="deviation",
        landmarks={k: int(place[known[k]]) for k in range(17, 68, 2)},
    )
    return Disguised(order, source, complete(source, packaged))


def test_the_registration_lies_on_the_mesh(disguised: Disguised) -> None:
    note = next(note for note in disguised.converted.notes if note.startswith("registered"))
    assert float(note.split(":")[1].split()[0]) < 1.0


def test_transferred_parts_are_those_of_the_packaged_model(disguised: Disguised, packaged: MorphableModel) -> None:
    model, order = disguised.converted, disguised.order
    skin = (packaged.masks.skin > 0.9).numpy()[order]
    error = (model.albedo_mean - packaged.albedo_mean[order]).abs().numpy()[skin]
    assert error.mean() < 0.01
    assert np.abs(model.masks.lips.numpy() - packaged.masks.lips.numpy()[order]).mean() < 0.02
    moved = {name: k for k, name in enumerate(packaged.expression_names)}
    own = packaged.expression_basis[moved["jawOpen"]][order] * 1.1
    names, basis = model.blendshapes
    found = basis[names.index("jawOpen")]
    assert float((found - own).norm() / own.norm()) < 0.15


def test_transferred_landmarks_lie_at_their_known_positions(disguised: Disguised, packaged: MorphableModel) -> None:
    model = disguised.converted
    places = np.argsort(disguised.order)[packaged.landmarks68.numpy()]
    distances = (model.mean[model.landmarks68] - model.mean[torch.from_numpy(places)]).norm(dim=-1)
    assert float(distances[18::2].max()) < 4e-3
    assert float(distances[17::2].max()) == 0
    points = model.mediapipe_points(model.mean[None])[0]
    own = model.mean[np.argsort(disguised.order)][None]
    assert float((points - packaged.mediapipe_points(own)[0]).norm(dim=-1).median()) < 1.5e-3


def test_parts_of_the_file_are_kept_unchanged(disguised: Disguised) -> None:
    model, source = disguised.converted, disguised.source
    assert np.array_equal(model.mean.numpy(), source.mean)
    assert np.array_equal(model.identity_basis.numpy(), source.identity_basis)
    assert np.array_equal(model.expression_basis.numpy(), source.expression_basis)
    assert model.expression_kind == "deviation"
    assert any(note.startswith("albedo") for note in model.notes)
    assert any("42 of 68" in note for note in model.notes)


def test_the_uv_map_is_in_the_unit_square_and_symmetric(disguised: Disguised) -> None:
    uv = disguised.converted.uv
    assert float(uv.min()) >= 0
    assert float(uv.max()) <= 1
    mirrored = uv[disguised.converted.mirror]
    assert float((uv[:, 0] + mirrored[:, 0] - 1).abs().median()) < 0.03


def test_a_model_without_expressions_gets_arkit_blendshapes_and_a_note(
    disguised: Disguised, packaged: MorphableModel
) -> None:
    bare = replace(disguised.source, expression_basis=disguised.source.expression_basis[:0], expression_names=())
    count = len(bare.mean)
    painted = replace(bare, albedo_mean=np.full((count, 3), 0.5, np.float32), uv=np.zeros((count, 2), np.float32))
    model = complete(painted, packaged)
    assert model.expression_names == packaged.expression_names
    assert model.expression_kind == "strength"
    assert any("the file has none" in note for note in model.notes)
    assert model.counts[2] == 0


def test_too_few_landmarks_are_refused(disguised: Disguised, packaged: MorphableModel) -> None:
    mean, triangles = torch.from_numpy(disguised.source.mean), torch.from_numpy(disguised.source.triangles)
    with pytest.raises(ConfigError, match="3 of the 68"):
        register(packaged, mean, triangles, {30: 1, 36: 2, 45: 3})


def test_landmarks_of_another_convention_are_refused(disguised: Disguised, packaged: MorphableModel) -> None:
    """Left for right, numbers from 1, and all on one vertex: each would end in a face that is none."""
    mean, triangles = torch.from_numpy(disguised.source.mean), torch.from_numpy(disguised.source.triangles)
    whole = dict(enumerate(disguised.converted.landmarks68.tolist()))
    corners = {36: 45, 39: 42, 48: 54, 31: 35, 17: 26, 21: 22, 50: 52, 58: 56}
    mirrored = {a: whole[b] for a, b in (corners | {b: a for a, b in corners.items()}).items()}
    from_one = {k: whole[k - 1] for k in range(18, 68)}
    for wrong in (mirrored, from_one, dict.fromkeys(whole, 7)):
        with pytest.raises(ConfigError, match="from their expected positions"):
            register(packaged, mean, triangles, wrong)
    for turned in (mean[:, [0, 2, 1]] * torch.tensor([1.0, 1, -1]), mean * torch.tensor([-1.0, 1, -1])):
        with pytest.raises(ConfigError, match="does not face"):
            register(packaged, turned, triangles, whole)


def test_lips_match_lips_of_their_own_side() -> None:
    """Two sheets that nearly touch and face each other: a point belongs to the one that faces its own way."""
    square = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]) * 0.02
    vertices = torch.cat([square, square + torch.tensor([0, 0, 1e-4])])
    triangles = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 6, 5], [4, 7, 6]])
    point = torch.tensor([[0.01, 0.009, 0.9e-4]])
    found = Matcher(vertices, triangles)(point, torch.tensor([[0.0, 0, 1.0]]))
    assert int(found.corners.max()) < 4
    found = Matcher(vertices, triangles)(point, torch.tensor([[0.0, 0, -1.0]]))
    assert int(found.corners.min()) >= 4
    assert bool(found.at_border[0])


def test_the_nearest_point_search_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    points, queries = torch.rand(3000, 3, generator=generator), torch.rand(2000, 3, generator=generator)
    queries[:5] += 3
    assert torch.equal(nearest(queries, points), torch.cdist(queries, points).argmin(1))


def test_separate_surfaces_get_cells_of_their_own() -> None:
    face = files.FACE
    mean = torch.from_numpy(np.concatenate([face.mean, face.mean * 0.1])).float()
    triangles = torch.from_numpy(np.concatenate([face.triangles, face.triangles[:40] + len(face.mean)]))
    part = connected_parts(triangles, len(mean))
    assert part[: files.V].unique().tolist() == [0]
    assert set(part[files.V :].unique().tolist()) == {-1, 1}
    uv = unwrapped(mean, triangles, torch.arange(68))
    assert float(uv[part == 1, 1].max()) <= 0.12
    assert float(uv[part == 0, 1].min()) >= 0.12


def test_transferred_coefficients_may_be_negative(disguised: Disguised) -> None:
    model = disguised.converted
    camera = Camera.from_fov(20.0, image_size=(400, 400))
    wanted = torch.tensor([[1.5, -2.0, 0.0]])
    turned = model.vertices(torch.zeros(1, 5), wanted) - model.mean.mean(0)
    points = model.mediapipe_points(turned) * torch.tensor([1.0, -1, -1]) + torch.tensor([0.0, 0, 0.7])
    fitted = fit_landmarks(
        model, camera.project(points), camera, point_weights=torch.ones(1, 468),
        priors=LandmarkPriors(1e-3, 1.0, 0.03, 1e-2, 1.0, None),
    )  # fmt: skip
    assert torch.allclose(fitted.expression, wanted, atol=0.3)


def test_a_face_is_transferred_to_another_topology(
    disguised: Disguised, packaged: MorphableModel, tmp_path: Path
) -> None:
    face = tiny_reconstruction()
    rng = np.random.default_rng(5)
    identity = torch.from_numpy(0.7 * rng.normal(size=(1, packaged.counts[0])).astype(np.float32))
    vertices = packaged.vertices(identity, torch.zeros(1, packaged.counts[1]))[0].numpy()
    count = len(vertices)
    whole = replace(
        face, vertices_model=vertices, vertices=vertices, triangles=packaged.triangles.numpy().astype(np.int32),
        uv=packaged.uv.numpy(), xy=vertices[:, :2].copy(), visible=np.ones(count, bool), vertex_albedo=vertices,
    )  # fmt: skip
    u, v = np.meshgrid((np.arange(96) + 0.5) / 96, 1 - (np.arange(96) + 0.5) / 96)
    dark = 0.5 * packaged.albedo_mean.numpy()
    whole = replace(whole, texture=np.stack([u, v, 0.5 + 0 * u], -1).astype(np.float32), vertex_albedo=dark)
    carried = transfer(whole, packaged, disguised.converted)
    assert 1000 * carried.surface_error.median < 0.3
    assert 1000 * carried.landmark_error_m < 2.5
    gt = vertices[disguised.order]
    skin = (packaged.masks.skin > 0.9).numpy()[disguised.order]
    assert np.median(np.linalg.norm(carried.vertices.numpy() - gt, axis=1)[skin]) < 2e-3
    _check_result_of_transfer(carried, whole, uv=packaged.uv.numpy()[disguised.order], skin=skin)
    write_transfer(carried, tmp_path / "out")
    lines = (tmp_path / "out" / "mesh.obj").read_text().splitlines()
    assert sum(line.startswith("v ") for line in lines) == len(gt)
    assert json.loads((tmp_path / "out" / "coefficients.json").read_text())["surface_error_mm"]["median"] < 0.3
    with np.load(tmp_path / "out" / "shapes.npz") as shapes:
        own = np.tensordot(carried.expression.numpy(), disguised.converted.expression_basis.numpy(), axes=1)
        assert np.allclose(shapes["neutral"] + own, shapes["vertices"], atol=1e-6)
        assert shapes["names"].tolist() == list(packaged.expression_names)
        assert shapes["offsets"].shape == (52, len(gt), 3)
    assert {"face.glb", "mesh.mtl", "texture.png"} < {path.name for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ConfigError, match="load the model"):
        transfer(face, packaged, disguised.converted)


def _check_result_of_transfer(carried: Transfer, source: Reconstruction, *, uv: np.ndarray, skin: np.ndarray) -> None:
    """The face has the camera of the source, and at each vertex of the skin the colour of the source."""
    face, target = carried.face, carried.model
    in_camera = to_camera_axes(source.scale * carried.vertices.numpy() @ source.rotation.T) + source.translation
    assert np.allclose(face.vertices, in_camera, atol=1e-5)
    posed = to_camera_axes(face.scale * face.vertices_model @ face.rotation.T) + face.translation
    assert np.allclose(posed, in_camera, atol=1e-5)
    assert face.scale / source.scale == pytest.approx(1 / 1.1, rel=0.08)  # the stranger is larger by a tenth
    texture = torch.from_numpy(face.texture).permute(2, 0, 1)[None]
    colours = sample_map(texture, torch.from_numpy(face.uv))[0].numpy()
    assert np.median(np.abs(colours[skin, :2] - uv[skin])) < 0.01
    error = np.abs(face.vertex_albedo - 0.5 * target.albedo_mean.numpy())
    assert np.median(error[skin]) < 0.01
    assert np.median(error[boundary_vertices(target.triangles).numpy()]) < 0.02  # where the tone is continued


def test_surfaces_other_than_skin_follow_the_skin() -> None:
    """A sheet of skin that is trusted but at one end, a ball-like piece beside it, and one far off."""
    columns, rows = 12, 6
    x, y = torch.meshgrid(torch.arange(columns) * 0.005, torch.arange(rows) * 0.005, indexing="ij")
    sheet = torch.stack([x.flatten(), y.flatten(), torch.zeros(columns * rows)], 1)
    corner = (torch.arange(columns - 1)[:, None] * rows + torch.arange(rows - 1)).flatten()
    triangles = torch.cat([torch.stack([corner, corner + rows, corner + rows + 1], 1),
                           torch.stack([corner, corner + rows + 1, corner + 1], 1)])  # fmt: skip
    count = len(sheet)
    points = torch.cat([sheet, sheet + torch.tensor([0.0, 0.0, -0.004]), sheet + torch.tensor([0.0, 0.0, -0.2])])
    surfaces = torch.tensor([1, 2, 3]).repeat_interleave(count)
    triangles = torch.cat([triangles, triangles + count, triangles + 2 * count])
    trusted = torch.zeros(3 * count)
    trusted[: count * 3 // 4] = 1
    offsets = torch.zeros(3 * count, 3)
    offsets[:, 2] = 0.002
    offsets[count * 3 // 4 :] = torch.rand(3 * count - count * 3 // 4, 3, generator=torch.Generator().manual_seed(0))
    moved = _followed(points, offsets, trusted, triangles=triangles, surfaces=surfaces)
    assert torch.allclose(moved[:count, 2], torch.tensor(0.002), atol=3e-4)  # noise that is not trusted is not followed
    piece = moved[count : 2 * count]
    assert torch.allclose(piece, piece[:1], atol=1e-7)
    assert 0.001 < float(piece[0, 2]) <= 0.002
    assert not moved[2 * count :].any()
    none = _followed(points, offsets, torch.zeros(3 * count), triangles=triangles, surfaces=surfaces)
    assert not none.any()


def test_the_glb_of_a_model_of_components_keeps_base_and_view(tmp_path: Path) -> None:
    plain = tiny_face_model()
    arrays = {key: plain.get_buffer(key) for key in dict(plain.named_buffers())}
    arrays["blendshape_basis"] = plain.expression_basis[:2] * 2
    model = MorphableModel(
        "tiny", arrays, expression_names=("c1", "c2", "c3"), licence="", expression_kind="deviation",
        blendshape_names=("jawOpen", "mouthSmileLeft"),
    )  # fmt: skip
    face = replace(tiny_reconstruction(), expression=np.array([-1.5, 0.5, 0], np.float32))
    content = glb_bytes(face, model)
    (length,) = struct.unpack("<I", content[12:16])
    document = json.loads(content[20 : 20 + length])
    mesh = document["meshes"][0]
    assert mesh["extras"]["targetNames"] == ["jawOpen", "mouthSmileLeft", "expression"]
    assert mesh["weights"] == [0, 0, 1]


def test_a_picture_of_any_model() -> None:
    picture = model_picture(model_with_every_part())
    assert picture.ndim == 3
    assert picture.std() > 10


def test_landmark_files(tmp_path: Path) -> None:
    path = tmp_path / "l.txt"
    path.write_text("# nose\n30 12\n\n36 7 # eye\n")
    assert read_landmarks(path, vertices=99) == {30: 12, 36: 7}
    model = files.source_model()
    assert with_landmarks(model, path).landmarks == {30: 12, 36: 7}
    assert with_landmarks(model, None) is with_landmarks(model, tmp_path / "a.npy") is model
    for line in ("68 1", "3 99", "3", "a b", "-1 3", "3 4 5"):
        path.write_text(line)
        with pytest.raises(FormatError, match="line 1"):
            read_landmarks(path, vertices=99)
    path.write_text(" " * 70_000)
    with pytest.raises(FormatError, match="70000 bytes; expected 0 to 65536"):
        read_landmarks(path, vertices=99)


def test_models_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIEN_MODELS", str(tmp_path))
    with pytest.raises(ConfigError, match=r"https://flame\.is\.tue\.mpg\.de"):
        converted_model_path("flame")
    with pytest.raises(ConfigError, match="neither a"):
        converted_model_path("smpl")
    (tmp_path / "deep3d.safetensors").touch()
    assert converted_model_path("bfm") == str(tmp_path / "deep3d.safetensors")
    assert converted_model_path("x.safetensors") == "x.safetensors"
    (tmp_path / "my head.safetensors").touch()
    assert converted_model_path("my head") == str(tmp_path / "my head.safetensors")
    with pytest.raises(ConfigError, match="mien-face, deep3d, my head, bfm2009"):
        converted_model_path("your head")
    source = files.write_generic(tmp_path / "mine.npz")
    with pytest.raises(ConfigError, match=f"run: mien model convert {source}"):
        converted_model_path(str(source))


def run(*arguments: object) -> object:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["model", *map(str, arguments)])
    return stopped.value.code


def test_a_converted_model_is_listed_and_found_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("MIEN_MODELS", str(tmp_path))
    save_model(model_with_every_part(), tmp_path / "my head.safetensors")
    assert run("list") == 0
    assert f"converted: {tmp_path / 'my head.safetensors'}" in capsys.readouterr().out
    assert run("info", "my head") == 0
    shown = capsys.readouterr().out
    for message in ("metres; +x", "expression in standard deviations", "albedo: transferred", "none"):
        assert message in shown
    assert run("info", "flame") == 2
    assert "https://flame.is.tue.mpg.de" in capsys.readouterr().err


def test_unwritable_paths_are_refused_before_conversion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = files.write_generic(tmp_path / "mine.npz")
    monkeypatch.setattr("mien.morphable.formats.read_model", lambda *_, **__: pytest.fail("read before"))
    assert run("convert", source, "-o", tmp_path / "out.npz") == 2
    assert "does not end in .safetensors" in capsys.readouterr().err
    assert run("convert", source, "-o", source / "in a file" / "out.safetensors") == 1
    assert "cannot be written (Not a directory)" in capsys.readouterr().err


def test_the_command_line_lists_converts_and_describes_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        cli.main(["model", "list"])
    assert "https://flame.is.tue.mpg.de" in capsys.readouterr().out
    path = files.write_generic(tmp_path / "mine.npz", landmarks68=None)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["model", "convert", str(path), "-o", str(tmp_path / "out.safetensors")])
    assert stopped.value.code == 1
    assert "--landmarks" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["model", "info", "--picture", str(tmp_path / "mean.png")])
    assert (tmp_path / "mean.png").stat().st_size > 10_000
    with pytest.raises(SystemExit) as stopped:
        cli.main(["model", "info", "--picture", str(tmp_path / "missing" / "mean.png")])
    assert stopped.value.code == 1
