"""Slices, joins and moves of the dataclasses that hold a batch of faces."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from mien.batched import SHARED, Batched, map_tensors
from mien.camera import Camera
from mien.morphable import FaceCoefficients
from mien.typing import Float, Int, Tensor


@dataclass(frozen=True)
class Pair(Batched):
    values: Float[Tensor, "B 2"]
    ids: Int[Tensor, "B"]
    camera: Camera
    extra: Float[Tensor, "B"] | None = None
    name: str = field(default="pair", metadata=SHARED)


def pair(batch: int, *, first: float = 0.0, focal: float = 100.0) -> Pair:
    camera = Camera(torch.full((batch,), focal), torch.zeros(batch, 2), image_size=(4, 6))
    values = first + torch.arange(2.0 * batch).view(batch, 2)
    return Pair(values, torch.arange(batch), camera)


def test_a_slice_takes_the_same_rows_of_every_field_without_a_copy() -> None:
    batch = pair(3)
    part = batch[1:]
    assert len(batch) == 3
    assert len(part) == 2
    assert part.values.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert part.ids.tolist() == [1, 2]
    assert part.camera.focal_px.shape == (2,)
    assert (part.camera.image_size, part.name, part.extra) == ((4, 6), "pair", None)
    assert part.values.untyped_storage().data_ptr() == batch.values.untyped_storage().data_ptr()


def test_a_mask_or_a_list_of_numbers_selects_elements() -> None:
    batch = pair(3)
    assert batch[torch.tensor([True, False, True])].ids.tolist() == [0, 2]
    assert batch[torch.tensor([2, 0])].ids.tolist() == [2, 0]


def test_join_appends_and_slices_undo_it() -> None:
    both = Pair.join([pair(2), pair(1, first=9.0, focal=50.0)])
    assert both.values.tolist() == [[0.0, 1.0], [2.0, 3.0], [9.0, 10.0]]
    assert both.camera.focal_px.tolist() == [100.0, 100.0, 50.0]
    assert both[2:].values.tolist() == pair(1, first=9.0).values.tolist()


def test_join_refuses_parts_that_do_not_fit() -> None:
    one = pair(1)
    with pytest.raises(ValueError, match="empty"):
        Pair.join([])
    with pytest.raises(ValueError, match="name differs"):
        Pair.join([one, Pair(one.values, one.ids, one.camera, name="other")])
    with pytest.raises(ValueError, match="extra is None in some"):
        Pair.join([one, Pair(one.values, one.ids, one.camera, extra=torch.zeros(1))])


def test_double_changes_floats_alone_and_reaches_nested_fields() -> None:
    found = pair(2).double()
    assert (found.values.dtype, found.ids.dtype) == (torch.float64, torch.int64)
    assert found.camera.focal_px.dtype == torch.float64


def test_a_move_to_the_same_device_copies_nothing() -> None:
    batch = pair(2)
    assert batch.to(torch.device("cpu")).values is batch.values
    assert batch.to(torch.device("meta")).camera.centre_px.device.type == "meta"


def test_an_undeclared_field_without_a_batch_axis_is_refused() -> None:
    @dataclass(frozen=True)
    class Wrong(Batched):
        values: Float[Tensor, "B"]
        size: int

    with pytest.raises(TypeError, match=r"Wrong\.size is a int"):
        Wrong(torch.zeros(2), 3)[:1]


def test_coefficients_are_joined_with_their_poses() -> None:
    near, far = (FaceCoefficients.mean(identity=2, expression=3, albedo=1, distance=d) for d in (0.5, 2.0))
    both = FaceCoefficients.join([near, far])
    assert both.pose.translation[:, 2].tolist() == [0.5, 2.0]
    assert both[1:].pose.translation[0, 2] == 2.0
    assert torch.equal(map_tensors(both, torch.neg).pose.translation, -both.pose.translation)
