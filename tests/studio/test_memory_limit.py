"""A worker process gets no more memory than it may have."""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.connection import Connection

import pytest
import torch

from mien.errors import OutOfMemory
from mien.memory import typed_out_of_memory
from mien.studio import worker

LIMIT = 2_000_000_000


def _fill(connection: Connection) -> None:
    """What a process does whose photo needs more memory than the limit."""
    worker._limit_memory(LIMIT)
    try:
        typed_out_of_memory(torch.empty)(4 * LIMIT, dtype=torch.uint8)
    except OutOfMemory:
        connection.send("out of memory")
    else:
        connection.send("no error")


@pytest.mark.skipif(sys.platform != "linux", reason="the limit exists on Linux only")
def test_more_memory_is_a_typed_error() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_fill, args=(theirs,), daemon=True)
    process.start()
    assert ours.poll(120)
    assert ours.recv() == "out of memory"
    process.join()
