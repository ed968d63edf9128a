"""The cost of many photos: processor time and bytes per photo in one process, and what Ray adds.

    python benchmarks/scale.py PHOTOS [--workers 1 2]

Processor time is that of the process that works on the photo, with one thread; the load of the machine changes it
little. Seconds are from the first finished photo to the last one, so that the start of processes does not count.
`--workers` also runs Ray with these numbers of processes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mien  # noqa: F401  (before torch: see mien.threads)

# isort: split
import torch

from mien.errors import WorkerDied
from mien.io.photo_files import find_photos
from mien.scale.output_folder import PhotoFolder
from mien.scale.photo_work import PhotoSettings
from mien.scale.ray_engine import RaySettings, run_on_ray
from mien.scale.ray_photos import PhotoResumer
from mien.scale.worker import Worker
from mien.training.data.prepare import PreparationSettings, make_shard, photo_entries

CASES = {
    "net, numbers": PhotoSettings(mode="net", detail=False, formats=("npz",)),
    "net, default files": PhotoSettings(mode="net"),
    "auto, default files": PhotoSettings(),
}
"""Results for statistics or training; for looking at; and with the fit to the pixels."""
SIZES = (160_000, 10_000_000)


@dataclass(frozen=True)
class Cost:
    """What the photos of a run cost."""

    processor_s: float
    """Processor time per photo, the median."""
    rate: float
    """Photos per second of all processes together."""
    read: float
    """Bytes per photo."""
    written: float
    """Bytes per photo."""


class Timed:
    """A function of a photo that also returns its processor time."""

    def __init__(self, work: Callable[[PhotoFolder], object]) -> None:
        self._work = work

    def __call__(self, folder: PhotoFolder) -> float:
        start = time.process_time()
        self._work(folder)
        return time.process_time() - start


def echo() -> Callable[[int], int]:
    """A function that does nothing, to measure what a call costs."""
    return int


def call_ms(count: int) -> float:
    """Milliseconds per call that does nothing in one process of Ray."""
    calls = {number: (number,) for number in range(count)}
    ends = [time.perf_counter() for _ in run_on_ray(echo, calls, settings=RaySettings(workers=1))]
    return 1e3 * (ends[-1] - ends[0]) / (count - 1)


def timed_resumer(settings: PhotoSettings) -> Timed:
    """What runs in a process of Ray."""
    return Timed(PhotoResumer(settings))


def measure_here(settings: PhotoSettings, photos: Sequence[Path]) -> Cost:
    """The cost in this process."""
    work = Timed(Worker(settings))
    with tempfile.TemporaryDirectory() as out:
        folders = [PhotoFolder(Path(out) / str(number), photo) for number, photo in enumerate(photos)]
        return _cost(((work(folder), time.perf_counter()) for folder in folders), photos, Path(out))


def measure_store(photos: Sequence[Path]) -> Cost:
    """The cost of `mien data prepare` in this process."""
    entries = photo_entries((str(photo), photo.name) for photo in photos)
    times = []
    with tempfile.TemporaryDirectory() as out:
        for number, entry in enumerate(entries):
            start = time.process_time()
            make_shard([entry], Path(out), number, PreparationSettings(), {})
            times.append((time.process_time() - start, time.perf_counter()))
        return _cost(times, photos, Path(out))


def measure_ray(settings: PhotoSettings, photos: Sequence[Path], workers: int) -> Cost:
    """The cost in processes of Ray."""
    with tempfile.TemporaryDirectory() as out:
        folders = [PhotoFolder(Path(out) / str(number), photo) for number, photo in enumerate(photos)]
        calls = {folder: (folder,) for folder in folders}
        results = run_on_ray(partial(timed_resumer, settings), calls, settings=RaySettings(workers=workers))
        return _cost(_succeeded(results), photos, Path(out))


def _succeeded(results: Iterable[tuple[PhotoFolder, float | WorkerDied]]) -> Iterator[tuple[float, float]]:
    for _, seconds in results:
        if isinstance(seconds, WorkerDied):
            raise seconds
        yield seconds, time.perf_counter()


def _cost(results: Iterable[tuple[float, float]], photos: Sequence[Path], out: Path) -> Cost:
    seconds, ends = zip(*results, strict=True)  # of each photo, and when it was finished
    files = [file.stat().st_size for file in out.rglob("*") if file.is_file()]
    return Cost(
        processor_s=statistics.median(seconds),
        rate=(len(ends) - 1) / (ends[-1] - ends[0]),
        read=sum(photo.stat().st_size for photo in photos) / len(photos),
        written=sum(files) / len(photos),
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--workers", type=int, nargs="*", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    photos = find_photos([arguments.photos])[: arguments.limit]
    print("| results | processor s per photo | MB read | MB written | core hours for 160,000 | for 10 million |")
    print("|---|---|---|---|---|---|")
    costs = {name: partial(measure_here, settings) for name, settings in CASES.items()}
    for name, measure in {**costs, "store for training": measure_store}.items():
        cost = measure(photos)
        hours = " | ".join(f"{size * cost.processor_s / 3600:,.0f}" for size in SIZES)
        print(f"| {name} | {cost.processor_s:.2f} | {cost.read / 1e6:.2f} | {cost.written / 1e6:.2f} | {hours} |")
    if arguments.workers:
        print("\n| net, numbers | processor s per photo | photos per s |\n|---|---|---|")
    for workers in arguments.workers:
        cost = measure_ray(CASES["net, numbers"], photos, workers)
        print(f"| Ray, {workers} processes | {cost.processor_s:.2f} | {cost.rate:.2f} |")
    if arguments.workers:
        print(f"\nA call that does nothing takes {call_ms(1000):.2f} ms.")


if __name__ == "__main__":
    main()
