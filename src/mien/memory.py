"""Out of memory as one typed error. NumPy raises MemoryError, torch a RuntimeError that only its text tells apart."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from mien.errors import OutOfMemory

P = ParamSpec("P")
T = TypeVar("T")

# In torch 2.13: CPU on Linux, CPU on Windows and CUDA, C++, cuBLAS and cuDNN, oneDNN. oneDNN keeps its failure: the
# same operation fails again in this process when there is memory.
_TEXTS = re.compile(
    r"can't allocate memory|(not enough|out of) memory|bad_alloc|STATUS_ALLOC_FAILED|could not create a primitive",
    re.IGNORECASE,
)
_ADVICE = "use a smaller photo, fewer faces or smaller batches, or end other programs, and start again"


def typed_out_of_memory(work: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that it raises `OutOfMemory` where memory runs out.

    The traceback inside the function is lost on purpose: it would keep the function's tensors in memory.
    """

    @functools.wraps(work)
    def checked(*args: P.args, **options: P.kwargs) -> T:
        try:
            return work(*args, **options)
        except OutOfMemory:
            raise
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not _TEXTS.search(str(error)):
                raise
            reason = str(error).partition("\n")[0] or type(error).__name__
        raise OutOfMemory(f"memory ran out ({reason}); {_ADVICE}")

    return checked
