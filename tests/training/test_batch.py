"""A batch keeps every face together with its own truth and maps, whatever is done to it."""

from __future__ import annotations

from dataclasses import replace

import torch

from mien.morphable import MorphableModel
from mien.texture import DetailMaps
from mien.training.data.batch import FaceBatch, join_batches, resized
from mien.training.synthetic.faces import SyntheticFaces

SIZE, MAP = 24, 8


def maps_of(levels: list[float]) -> DetailMaps:
    level = torch.tensor(levels).view(-1, 1, 1, 1)
    return DetailMaps(level.expand(-1, 3, MAP, MAP), -level.expand(-1, 1, MAP, MAP))


def batch_of_three(model: MorphableModel) -> FaceBatch:
    """A face that is a photo, one with its truth, and one with maps as well."""
    photo, plain, detailed = (SyntheticFaces(model, size=SIZE).draw([k]) for k in range(3))
    return join_batches([replace(photo, gt=None), plain, replace(detailed, maps=maps_of([0.3]))])


def test_maps_belong_to_the_last_faces(tiny: MorphableModel) -> None:
    batch = batch_of_three(tiny)
    assert batch.photographed == 1
    photo, plain, detailed = (batch.face(k) for k in range(3))
    assert photo.gt is None and photo.maps is None
    assert plain.gt is not None and plain.maps is None
    assert detailed.gt is not None and detailed.maps is not None
    assert (detailed.maps.texture_offset == 0.3).all()
    assert (detailed.maps.displacement == -0.3).all()


def test_joined_batches_keep_the_order_of_maps(tiny: MorphableModel) -> None:
    drawn = SyntheticFaces(tiny, size=SIZE).draw(range(3))
    parts = [replace(drawn.face(k), maps=maps_of([float(k)])) for k in range(3)]
    joined = join_batches(parts)
    assert joined.maps is not None
    assert joined.maps.displacement[:, 0, 0, 0].tolist() == [0.0, -1.0, -2.0]
    for k in range(3):
        face = joined.face(k)
        assert face.maps is not None
        assert (face.maps.texture_offset == k).all()


def test_a_face_does_not_keep_its_batch_in_memory(tiny: MorphableModel) -> None:
    batch = replace(SyntheticFaces(tiny, size=SIZE).draw(range(4)), maps=maps_of([0.0, 1.0, 2.0, 3.0]))
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
