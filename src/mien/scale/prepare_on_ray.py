"""`mien data prepare` on Ray.

Two dead processes cost a shard only the photo that killed them.

If the store is at an address such as s3://bucket/store, a temporary folder of the first process has its small files.
The process that makes a shard copies it to the address, first the tar, then the rows: a shard with rows is whole.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mien.errors import MienError, WorkerDied
from mien.io.addresses import check_protocol
from mien.scale.addresses import file_system, put_files, reaching
from mien.scale.ray_engine import RaySettings, run_on_ray
from mien.training.data.prepare import PhotoEntry, PreparationReport, PreparationSettings, prepare, read_face


def prepare_on_ray(
    photos: Sequence[PhotoEntry],
    store: Path | str,
    *,
    settings: PreparationSettings,
    processes: int,
    progress: Callable[[int, int], None] | None = None,
    ray: RaySettings,
) -> PreparationReport:
    """Fill a store like `prepare`, with the same shards.

    Args:
        photos: As in `prepare`. Paths must be absolute.
        store: A folder that all machines share, or an address.
        settings: As in `prepare`.
        processes: Their number, for the report; `ray` decides it.
        progress: As in `prepare`.
        ray: Where.

    Raises:
        MienError: As `prepare` and `run_on_ray`, or the address cannot be reached.
    """
    if isinstance(store, Path):
        run = partial(_run_shards, ray=ray)
        return prepare(photos, store.absolute(), settings=settings, processes=processes, progress=progress, run=run)
    address = store.rstrip("/")
    check_protocol(address)
    with _small_files(address) as here:
        run = partial(_run_shards_at, address, here, ray=ray)
        return prepare(
            photos, here, settings=settings, processes=processes, progress=progress, run=run, shards_at=address
        )


@contextmanager
def _small_files(address: str) -> Iterator[Path]:
    """A temporary folder with the plan and the rows of the address, whose new files go there at the end."""
    with tempfile.TemporaryDirectory(prefix="mien-") as folder:
        here = Path(folder)
        with reaching(address):
            files, root = file_system(address)
            for pattern in ("plan.json", "faces-*.json"):
                for path in map(str, files.glob(f"{root}/{pattern}")):
                    files.get_file(path, str(here / Path(path).name))
        before = {path.name for path in here.iterdir()}
        try:
            yield here
        except MienError as error:
            raise type(error)(str(error).replace(folder, address)) from error
        with reaching(address):
            new = [path for path in here.iterdir() if path.name not in before and not path.name.startswith(".")]
            put_files(files, here, new, root)


def _run_shards_at(
    address: str,
    here: Path,
    work: Callable[..., object],
    calls: Mapping[int, tuple[Any, ...]],
    *,
    processes: int,
    ray: RaySettings,
) -> Iterator[int]:
    """Make shards at the address, and fetch the rows of each."""
    with reaching(address):
        files, root = file_system(address)
        put_files(files, here, [here / "plan.json"], root)
        for number in _run_shards(partial(_make_at, work, address), calls, processes=processes, ray=ray):
            name = f"faces-{number:06d}.json"
            files.get_file(f"{root}/{name}", str(here / name))
            yield number


def _make_at(work: Callable[..., object], address: str, photos: Sequence[PhotoEntry], _: Path, *rest: Any) -> None:
    """Make a shard in a temporary folder, and copy it to the address; runs in a worker process."""
    with tempfile.TemporaryDirectory(prefix="mien-") as folder:
        work(photos, Path(folder), *rest)
        with reaching(address):
            files, root = file_system(address)
            for ending in ("tar", "json"):
                put_files(files, Path(folder), list(Path(folder).glob(f"faces-*.{ending}")), root)


def _run_shards(
    work: Callable[..., object], calls: Mapping[int, tuple[Any, ...]], *, processes: int, ray: RaySettings
) -> Iterator[int]:
    """The argument `run` of `prepare`; `ray` has the number of processes.

    A shard that lost two processes is made again at the end, without the photos that kill a process by themselves.
    """
    lost: dict[int, tuple[Any, ...]] = {}
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
    for key, outcome in run_on_ray(partial(_same, work), again, settings=ray):
        if isinstance(outcome, WorkerDied):
            raise outcome
        yield key


def _same(work: Callable[..., object]) -> Callable[..., object]:
    return work


def _probe(photo: PhotoEntry) -> None:
    """Do what `make_shard` does with a photo, and write nothing."""
    read_face(photo)
