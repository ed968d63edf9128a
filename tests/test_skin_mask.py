"""The skin mask of real and of covered faces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mien.perception import (
    face_crop,
    face_parts,
)
from mien.perception import skin_mask as skin
from tests.astronaut import astronaut, astronaut_face


def test_the_skin_mask_covers_cheeks_but_not_eyes_or_background() -> None:
    face = astronaut_face()
    crop = face_crop(torch.from_numpy(face.landmarks468_px[:, :2]))
    parts = face_parts(astronaut(), face, crop)
    mesh = crop.to_crop(torch.from_numpy(face.landmarks468_px[:, :2])).round().int()

    def at(mask: torch.Tensor, point: int) -> float:
        return float(mask[mesh[point, 1], mesh[point, 0]])

    for cheek_or_nose in (117, 346, 50, 280, 5):
        assert at(parts.skin, cheek_or_nose) > 0.9
    iris = crop.to_crop(torch.from_numpy(face.irises_px[0, :1])).round().int()[0]
    assert float(parts.eyes[iris[1], iris[0]]) > 0.9
    assert float((parts.skin * parts.eyes).max()) < 0.3
    assert float(parts.skin[:20].max()) == 0.0
    # She laughs: teeth are not skin.
    assert float(parts.mouth.sum()) > 20


def test_a_patch_over_the_face_is_not_skin() -> None:
    face = astronaut_face()
    crop = face_crop(torch.from_numpy(face.landmarks468_px[:, :2]))
    before = face_parts(astronaut(), face, crop).skin
    covered = astronaut().copy()
    x, y = face.landmarks468_px[9, :2].astype(int)
    covered[y - 14 : y + 6, x - 12 : x + 12] = (20, 60, 160)
    after = face_parts(covered, face, crop).skin
    (patch,) = crop.to_crop(torch.tensor([[x, y - 4.0]])).round().int()
    assert float(before[patch[1], patch[0]]) > 0.9
    assert float(after[patch[1], patch[0]]) < 0.1


ROWS, COLUMNS = np.mgrid[:200, :200]
STRANDS, WRINKLES = 1 + 0.12 * np.sin(COLUMNS * 1.6), 1 + 0.12 * np.sin(ROWS * 1.6)

BLUE = (20, 60, 160)


def covered_skin(*places: tuple[float, float], half_px: tuple[int, int], colour: tuple[int, int, int]) -> torch.Tensor:
    """Skin at the centres of rectangles of the given colour that are painted over the astronaut's face."""
    face, photo = astronaut_face(), astronaut().copy()
    for x, y in places:
        photo[int(y) - half_px[1] : int(y) + half_px[1], int(x) - half_px[0] : int(x) + half_px[0]] = colour
    crop = face_crop(torch.from_numpy(face.landmarks468_px[:, :2]))
    skin = face_parts(photo, face, crop).skin
    columns, rows = crop.to_crop(torch.tensor(places)).round().long().unbind(-1)
    return skin[rows, columns]


def jaw_points() -> list[tuple[float, float]]:
    """Right and left, half way between a mouth corner and the outline."""
    mesh = astronaut_face().landmarks468_px
    return [tuple(((mesh[corner] + mesh[outline]) / 2)[:2].tolist()) for corner, outline in ((61, 136), (291, 365))]


def test_an_occluder_on_one_side_of_the_jaw_is_not_skin() -> None:
    right, left = jaw_points()
    assert float(covered_skin(right, half_px=(11, 14), colour=BLUE)[0]) < 0.1
    assert float(covered_skin(left, half_px=(11, 14), colour=BLUE)[0]) < 0.1


def test_small_spots_on_both_sides_of_the_jaw_are_not_a_beard() -> None:
    assert float(covered_skin(*jaw_points(), half_px=(4, 4), colour=BLUE).max()) < 0.2


def test_an_occluder_over_one_and_a_half_sides_of_the_jaw_is_not_a_beard() -> None:
    face, photo = astronaut_face(), astronaut().copy()
    mesh = face.landmarks468_px[:, :2]
    (right, height), (left, _) = jaw_points()
    middle = float(mesh[17, 0])
    columns = slice(int(mesh[136, 0]) - 6, int(middle + 0.55 * (float(mesh[365, 0]) - middle)))
    photo[int(mesh[2, 1]) : int(mesh[152, 1]) + 6, columns] = BLUE
    crop = face_crop(torch.from_numpy(mesh))
    skin = face_parts(photo, face, crop).skin
    (x, y), (open_x, open_y) = crop.to_crop(torch.tensor([[right, height], [left + 8, height]])).round().long().tolist()
    assert float(skin[y, x]) < 0.1
    assert float(skin[open_y, open_x]) > 0.5


def test_a_cover_of_both_sides_of_the_jaw_is_kept_as_a_beard() -> None:
    beard = covered_skin(*jaw_points(), half_px=(11, 14), colour=(30, 24, 20))
    torch.testing.assert_close(beard, torch.full((2,), skin.BEARD_WEIGHT), atol=0.05, rtol=0)


def test_brows_count_only_if_the_skin_around_them_is_visible() -> None:
    brow = tuple(astronaut_face().landmarks468_px[[105, 52], :2].mean(0).tolist())
    assert float(covered_skin(brow, half_px=(1, 1), colour=(60, 40, 30))[0]) > 0.8
    assert float(covered_skin(brow, half_px=(24, 16), colour=BLUE)[0]) < 0.1


def test_padding_outside_the_photo_is_not_skin() -> None:
    face = astronaut_face()
    x = int(face.landmarks468_px[4, 0])
    half = np.ascontiguousarray(astronaut()[:, :x])
    crop = face_crop(torch.from_numpy(face.landmarks468_px[:, :2]))
    edge = int(crop.to_crop(torch.tensor([[float(x), 0.0]]))[0, 0])
    parts = face_parts(half, face, crop)
    for mask in (parts.skin, parts.oval, parts.inner):
        assert float(mask[:, : edge - 2].max()) > 0.9
        assert float(mask[:, edge + 2 :].max()) == 0


def test_a_fringe_is_excluded_from_the_face_but_eyes_are_included() -> None:
    face = astronaut_face()
    crop = face_crop(torch.from_numpy(face.landmarks468_px[:, :2]))
    covered = astronaut().copy()
    x, y = face.landmarks468_px[151, :2].astype(int)
    covered[y - 8 : y + 8, x - 12 : x + 12] = (20, 60, 160)
    parts = face_parts(covered, face, crop)
    places = torch.stack([torch.tensor([float(x), float(y)]), torch.from_numpy(face.irises_px[0, 0])])
    (fringe, iris) = crop.to_crop(places).round().int().tolist()
    assert float(parts.face[fringe[1], fringe[0]]) < 0.1
    assert float(parts.skin[iris[1], iris[0]]) < 0.1
    assert float(parts.face[iris[1], iris[0]]) > 0.9


def with_forehead_pattern(pattern: np.ndarray) -> np.ndarray:
    """The astronaut with a forehead of her cheek's colour up to where her hair ends, times a pattern."""
    covered = astronaut().copy()
    mesh = astronaut_face().landmarks468_px
    low, high = int(mesh[9, 1]) - 6, int(mesh[10, 1]) - 12
    left, right = int(mesh[54, 0]), int(mesh[284, 0])
    cheek = covered[mesh[50, 1].astype(int), mesh[50, 0].astype(int)].astype(float)
    brightness = pattern[: low - high, : right - left, None]
    covered[high:low, left:right] = (cheek * brightness).clip(0, 255)
    return covered


@pytest.mark.parametrize("turns", [0, 1, 2])
@pytest.mark.parametrize(
    "pattern, skin", [(STRANDS, False), (WRINKLES, True), (np.where(ROWS > 22, STRANDS, 1.0), False)]
)
def test_skin_coloured_strands_are_hair_but_wrinkles_are_skin(pattern: np.ndarray, skin: bool, turns: int) -> None:
    face = astronaut_face()
    photo, mesh = with_forehead_pattern(pattern), face.landmarks468_px.copy()
    upper = mesh[10, :2] * 0.85 + mesh[9, :2] * 0.15
    for _ in range(turns):
        mesh[:, :2] = np.stack([mesh[:, 1], photo.shape[1] - mesh[:, 0]], 1)
        upper = np.array([upper[1], photo.shape[1] - upper[0]])
        photo = np.rot90(photo)
    crop = face_crop(torch.from_numpy(mesh[:, :2]))
    parts = face_parts(np.ascontiguousarray(photo), replace(face, landmarks468_px=mesh), crop)
    (place,) = crop.to_crop(torch.from_numpy(upper[None])).round().int()
    found = float(parts.skin[place[1], place[0]])
    assert found > 0.9 if skin else found < 0.1
