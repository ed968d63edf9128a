"""Constants of a model, computed once per model."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from mien.morphable.model import MorphableModel
from mien.typing import Tensor

Value = TypeVar("Value")


@dataclass(frozen=True)
class _Kept:
    value: Any
    settings: tuple[Hashable, ...]
    buffers: tuple[tuple[Tensor, int], ...]
    """The buffers of the model, and the number of changes of each."""

    def is_of(self, settings: tuple[Hashable, ...], buffers: tuple[tuple[Tensor, int], ...]) -> bool:
        same = all(a is b and m == n for (a, m), (b, n) in zip(self.buffers, buffers, strict=True))
        return same and self.settings == settings


_kept: weakref.WeakKeyDictionary[MorphableModel, dict[Any, _Kept]] = weakref.WeakKeyDictionary()


def on_cpu(model: MorphableModel) -> MorphableModel:
    """The model itself if it is on the CPU, else a copy there, which is kept as long as the model.

    Args:
        model: The model; it stays where it is.
    """
    return model if model.mean.device.type == "cpu" else per_model(model, _copy_on_cpu)


def _copy_on_cpu(model: MorphableModel) -> MorphableModel:
    return copy.deepcopy(model).cpu()


def per_model(model: MorphableModel, build: Callable[..., Value], *settings: Hashable) -> Value:
    """The value of `build(model, *settings)`, computed at the first call and again after the model has changed.

    Args:
        model: The model; the value is kept as long as it exists.
        build: A function of the module level. Only its last value is kept, so that memory stays bounded.
        settings: Further arguments.
    """
    values = _kept.setdefault(model, {})
    # An inference tensor counts no changes.
    buffers = tuple((buffer, 0 if buffer.is_inference() else buffer._version) for buffer in model.buffers())
    known = values.get(build)
    if known is None or not known.is_of(settings, buffers):
        known = values[build] = _Kept(build(model, *settings), settings, buffers)
    return known.value
