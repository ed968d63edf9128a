"""A batch keeps every face together with its own ground truth and maps, whatever is done to it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mien.morphable import MorphableModel, load_model
from mien.morphable.symmetry import Mirror
from mien.texture import DetailMaps
from mien.training.data.batch import FaceBatch, join_batches, resized
from mien.training.synthetic.faces import SyntheticFaces

SIZE, MAP = 24, 8


def maps_of(levels: list[float]) -> DetailMaps:
    level = torch.tensor(levels).view(-1, 1, 1, 1)
    return DetailMaps(level.expand(-1, 3, MAP, MAP), -level.expand(-1, 1, MAP, MAP))


def batch_of_three(model: MorphableModel) -> FaceBatch:
    """A photo face, a synthetic face, and a synthetic face with maps."""
    photo, plain, detailed = (SyntheticFaces(model, size=SIZE).render([k]) for k in range(3))
    return join_batches([replace(photo, gt=None), plain, replace(detailed, maps=maps_of([0.3]))])


def test_maps_belong_to_the_last_faces(tiny: MorphableModel) -> None:
    batch = batch_of_three(tiny)
    assert batch.photo_count == 1
    photo, plain, detailed = (batch.face(k) for k in range(3))
    assert photo.gt is None and photo.maps is None
    assert plain.gt is not None and plain.maps is None
    assert detailed.gt is not None and detailed.maps is not None
    assert (detailed.maps.texture_offset == 0.3).all()
    assert (detailed.maps.displacement == -0.3).all()


def test_joined_batches_keep_the_order_of_maps(tiny: MorphableModel) -> None:
    faces = SyntheticFaces(tiny, size=SIZE).render(range(3))
    parts = [replace(faces.face(k), maps=maps_of([float(k)])) for k in range(3)]
    joined = join_batches(parts)
    assert joined.maps is not None
    assert joined.maps.displacement[:, 0, 0, 0].tolist() == [0.0, -1.0, -2.0]
    for k in range(3):
        face = joined.face(k)
        assert face.maps is not None
        assert (face.maps.texture_offset == k).all()


def test_a_face_does_not_keep_its_batch_in_memory(tiny: MorphableModel) -> None:
    batch = replace(SyntheticFaces(tiny, size=SIZE).render(range(4)), maps=maps_of([0.0, 1.0, 2.0, 3.0]))
    maps = batch.face(2).maps
    assert maps is not None
    assert maps.texture_offset.untyped_storage().nbytes() == 3 * MAP * MAP * 4


def test_resized_and_moved_batches_carry_their_maps(tiny: MorphableModel) -> None:
    batch = batch_of_three(tiny)
    smaller = resized(batch, SIZE // 2)
    assert smaller.maps is batch.maps
    torch.testing.assert_close(smaller.gt_px, batch.gt_px / 2)
    torch.testing.assert_close(smaller.detected_px, batch.detected_px / 2)
    moved = batch.to(torch.device("cpu"))
    assert moved.maps is not None and batch.maps is not None
    assert torch.equal(moved.maps.texture_offset, batch.maps.texture_offset)
    halved = maps_of([0.3]).to(torch.float16)
    assert halved.displacement.dtype == torch.float16


def test_rows_of_ground_truth_and_maps_are_the_last_faces(tiny: MorphableModel) -> None:
    batch = batch_of_three(tiny)
    assert (batch.photo_count, batch.gt_rows, batch.map_rows) == (1, slice(1, 3), slice(2, 3))
    assert batch.photos().names == batch.names[:1] and batch.photos().gt is None
    assert batch.first(2).gt_rows == slice(1, 2) and batch.first(2).maps is None
    assert batch.first(9) is batch
    assert batch.gt is not None
    for row, number in enumerate(range(batch.gt_rows.start, batch.gt_rows.stop)):
        own = SyntheticFaces(tiny, size=SIZE).render([number]).gt
        assert own is not None
        torch.testing.assert_close(batch.gt.identity[row], own.identity[0])


def test_faces_in_another_order_are_refused(tiny: MorphableModel) -> None:
    photo, plain, detailed = (batch_of_three(tiny).face(k) for k in range(3))
    for parts in ([plain, photo], [detailed, plain], [detailed, photo]):
        with pytest.raises(ValueError, match="join photo faces first"):
            join_batches(parts)
    with pytest.raises(ValueError, match="cannot have"):
        replace(photo, maps=maps_of([0.0]))
    with pytest.raises(ValueError, match="cannot have 2 rows of ground truth") as error:
        replace(plain, gt=join_batches([plain, plain]).gt)
    assert "1 crops" in str(error.value)


def test_a_mirrored_batch_with_maps_is_refused(tiny: MorphableModel) -> None:
    mirror = Mirror.of(load_model())
    assert mirror is not None
    with pytest.raises(ValueError, match="remove its maps"):
        batch_of_three(tiny).mirrored(mirror)
