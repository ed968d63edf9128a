"""Out of memory: typed, and the memory of what failed is free again."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch

from mien.errors import MienError, OutOfMemory
from mien.memory import typed_out_of_memory

TOO_MUCH = 10**15


def fail_with(text: str) -> None:
    raise RuntimeError(text)


def fail_plainly() -> None:
    raise MemoryError


@pytest.mark.parametrize(
    "work",
    [
        lambda: torch.empty(TOO_MUCH),
        lambda: torch.zeros(1).expand(TOO_MUCH) + 1,
        lambda: np.empty(TOO_MUCH),
        fail_plainly,
        lambda: fail_with("CUDA out of memory. Tried to allocate 2.00 GiB."),
        lambda: fail_with("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        lambda: fail_with("could not create a primitive"),
    ],
)
def test_memory_that_ran_out_is_typed(work: Callable[[], object]) -> None:
    with pytest.raises(OutOfMemory, match=r"^memory ran out \(.+\); use ") as caught:
        typed_out_of_memory(work)()
    assert isinstance(caught.value, MienError)
    assert isinstance(caught.value, MemoryError)


def test_other_errors_stay() -> None:
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2"):
        typed_out_of_memory(lambda: torch.zeros(2, 3) @ torch.zeros(2, 3))()
    with pytest.raises(OutOfMemory, match=r"^once$"):
        typed_out_of_memory(lambda: (_ for _ in ()).throw(OutOfMemory("once")))()


def test_the_error_does_not_keep_the_memory() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    @typed_out_of_memory
    def work() -> torch.Tensor:
        large = torch.zeros(1000)
        kept.append(weakref.ref(large))
        return large + torch.empty(TOO_MUCH)

    with pytest.raises(OutOfMemory) as caught:
        work()
    assert caught.value.__context__ is None
    assert kept[0]() is None
