"""The fast writers against plain ones: PNG, npz, morph normals, normals of maps and sampled pictures."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mien.camera import Camera, to_camera_axes
from mien.export.face_normals import FaceNormals
from mien.export.face_view import FaceView
from mien.export.model_face import model_face
from mien.export.morph_targets import EncodedTargets, MorphTargets, exceeds, moved_normals, shortest
from mien.export.obj import obj_text
from mien.export.rig import make_rig
from mien.export.surface import unit_normals
from mien.export.uv_layout import texels_of
from mien.io import deflate as deflate_module
from mien.io.deflate import deflate
from mien.io.npz import NpzReader, write_npz
from mien.io.png import write_png
from mien.morphable import MorphableModel, load_model
from mien.result import Reconstruction
from mien.texture import DisplacedNormals, TexelAtlas
from tests.tiny_face import tiny_model, tiny_reconstruction


@pytest.fixture(params=["isal", "zlib"])
def compressor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With isal, if it is installed, and without it."""
    if request.param == "zlib":
        monkeypatch.setattr(deflate_module, "_zlib", zlib)


@pytest.mark.usefixtures("compressor")
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (64, 3), (33, 130)])
def test_png_keeps_every_pixel(tmp_path: Path, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (*size, 3), np.uint8)
    grey = rng.integers(0, 65536, size, np.uint16)
    for pixels in (colour, colour[::-1, ::-1], grey, grey.T):
        write_png(pixels, tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            image.load()  # checks the checksums
            np.testing.assert_array_equal(np.asarray(image).astype(pixels.dtype), pixels)


@pytest.mark.usefixtures("compressor")
def test_npz_is_what_numpy_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "vertices": rng.normal(size=(500, 3)).astype(np.float32),
        "turned": rng.normal(size=(20, 30)).T,
        "visible": rng.random(77) > 0.5,
        "empty": np.zeros((0, 3), np.int32),
        "zeros": np.zeros((300, 300), np.uint16),
    }
    write_npz(arrays, tmp_path / "a.npz")
    write_npz(arrays, tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.testzip() is None
    reader = NpzReader(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as found:
        assert list(found) == list(arrays)
        for key, array in arrays.items():
            assert found[key].dtype == array.dtype
            np.testing.assert_array_equal(found[key], array)
            np.testing.assert_array_equal(reader.array(key), array)
    assert (tmp_path / "a.npz").stat().st_size < 20_000


def test_streams_are_smaller_than_their_content() -> None:
    content = np.linspace(0, 20, 100_000).astype(np.uint8).tobytes()
    assert zlib.decompress(deflate(content)) == content
    assert zlib.decompress(deflate(content, raw=True), -15) == content
    assert len(deflate(content)) < len(content) / 50


def plain_moved_normals(dense: np.ndarray, base: np.ndarray, triangles: np.ndarray, epsilon: float) -> MorphTargets:
    normals = unit_normals(base, triangles)
    return MorphTargets.of(np.stack([unit_normals(base + d, triangles) - normals for d in dense]), epsilon=epsilon)


@pytest.mark.parametrize("packaged", [False, True])
def test_morph_normals_are_those_of_the_moved_surface(*, packaged: bool) -> None:
    model = load_model() if packaged else tiny_model()
    base, triangles = model.mean.numpy(), model.triangles.numpy()
    dense = model.expression_basis.numpy()[:12].copy()
    dense *= exceeds(dense, 1e-6)[..., None]
    dense[1] = 0  # a target that moves nothing
    targets = MorphTargets.of(dense, epsilon=1e-6)
    found = moved_normals(
        targets, vertices=base, normals=unit_normals(base, triangles), triangles=triangles, epsilon=3e-3
    )
    expected = plain_moved_normals(dense, base, triangles, 3e-3)
    assert len(found) == len(expected) == len(dense)
    for n in range(len(dense)):
        turned = [np.zeros_like(base) for _ in range(2)]
        for values, each in zip(turned, (found, expected), strict=True):
            rows, offsets = each.target(n)
            assert (np.diff(rows) > 0).all()
            values[rows] = offsets
        assert np.abs(turned[0]).max() > 0.05 or n in {1, 2}
        np.testing.assert_allclose(turned[0], turned[1], atol=3.1e-3 if packaged else 1e-6)
        np.testing.assert_allclose(turned[0][found.target(n)[0]], turned[1][found.target(n)[0]], atol=3.1e-3)


def test_morph_normals_refuse_indices_beyond_the_mesh() -> None:
    model = tiny_model()
    base, triangles = model.mean.numpy(), model.triangles.numpy()
    targets = MorphTargets.of(model.expression_basis.numpy(), epsilon=1e-6)
    normals = unit_normals(base, triangles)
    beyond = MorphTargets(targets.starts, targets.rows + len(base), targets.offsets)
    for some, corners in ((beyond, triangles), (targets, triangles - 1), (targets, triangles + 1)):
        with pytest.raises(ValueError, match="not that of a vertex"):
            moved_normals(some, vertices=base, normals=normals, triangles=corners, epsilon=0.0)


def test_bounds_and_places_of_morph_targets() -> None:
    dense = np.zeros((3, 4, 3), np.float32)
    dense[0, :, 0] = [1, 2, 3, 4]  # all vertices move, so no zero counts
    dense[2, 1] = [5, -6, 0]
    targets = MorphTargets.of(dense, epsilon=0.0)
    low, high = targets.bounds(4)
    np.testing.assert_array_equal(low, dense.min(1))
    np.testing.assert_array_equal(high, dense.max(1))
    part = targets.at(np.array([1, 2]), used=np.array([True, True]))
    assert [part.target(n)[0].tolist() for n in range(3)] == [[0, 1], [], [0]]
    np.testing.assert_array_equal(part.bounds(2)[0][2], [0, -6, 0])
    # Vertex 1 has two places, vertex 3 none that moves, and the order is another.
    mixed = targets.at(np.array([1, 0, 3, 1]), used=np.array([True, True, False, True]))
    assert [mixed.target(n)[0].tolist() for n in range(3)] == [[0, 1, 3], [], [0, 3]]
    np.testing.assert_array_equal(mixed.target(0)[1][:, 0], [2, 1, 2])
    np.testing.assert_array_equal(mixed.target(2)[1], dense[2, [1, 1]])
    both = targets.joined(part)
    assert [both.target(n)[0].tolist() for n in (0, 3, 5)] == [[0, 1, 2, 3], [0, 1], [0]]


def test_each_encoded_target_uses_16_bits_where_they_are_enough() -> None:
    dense = np.zeros((4, 70_000, 3), np.float32)
    dense[0, [3, 65534]] = 0.1
    dense[1, [3, 65535]] = [0, -0.2, 0]
    dense[3, 69_999, 2] = 1e-3
    encoded = EncodedTargets.of(MorphTargets.of(dense, epsilon=0.0), vertices=70_000)
    for n, is_wide in enumerate((False, True, False, True)):
        count, wide, rows, offsets = encoded.sparse(n)
        assert wide is is_wide
        found, where = np.zeros((70_000, 3), "<f4"), np.frombuffer(rows, "<u4" if wide else "<u2")
        found[where] = np.frombuffer(offsets, "<f4").reshape(-1, 3)
        assert len(where) == count
        np.testing.assert_array_equal(found, dense[n])
    assert encoded.low == [[0, 0, 0], [0, -0.2, 0], [0, 0, 0], [0, 0, 0]]
    assert encoded.high[3] == [0, 0, 0.001]


def test_shortest_numbers_give_the_float32_back() -> None:
    values = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32) * np.float32(1e-6)
    assert shortest(values) == [[float(str(value)) for value in row] for row in values]


@pytest.mark.parametrize("packaged", [False, True])
def test_normals_of_maps_are_those_of_the_detail_fit(*, packaged: bool) -> None:
    model = load_model() if packaged else tiny_model()
    size = 96 if packaged else 16
    rng = np.random.default_rng(0)
    relief = rng.normal(size=(size, size)).astype(np.float32) * 2e-4
    identity, expression, _ = model.counts
    face = replace(
        model_face(torch.zeros(identity), model)[0] if packaged else tiny_reconstruction(),
        identity=rng.normal(size=identity).astype(np.float32),
        expression=rng.random(expression).astype(np.float32) * 0.5,
        displacement=relief,
        texture_offset=np.zeros((size, size, 3), np.float32),
    )
    atlas = TexelAtlas.of(model, size)
    smooth = model.vertices(torch.from_numpy(face.identity)[None], torch.from_numpy(face.expression)[None])
    normals = torch.from_numpy(unit_normals(smooth[0].numpy(), face.triangles))[None]
    plain = DisplacedNormals(atlas, model, vertices=smooth, normals=normals, rotmat=torch.eye(3)[None])
    expected = plain(torch.from_numpy(relief)[None, None])[0][atlas.valid]
    found = FaceNormals(face, model).at(texels_of(model, size), torch.from_numpy(relief)).T
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert float((expected - plain.normals[0][atlas.valid]).norm(dim=-1).mean()) > 0.005  # the relief matters


def test_texels_are_kept_for_a_few_small_maps() -> None:
    model = tiny_model()
    first = texels_of(model, 16)
    assert texels_of(model, 16) is first
    assert texels_of(model, 600) is not texels_of(model, 600)
    for size in (17, 18, 19, 20):
        texels_of(model, size)
    assert texels_of(model, 16) is not first
    model.uv.mul_(0.9)
    assert len(texels_of(model, 20).index) < 20 * 20 * 0.8 * 0.9


def tilted_view(*, size: int = 90) -> tuple[FaceView, torch.Tensor, Camera]:
    """The packaged model's mean face from the side."""
    model = load_model()
    face, _ = model_face(torch.zeros(model.counts[0]), model)
    angle = torch.tensor(0.8)
    rotation = torch.tensor([[angle.cos(), 0, angle.sin()], [0, 1, 0], [-angle.sin(), 0, angle.cos()]])
    vertices = to_camera_axes(model.mean @ rotation.T) + torch.tensor([0.05, 0.0, 0.6])
    camera = Camera.from_fov(30.0, image_size=(size, size * 10 // 9))
    return FaceView.of(face, vertices, camera=camera), vertices, camera


def test_a_smooth_pixel_is_sampled_in_its_middle() -> None:
    view, vertices, camera = tilted_view()
    points = camera.project(view.vertex_values(vertices.numpy())[None])[0]
    width = camera.image_size[1]
    middles = torch.stack([view.smooth % width, view.smooth // width], dim=-1) + 0.5
    torch.testing.assert_close(points[: len(view.smooth)], middles, atol=1e-3, rtol=0)
    edge = torch.stack([view.edges % width, view.edges // width], dim=-1)[view.owners] + 0.5
    further = points[len(view.smooth) :] - edge
    assert further.min() > -1e-3
    assert further.max() < 0.5 + 1e-3


def test_edges_are_covered_in_part() -> None:
    view, _, camera = tilted_view()
    black, white = np.zeros((*camera.image_size, 3), np.uint8), torch.ones(len(view.uv), 3)
    coverage = view.over(white, black)[..., 0]
    assert set(np.unique(coverage).tolist()) <= {0, 64, 127, 128, 191, 255}
    assert 0.02 < len(view.edges) / len(view.smooth) < 0.3
    large, _, _ = tilted_view(size=360)
    # Edges move by a quarter of a pixel, the area does not change.
    area = coverage.sum() / 255
    assert area == pytest.approx((len(large.smooth) + len(large.owners) / 4) / 16, rel=0.01)
    assert (coverage[0] == 0).all()


def obj_of(face: Reconstruction, model: MorphableModel) -> str:
    return obj_text(make_rig(face, model, "face"), materials="a.mtl")


def test_text_of_an_obj_follows_the_face() -> None:
    model, face = tiny_model(), tiny_reconstruction()
    text = obj_of(face, model)
    assert obj_of(face, model) == text
    turned = replace(face, triangles=face.triangles[:, [1, 2, 0]])
    moved = replace(face, uv=face.uv * np.float32(0.5))
    for other, kind in ((turned, "f "), (moved, "vt ")):
        lines = obj_of(other, model).splitlines()
        changed = [a for a, b in zip(lines, text.splitlines(), strict=True) if a != b]
        assert changed
        assert all(line.startswith(kind) for line in changed)


def changed_eyes(model: MorphableModel) -> MorphableModel:
    model.masks.eyes.zero_()
    return model


def test_a_changed_model_is_seen() -> None:
    model = tiny_model()
    assert "usemtl eyes" in obj_of(tiny_reconstruction(), model)
    assert "usemtl eyes" not in obj_of(tiny_reconstruction(), changed_eyes(model))
