"""Training batches: photo faces, synthetic faces, or both, as a pure function of the step.

    step ──► numbers of photo faces, numbers of synthetic faces ──► crops ──► FaceBatch

Nothing else decides what a batch holds. Therefore the data position of a resumed run is its step, and each of several
processes makes its own shard of the same batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset

from mien.errors import ConfigError, MienError, OutputError
from mien.training.data.batch import FaceBatch, join_batches
from mien.training.data.photos import PhotoFaces
from mien.training.data.workers import LONGEST_WAIT_S


@dataclass(frozen=True)
class Shard:
    """The part of every batch that one process makes."""

    rank: int = 0
    """Number of the process, from 0."""
    processes: int = 1
    """Number of processes that share a batch."""


@runtime_checkable
class SyntheticStream(Protocol):
    """An endless stream of synthetic faces."""

    def batch(self, numbers: Sequence[int]) -> FaceBatch:
        """The faces with these numbers in the stream, with ground truth."""
        ...


class FaceSource:
    """Batches in which photo faces come first and synthetic faces last.

    Args:
        photos: Stream of photo faces; may be None if `synthetic_share` is 1.
        synthetic: Stream of synthetic faces; may be None if `synthetic_share` is 0.
        batch_size: Faces per batch, over all processes.
        synthetic_share: Share of the batch that is synthetic, 0 to 1; rounded to whole faces.

    Raises:
        ConfigError: The share asks for photo faces, and `photos` is None.
    """

    def __init__(
        self,
        photos: PhotoFaces | None,
        synthetic: SyntheticStream | None,
        *,
        batch_size: int,
        synthetic_share: float,
    ) -> None:
        synthetic_count = round(batch_size * synthetic_share)
        self.counts = (batch_size - synthetic_count, synthetic_count)
        self.photos, self.synthetic = photos, synthetic
        if self.counts[0] and photos is None:
            raise ConfigError(
                f"data.synthetic_share={synthetic_share:g} needs photos for the rest of the batch; give a store with "
                "--data, or set the share to 1."
            )

    def batch(self, step: int, shard: Shard) -> FaceBatch:
        """One process's shard of the batch of a step.

        Args:
            step: Number of the training step, from 0.
            shard: The part of the batch to make.

        Raises:
            ConfigError: The photo faces or the synthetic faces of a batch cannot be divided evenly over the processes.
        """
        if any(count % shard.processes for count in self.counts):
            raise ConfigError(
                f"a batch of {self.counts[0]} photo faces and {self.counts[1]} synthetic faces cannot be divided over "
                f"{shard.processes} processes; change loop.batch_size or data.synthetic_share."
            )
        batches = [
            faces.batch(range(step * count + shard.rank, (step + 1) * count, shard.processes))
            for faces, count in zip((self.photos, self.synthetic), self.counts, strict=True)
            if faces is not None and count
        ]
        return join_batches(batches)

    def steps_per_epoch(self) -> float:
        """Number of steps in which every photo face is used once.

        Raises:
            ConfigError: The batches have no photo faces.
        """
        if self.photos is None or not self.counts[0]:
            raise ConfigError("loop.epochs counts passes over photos, but this run uses no photos; set loop.steps.")
        return len(self.photos.store) / self.counts[0]


class _StepDataset(Dataset[FaceBatch | MienError]):
    def __init__(self, source: FaceSource, shard: Shard) -> None:
        self.source, self.shard = source, shard

    def __getitem__(self, step: int) -> FaceBatch | MienError:
        try:
            return self.source.batch(step, self.shard)
        except MienError as error:  # raised in a worker, it would arrive with its traceback as its message
            return error


def stream(source: FaceSource, steps: range, *, shard: Shard, workers: int) -> Iterator[FaceBatch]:
    """The batches of the given steps in order.

    Args:
        source: Where batches come from.
        steps: Numbers of the steps.
        shard: The part of each batch that this process makes.
        workers: Number of processes that prepare batches ahead; 0 prepares them in this process.

    Raises:
        MienError: What `FaceSource.batch` raises, in a worker too.
        OutputError: A worker was killed or hangs.
    """
    loader: DataLoader[FaceBatch | MienError] = DataLoader(
        _StepDataset(source, shard),
        sampler=steps,  # pyright: ignore[reportArgumentType]  (any iterable of indices will do)
        batch_size=None,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        timeout=LONGEST_WAIT_S if workers else 0,
        worker_init_fn=_use_one_thread,
    )
    batches = iter(loader)
    for _ in steps:
        try:
            batch = next(batches)
        except RuntimeError as error:
            if not workers:
                raise
            raise OutputError(
                f"a worker process that prepares batches was killed or hangs ({error}); continue with --resume, and "
                "with fewer loop.workers if memory ran out."
            ) from error
        if isinstance(batch, MienError):
            raise batch
        yield batch


def _use_one_thread(_: int) -> None:
    torch.set_num_threads(1)
