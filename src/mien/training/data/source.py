"""Where batches come from: photographed faces of a store, drawn faces, or both, as a pure function of the step.

    step ──► numbers of photos in this epoch's order, numbers of drawn faces ──► crops ──► FaceBatch

Nothing else decides what a batch holds. So the data position of a resumed run is its step, and each of several
processes takes its own part of the same batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset

from mien.errors import ConfigError, MienError
from mien.training.data.batch import FaceBatch, join_batches
from mien.training.data.photos import PhotoFaces


@dataclass(frozen=True)
class Shard:
    """Which part of every batch a process makes."""

    rank: int = 0
    processes: int = 1


@runtime_checkable
class SyntheticStream(Protocol):
    """A stream of drawn faces."""

    def batch(self, numbers: Sequence[int]) -> FaceBatch:
        """The faces with these numbers, with their truth."""
        ...


class FaceSource:
    """Batches of photographed and drawn faces; either may be left out."""

    def __init__(
        self,
        photographed: PhotoFaces | None,
        drawn: SyntheticStream | None,
        *,
        batch_size: int,
        drawn_share: float,
    ) -> None:
        drawn_count = round(batch_size * drawn_share)
        self.counts = (batch_size - drawn_count, drawn_count)
        self.photographed, self.drawn = photographed, drawn
        if self.counts[0] and photographed is None:
            raise ConfigError("data.synthetic_share below 1 needs photos: give a store with --data.")

    def batch(self, step: int, part: Shard) -> FaceBatch:
        """One process's part of a step's batch; ConfigError where the batch cannot be divided evenly."""
        if any(count % part.processes for count in self.counts):
            raise ConfigError(
                f"a batch of {self.counts[0]} photographed and {self.counts[1]} drawn faces cannot be divided over "
                f"{part.processes} processes; change loop.batch_size or data.synthetic_share."
            )
        batches = [
            faces.batch(range(step * count + part.rank, (step + 1) * count, part.processes))
            for faces, count in zip((self.photographed, self.drawn), self.counts, strict=True)
            if faces is not None and count
        ]
        return join_batches(batches)

    def steps_an_epoch(self) -> float:
        """Steps in which every photo is seen once; ConfigError without photos."""
        if self.photographed is None or not self.counts[0]:
            raise ConfigError("loop.epochs counts passes over photos, and this run has none; set loop.steps.")
        return len(self.photographed.store) / self.counts[0]


class _Steps(Dataset[FaceBatch | MienError]):
    def __init__(self, source: FaceSource, part: Shard) -> None:
        self.source, self.part = source, part

    def __getitem__(self, step: int) -> FaceBatch | MienError:
        try:
            return self.source.batch(step, self.part)
        except MienError as error:  # raised in a worker it would come out with twenty lines of traceback as its message
            return error


def stream(source: FaceSource, steps: range, *, part: Shard, workers: int) -> Iterator[FaceBatch]:
    """The batches of the given steps in order, prepared ahead by worker processes where there are any.

    Raises what `FaceSource.batch` raises.
    """
    loader: DataLoader[FaceBatch | MienError] = DataLoader(
        _Steps(source, part),
        sampler=steps,  # pyright: ignore[reportArgumentType]  (an iterable of indices is all it needs)
        batch_size=None,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        worker_init_fn=_use_one_thread,
    )
    for batch in loader:
        if isinstance(batch, MienError):
            raise batch
        yield batch


def _use_one_thread(_: int) -> None:
    torch.set_num_threads(1)
