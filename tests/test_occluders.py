"""What hides a face: the map of the occluder head, and what it changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mien.export.head_painter import HeadPainter
from mien.export.model_face import model_face
from mien.morphable import MorphableModel, load_model
from mien.perception import FaceDetection, FaceMesh, FaceParts, face_crop, face_parts
from mien.perception.crops import Crop
from mien.perception.fused import Program
from mien.perception.occluders import SMALLEST_SHARE, OccluderMap
from tests.astronaut import astronaut, astronaut_face, detector

JAW = (93, 58, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 288, 323)
"""MediaPipe's points from one ear over the chin to the other."""


def crop_of(face: FaceDetection) -> Crop:
    return face_crop(torch.from_numpy(face.landmarks468_px[:, :2]))


def painted(colour: tuple[int, int, int], polygon: np.ndarray) -> np.ndarray:
    """The astronaut behind a polygon."""
    image = Image.fromarray(astronaut().copy())
    ImageDraw.Draw(image).polygon([tuple(point) for point in polygon.tolist()], fill=colour)
    return np.asarray(image)


def masked_face(colour: tuple[int, int, int]) -> tuple[FaceParts, Crop]:
    """What is found of the astronaut with a mask over nose, mouth and chin."""
    mesh = astronaut_face().landmarks468_px[:, :2]
    pixels = painted(colour, np.concatenate([mesh[list(JAW)], mesh[[197]]]))
    (face,) = detector().detect(pixels, max_faces=1)
    crop = crop_of(astronaut_face())
    return face_parts(pixels, face, crop), crop


def at(values: torch.Tensor, crop: Crop, point: int) -> float:
    """The mask at one of the astronaut's landmarks."""
    x, y = crop.to_crop(torch.from_numpy(astronaut_face().landmarks468_px[point, :2])).round().int().tolist()
    return float(values[y, x])


CHEEK = tuple(int(v) for v in (205, 160, 140))


@pytest.mark.parametrize("colour", [(150, 190, 215), (30, 30, 34), (240, 240, 240), CHEEK])
def test_a_mask_is_covered_and_the_face_above_it_is_skin(colour: tuple[int, int, int]) -> None:
    parts, crop = masked_face(colour)
    for point in (17, 2, 205, 425):  # below the mouth, under the nose, on the cheeks
        assert at(parts.covered, crop, point) > 0.9
        assert at(parts.skin, crop, point) < 0.1
        assert at(parts.face, crop, point) < 0.1
    for point in (9, 230, 450):  # between the brows, below the eyes
        assert at(parts.covered, crop, point) < 0.4
        assert at(parts.skin, crop, point) > 0.5
    assert parts.covered_shares.face > 0.3
    assert parts.covered_shares.mouth > 0.9
    assert parts.covered_shares.eyes == 0
    assert set(parts.covered_shares.parts) == {"nose", "mouth"}
    assert parts.covered_shares.forehead < 0.25  # with her hair


def with_sunglasses(pixels: np.ndarray, mesh_px: np.ndarray) -> np.ndarray:
    """A dark rectangle over each eye."""
    for right, left, bottom, top in ((35, 193, 118, 52), (417, 265, 347, 282)):
        box = mesh_px[[right, left, bottom, top], :2]
        low, high = box.min(0), box.max(0)
        corners = np.array([low, [high[0], low[1]], high, [low[0], high[1]]])
        image = Image.fromarray(pixels.copy())
        ImageDraw.Draw(image).polygon([tuple(point) for point in corners.tolist()], fill=(12, 12, 14))
        pixels = np.asarray(image)
    return pixels


def found_in(pixels: np.ndarray) -> tuple[FaceDetection, FaceParts]:
    (face,) = detector().detect(pixels, max_faces=1)
    return face, face_parts(pixels, face, crop_of(face))


def test_sunglasses_cover_the_eyes() -> None:
    _, parts = found_in(with_sunglasses(astronaut(), astronaut_face().landmarks468_px))
    assert "eyes" in parts.covered_shares.parts
    assert "mouth" not in parts.covered_shares.parts
    assert parts.covered_shares.eyes > 0.9
    assert parts.covered_shares.mouth < 0.1


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


# Each of these heads had covered landmarks before the mirror image was asked.
@pytest.mark.parametrize(("seed", "yaw_deg"), [(0, -50.0), (0, 50.0), (4, 50.0)])
def test_a_turned_head_does_not_cover_itself_but_sunglasses_do(
    seed: int, yaw_deg: float, model: MorphableModel
) -> None:
    identity = torch.randn(model.counts[0], generator=torch.Generator().manual_seed(seed))
    pixels = HeadPainter(model_face(identity, model)[0], model).picture(yaw_deg=yaw_deg, side_px=256)
    face, parts = found_in(pixels)
    crop = crop_of(face)
    points = crop.to_crop(torch.from_numpy(face.landmarks468_px[:, :2]))
    column, row = points.round().long().clamp(0, crop.size - 1).T
    assert not parts.covered[row, column].any()
    _, parts = found_in(with_sunglasses(pixels, face.landmarks468_px))
    assert parts.covered_shares.face > 0.1
    assert "eyes" in parts.covered_shares.parts


def test_two_estimates_agree_nearby() -> None:
    """The second estimate sees one of two squares, two pixels beside it."""
    first, second = np.zeros((2, 96, 96), np.float32)
    first[20:40, 20:40] = first[60:80, 60:80] = 0.9
    second[20:40, 22:42] = 0.95
    both = OccluderMap(first, np.array([[2.0, 0, 0], [0, 2.0, 0]])).where_also(second)
    expected = first.copy()
    expected[60:80, 60:80] = 0
    np.testing.assert_array_equal(both.probability, expected)
    second[20:40] = np.roll(second[20:40], 10, axis=1)
    assert OccluderMap(first, both.photo_from_window).where_also(second).probability[30, 20:30].max() == 0


def test_a_map_touches_the_points_in_its_regions() -> None:
    probability = np.zeros((96, 96), np.float32)
    probability[10:20, 40:50] = 0.7
    quarter_turn = np.array([[0.0, -2, 300], [2, 0, 100]])  # x = 300 - 2 row, y = 100 + 2 column
    found = OccluderMap(probability, quarter_turn)
    assert found.touches(np.array([[0.0, 0, 5], [270, 190, 5]]))
    assert not found.touches(np.array([[0.0, 0, 5], [190, 130, 5]]))


def test_shares_are_those_of_what_is_found_and_the_mask_has_a_margin() -> None:
    face, crop = astronaut_face(), crop_of(astronaut_face())
    probability = np.zeros((crop.size, crop.size), np.float32)
    middle = slice(crop.size // 2 - 12, crop.size // 2 + 12)
    probability[middle, middle] = 1
    parts = face_parts(
        astronaut(), replace(face, occluders=OccluderMap(probability, crop.photo_from_crop.numpy())), crop
    )
    nose = 24**2 / float(parts.oval.sum())
    assert nose < parts.covered_shares.face < 1.6 * nose  # the oval without the forehead is smaller
    assert float(parts.covered.sum()) > 1.5 * 24**2


def test_nothing_but_hair_covers_the_astronaut() -> None:
    parts = face_parts(astronaut(), astronaut_face(), crop_of(astronaut_face()))
    assert parts.covered_shares.face < 0.02
    assert parts.covered_shares.parts == ()


def test_a_map_without_occluders_changes_nothing() -> None:
    face = astronaut_face()
    assert face.occluders is not None
    empty = replace(face.occluders, probability=np.full((96, 96), 0.3, np.float32))
    found, without = (
        face_parts(astronaut(), replace(face, occluders=occluders), crop_of(face)) for occluders in (empty, None)
    )
    assert not found.covered.any()
    assert torch.equal(found.skin, without.skin)
    assert torch.equal(found.face, found.skin.maximum(found.inner))


def test_the_opening_of_a_mouth_is_no_occluder_but_a_mask_over_it_is() -> None:
    """She laughs. The map covers the opening alone, then the lips too."""
    face, crop = astronaut_face(), crop_of(astronaut_face())
    without = face_parts(astronaut(), replace(face, occluders=None), crop)
    opening = (without.mouth.numpy() > 0.5).astype(np.float32)
    rows, columns = np.nonzero(opening)
    with_lips = opening.copy()
    with_lips[rows.min() - 14 : rows.max() + 15, columns.min() - 14 : columns.max() + 15] = 1
    for probability, covered in ((opening, False), (with_lips, True)):
        drawn = OccluderMap(probability, crop.photo_from_crop.numpy())
        found = face_parts(astronaut(), replace(face, occluders=drawn), crop)
        assert (float((found.covered * without.mouth).sum()) > 0.5 * opening.sum()) == covered


def test_the_map_is_where_the_crop_shows_it() -> None:
    """A square of the map, turned and scaled; the crop is another square of the photo."""
    probability = np.zeros((96, 96), np.float32)
    probability[20:60, 30:50] = 1
    angle, scale = 0.3, 2.5
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    photo_from_window = np.concatenate([turn, [[40.0], [10.0]]], 1)
    crop = Crop.around((120.0, 110.0), 260.0, size=130, angle=-0.2)
    found = OccluderMap(probability, photo_from_window).in_crop(crop)
    rows, columns = np.mgrid[:130, :130] + 0.5
    photo = crop.to_photo(torch.from_numpy(np.stack([columns, rows], -1))).numpy()
    window = (photo - photo_from_window[:, 2]) @ np.linalg.inv(turn).T
    deep = ((window > [31, 21]) & (window < [49, 59])).all(-1)
    outside = ((window < [29, 19]) | (window > [51, 61])).any(-1)
    assert deep.sum() > 500
    assert found[deep].min() > 0.99
    assert found[outside].max() < 0.01


def test_small_and_unsure_regions_are_left_out() -> None:
    probability = np.full((96, 96), 0.05, np.float32)
    side = int(np.sqrt(SMALLEST_SHARE * 96 * 96)) - 1
    probability[10 : 10 + side, 10 : 10 + side] = 0.99  # too small
    probability[40:60, 10:30] = 0.8  # nowhere sure
    identity = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    crop = Crop.around((48.0, 48.0), 96.0, size=96)
    assert not OccluderMap(probability, identity).in_crop(crop).any()
    probability[40:60, 60:80] = 0.7
    probability[50, 70] = 0.9  # sure at one pixel, and connected
    found = OccluderMap(probability, identity).in_crop(crop)
    assert found[42:58, 62:78].min() > 0.99
    assert not found[:, :55].any()


def test_the_native_head_equals_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = FaceMesh.from_assets(), torch.rand(2, 3, 192, 192)
    found = network.with_occluders(images)
    assert all(torch.equal(a, b) for a, b in zip(found, network(images), strict=False))
    monkeypatch.setattr(Program, "fits", lambda *_: False)
    for native, layers in zip(found, network.with_occluders(images), strict=True):
        torch.testing.assert_close(native, layers, atol=2e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="from_assets"):
        FaceMesh().with_occluders(images)
