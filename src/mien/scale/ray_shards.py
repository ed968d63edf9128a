"""Makes the shards of `mien data prepare` on Ray. Two dead processes cost a shard only the photo that killed them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from mien.errors import WorkerDied
from mien.scale.ray_engine import RaySettings, run_on_ray
from mien.training.data.prepare import PhotoEntry, make_shard, read_face

K = TypeVar("K")


def run_shards_on_ray(
    work: Callable[..., object], calls: Mapping[K, tuple[Any, ...]], *, processes: int, ray: RaySettings
) -> Iterator[K]:
    """Make shards like `mien.training.data.workers.run_calls`; for the argument `run` of `prepare`.

    A shard that lost two processes is made again at the end, without the photos that kill a process by themselves.

    Args:
        work: `make_shard`.
        calls: The arguments of `make_shard` for each shard.
        processes: Has no effect; `ray` has the number.
        ray: Where.

    Yields:
        The keys, in the order in which the shards finish.

    Raises:
        MienError: As `run_on_ray`, or a shard loses two processes although none of its photos does.
    """
    lost: dict[K, tuple[Any, ...]] = {}
    for key, outcome in run_on_ray(partial(_same, work), calls, settings=ray):
        if isinstance(outcome, WorkerDied):
            lost[key] = calls[key]
        else:
            yield key
    if not lost:
        return
    photos = {photo.name: (photo,) for shard, *_ in lost.values() for photo in shard}
    probed = run_on_ray(partial(_same, _probe), photos, settings=ray)
    refused = {name: f"WorkerDied: {outcome}" for name, outcome in probed if isinstance(outcome, WorkerDied)}
    again = {key: (*arguments[:-1], refused) for key, arguments in lost.items()}
    for key, outcome in run_on_ray(partial(_same, make_shard), again, settings=ray):
        if isinstance(outcome, WorkerDied):
            raise outcome
        yield key


def _same(work: Callable[..., object]) -> Callable[..., object]:
    return work


def _probe(photo: PhotoEntry) -> None:
    """Do what `make_shard` does with a photo, and write nothing."""
    read_face(photo)
