"""Choice between float32 and bfloat16 for a run."""

from __future__ import annotations

import math
import time
from typing import Literal

import torch

from mien.training.config import LoopSettings

PROBE_SIZE, PROBES = 768, 5
"""Side of the matrices that are multiplied to compare two precisions, and how often."""


def chosen_precision(loop: LoopSettings) -> Literal["32-true", "bf16-mixed"]:
    """Resolve `loop.precision` on this machine.

    "auto" is bf16 on a GPU that supports it. On a CPU it multiplies matrices in both precisions, about 50 ms, and takes
    the faster one: without a matrix unit (AMX), or with emulated bf16, float32 is faster, on a Xeon twice as fast.
    """
    if loop.precision != "auto":
        return loop.precision
    if loop.device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if _product_seconds(torch.bfloat16) < _product_seconds(torch.float32) else "32-true"


def _product_seconds(dtype: torch.dtype) -> float:
    """Shortest of several times for the product of two square matrices."""
    matrix, shortest = torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=dtype), math.inf
    for _ in range(PROBES):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        shortest = min(shortest, time.perf_counter() - start)
    return shortest
