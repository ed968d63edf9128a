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
        return self.settings == settings and self.has_buffers(buffers)

    def has_buffers(self, buffers: tuple[tuple[Tensor, int], ...]) -> bool:
        return all(a is b and m == n for (a, m), (b, n) in zip(self.buffers, buffers, strict=True))


_kept: weakref.WeakKeyDictionary[MorphableModel, dict[Any, tuple[_Kept, ...]]] = weakref.WeakKeyDictionary()


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
        build: A function of the module level. Its last two values are kept: of the quick and of the full result of a
            photo; more would let memory grow.
        settings: Further arguments.
    """
    values = _kept.setdefault(model, {})
    # An inference tensor counts no changes.
    buffers = tuple((buffer, 0 if buffer.is_inference() else buffer._version) for buffer in model.buffers())
    before = values.get(build, ())
    known = next((value for value in before if value.is_of(settings, buffers)), None)
    if known is None:
        known = _Kept(build(model, *settings), settings, buffers)
    others = [value for value in before if value is not known and value.has_buffers(buffers)]
    values[build] = (*others[-1:], known)
    return known.value
