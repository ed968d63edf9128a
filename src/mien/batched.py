"""One base class for the frozen dataclasses that hold a batch of faces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

SHARED: Mapping[str, bool] = {"shared": True}
"""Metadata of a field that is the same for the whole batch: `image_size: tuple[int, int] = field(metadata=SHARED)`."""

T = TypeVar("T")
BatchT = TypeVar("BatchT", bound="Batched")


class Batched:
    """Base of a frozen dataclass whose fields have one leading batch axis.

    Each field is a tensor with the batch as its first axis, another `Batched`, None, or is declared as shared with
    `field(metadata=SHARED)`. Nothing is copied unless torch has to: slices are views, and moving a tensor to the device
    it is on returns the same tensor.

    Example:
        >>> from mien.camera import Camera
        >>> cameras = Camera.from_fov(30.0, image_size=(480, 640), batch=3)
        >>> len(cameras[1:]), len(Camera.join([cameras, cameras]))
        (2, 6)
    """

    def to(self: BatchT, target: torch.device | torch.dtype) -> BatchT:
        """The same batch on a device, or in another floating-point precision (integer tensors keep their type)."""
        if isinstance(target, torch.dtype):
            return map_tensors(self, lambda tensor: tensor.to(target) if tensor.is_floating_point() else tensor)
        return map_tensors(self, lambda tensor: tensor.to(target))

    def double(self: BatchT) -> BatchT:
        """The same batch in double precision."""
        return self.to(torch.float64)

    def __getitem__(self: BatchT, index: slice | Tensor) -> BatchT:
        """Some elements as a batch.

        Args:
            index: A slice (which gives views), a mask (B,), or element numbers (N,). Not a single number: that would
                remove the batch axis.
        """
        return map_tensors(self, lambda tensor: tensor[index])

    def __len__(self) -> int:
        """Number of elements of the batch."""
        for field in fields(self):  # pyright: ignore[reportArgumentType]  # every subclass is a dataclass
            value = getattr(self, field.name)
            if isinstance(value, Tensor | Batched) and not field.metadata.get("shared"):
                return len(value)
        raise TypeError(f"{type(self).__name__} has no field with a batch axis.")

    @classmethod
    def join(cls: type[BatchT], parts: Sequence[BatchT]) -> BatchT:
        """One batch of several.

        Args:
            parts: Batches whose shared fields are equal; a field that is None in one part is None in all of them.

        Raises:
            ValueError: There are no parts, or they do not fit together.
        """
        if not parts:
            raise ValueError(f"parts=[] is empty; {cls.__name__}.join takes at least one batch.")
        names = [(field.name, bool(field.metadata.get("shared"))) for field in fields(cls)]  # pyright: ignore
        return cls(**{name: _joined(name, [getattr(part, name) for part in parts], shared) for name, shared in names})


def map_tensors(batch: T, change: Callable[[Tensor], Tensor]) -> T:
    """The dataclass with `change` applied to every tensor in it, those of nested dataclasses included.

    Args:
        batch: A dataclass instance whose fields are as those of a `Batched`.
        change: Function that is applied to each tensor.

    Raises:
        TypeError: A field is neither of these nor declared as shared.
    """
    values: dict[str, Any] = {}
    for field in fields(batch):  # pyright: ignore[reportArgumentType]
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            value = value if field.metadata.get("shared") else change(value)
        elif isinstance(value, Batched):
            value = map_tensors(value, change)
        elif value is not None and not field.metadata.get("shared"):
            raise TypeError(
                f"{type(batch).__name__}.{field.name} is a {type(value).__name__}, which has no batch axis; declare it "
                "with field(metadata=SHARED)."
            )
        values[field.name] = value
    return type(batch)(**values)


def _joined(name: str, values: Sequence[Any], shared: bool) -> Any:
    first = values[0]
    if shared:
        if any(value != first for value in values[1:]):
            raise ValueError(f"{name} differs between the parts ({first} and others); join parts that share it.")
        return first
    if any(type(value) is not type(first) for value in values):
        raise ValueError(f"{name} is None in some of the parts; give it in all of them or in none.")
    if first is None:
        return None
    return torch.cat(list(values)) if isinstance(first, Tensor) else type(first).join(values)
