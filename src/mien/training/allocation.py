"""Keeps the memory of a training step for the next step."""

from __future__ import annotations

import ctypes
import sys

# malloc.h of glibc.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER, _NO_MAPPINGS = -1, 0


def keep_freed_memory() -> bool:
    """Let glibc keep what the process frees, since a training step allocates what the step before freed.

    By default large tensors are returned to the system, which clears every page of the next ones. Kept memory shortens
    the encoder's step by 8 % (Zen 4, two cores). It holds until the process ends, so only programs call this.

    Returns:
        Whether it is so now; False with another C library than glibc.
    """
    if sys.platform != "linux":
        return False
    change = getattr(ctypes.CDLL(None), "mallopt", None)
    return change is not None and bool(change(_MMAP_MAX, _NO_MAPPINGS) and change(_TRIM_THRESHOLD, _NEVER))
