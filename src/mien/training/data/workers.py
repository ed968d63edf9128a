"""Work that is independent call by call, in processes of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import torch

from mien.errors import OutputError

K = TypeVar("K")


def each_done(work: Callable[..., object], calls: Mapping[K, tuple[Any, ...]], *, processes: int) -> Iterator[K]:
    """Call `work` with each tuple of arguments and name each call when it is done; one process works in this one.

    A call has one thread, so that its sums are the same in any process. What a call raises comes out when those that
    run beside it are done; no other is begun then, nor where the caller stops.
    OutputError where the system killed a process.
    """
    if processes == 1 or len(calls) < 2:
        for name, arguments in calls.items():
            with _one_thread():
                work(*arguments)
            yield name
        return
    # Fresh processes: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        left = iter(calls.items())
        try:
            running = {pool.submit(work, *arguments): name for name, arguments in islice(left, processes)}
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    name = running.pop(future)
                    future.result()
                    running |= {pool.submit(work, *arguments): other for other, arguments in islice(left, 1)}
                    yield name
        except BrokenProcessPool as error:
            raise OutputError(
                "a working process was killed, as the system does where memory runs out; what is finished is kept, so "
                "run the command again with fewer --processes."
            ) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
