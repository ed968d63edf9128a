"""Constants that are computed once per model."""

from __future__ import annotations

import gc
import weakref

from mien.morphable import MorphableModel
from mien.morphable.per_model import per_model
from tests.tiny import tiny_model

calls: list[tuple[float, ...]] = []


class Total:
    """The sum of the mean face, times a factor."""

    def __init__(self, model: MorphableModel, factor: float = 1.0) -> None:
        calls.append((factor,))
        self.value = factor * float(model.mean.sum())


def test_a_value_is_computed_once_per_model_and_settings() -> None:
    calls.clear()
    first, second = tiny_model(), tiny_model()
    kept = per_model(first, Total)
    assert per_model(first, Total) is kept
    assert per_model(second, Total) is not kept
    assert per_model(first, Total, 2.0).value == 2 * kept.value
    assert calls == [(1.0,), (1.0,), (2.0,)]


def test_the_last_two_settings_are_kept() -> None:
    model = tiny_model()
    for factor in (1.0, 2.0, 1.0, 2.0):
        per_model(model, Total, factor)
    calls.clear()
    third, second = per_model(model, Total, 3.0), per_model(model, Total, 2.0)
    assert calls == [(3.0,)]
    per_model(model, Total, 1.0)
    assert calls == [(3.0,), (1.0,)]
    assert per_model(model, Total, 2.0) is second
    gone = weakref.ref(third)
    del third
    gc.collect()
    assert gone() is None


def test_a_value_is_computed_again_after_the_model_has_changed() -> None:
    model = tiny_model()
    before = per_model(model, Total).value
    model.mean += 1
    in_place = per_model(model, Total).value
    model.mean = model.mean + 1
    assert before < in_place < per_model(model, Total).value


def test_a_value_does_not_outlive_its_model() -> None:
    model = tiny_model()
    kept = weakref.ref(per_model(model, Total))
    del model
    gc.collect()
    assert kept() is None
