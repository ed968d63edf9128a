"""Where batches come from: photographed faces of a store, drawn faces, or both, as a pure function of the step.

    step ──► numbers of photos in this epoch's order, numbers of drawn faces ──► crops ──► FaceBatch

Nothing else decides what a batch holds. So the data position of a resumed run is its step, and each of several
processes takes its own part of the same batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from mien.arrays import Float, Tensor
from mien.camera import Camera
from mien.errors import ConfigError, MienError
from mien.mirror import MIRROR_LANDMARKS, mirror_mesh, mirrored_points
from mien.morphable import MorphableModel
from mien.perception.alignment import FACE_CROP_SCALE, Crop, sample_affine
from mien.training.batch import FaceBatch, join_batches
from mien.training.imaging import FaceFrame, covers, elsewhere, photograph, uneven_light
from mien.training.store import FaceRecord, FaceStore

TURN_RAD, SHIFT, ZOOM = 0.3, 0.03, 0.05
"""Standard deviations of the crop's roll in augmentation, of its place in sides, and of the logarithm of its size."""
COVER_SHARE = 0.3
ELSEWHERE_SHARE = 0.6
"""How often a photo is shown before another background and in uneven light: a studio's wall and lamps are in no other
photo, and a network learns them as the mark of a kind of picture."""


@lru_cache(maxsize=4)
def order_of_epoch(seed: int, epoch: int, count: int) -> np.ndarray:
    """In which order an epoch goes through `count` faces; a batch may lie across two epochs."""
    return np.random.default_rng((seed, epoch)).permutation(count)


class PhotographedFaces:
    """Faces of a store in square crops of `size` pixels, in another order each time they come round.

    Where they are augmented, a face's place in that order says how.
    """

    def __init__(
        self, store: FaceStore, model: MorphableModel, *, size: int, seed: int, augment: bool, jitter: float = 1.0
    ) -> None:
        if len(store) == 0:
            raise ConfigError(f"the store {store.address} has no faces in this split; prepare more photos.")
        self.store, self.size, self.seed, self.augment, self.jitter = store, size, seed, augment, jitter
        self._mirror_mesh = mirror_mesh(model)
        self._mirror_landmarks = torch.tensor(MIRROR_LANDMARKS)

    def batch(self, numbers: Sequence[int]) -> FaceBatch:
        """The faces at these places of the order, which goes through the store again and again."""
        return join_batches([self._face(number) for number in numbers])

    def _face(self, number: int) -> FaceBatch:
        epoch, place = divmod(number, len(self.store))
        index = int(order_of_epoch(self.seed, epoch, len(self.store))[place])
        rng = np.random.default_rng((self.seed, 1, number))
        record = self.store[index]
        if self.augment and rng.random() < 0.5:
            record = self._mirrored(record)
        return self._cropped(record, rng, name=self.store.faces[index].photo)

    def _mirrored(self, record: FaceRecord) -> FaceRecord:
        size = record.crop.shape[-1]
        return FaceRecord(
            crop=record.crop.flip(-1),
            mask=record.mask.flip(-1),
            landmarks68_px=mirrored_points(record.landmarks68_px, self._mirror_landmarks, side=size),
            mesh_px=mirrored_points(record.mesh_px, self._mirror_mesh, side=size),
            focal_px=record.focal_px,
            centre_px=(size - record.centre_px[0], record.centre_px[1]),
            exposure=record.exposure,
        )

    def _cropped(self, record: FaceRecord, rng: np.random.Generator, *, name: str) -> FaceBatch:
        crop = self._window(record.mesh_px, rng)
        both = torch.cat([record.crop, record.mask[None]])[None]
        sampled = sample_affine(both, crop.photo_from_crop[None].float(), size=(self.size, self.size))[0]
        mesh, landmarks = crop.to_crop(record.mesh_px), crop.to_crop(record.landmarks68_px)
        picture, mask = sampled[:3], sampled[3]
        if self.augment:
            frame = FaceFrame.of(mesh, self.size)
            if rng.random() < ELSEWHERE_SHARE:
                picture = uneven_light(rng, elsewhere(rng, picture, frame))
            if rng.random() < COVER_SHARE:
                for cover in covers(rng, frame):
                    picture = torch.lerp(picture, cover.colours, cover.opacity)
                    mask = mask * (1 - cover.opacity)
            picture = photograph(rng, picture)
        centre = crop.to_crop(torch.tensor([record.centre_px]))
        camera = Camera(torch.tensor([record.focal_px / crop.scale]), centre.float(), image_size=(self.size, self.size))
        return FaceBatch(picture[None], mask[None], camera, landmarks[None], mesh[None], mesh[None], None, (name,))

    def _window(self, mesh_px: Float[Tensor, "468 2"], rng: np.random.Generator) -> Crop:
        """The face crop, in augmentation of the turned face and not quite in place."""
        angle = float(rng.normal(0, TURN_RAD)) if self.augment else 0.0
        turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        turned = mesh_px @ turn  # in axes that lie along the window's
        low, high = turned.amin(0), turned.amax(0)
        side = float((high - low).max()) * FACE_CROP_SCALE
        middle = (low + high) / 2
        if self.augment:
            side *= math.exp(rng.normal(0, 1) * ZOOM * self.jitter)
            middle = middle + torch.from_numpy(rng.normal(0, 1, 2).astype(np.float32)) * (SHIFT * self.jitter * side)
        middle = turn @ middle
        return Crop.around((float(middle[0]), float(middle[1])), side, size=self.size, angle=angle)


@dataclass(frozen=True)
class Part:
    """Which part of every batch a process makes."""

    rank: int = 0
    processes: int = 1


@runtime_checkable
class DrawnFaces(Protocol):
    """A stream of drawn faces."""

    def batch(self, numbers: Sequence[int]) -> FaceBatch:
        """The faces with these numbers, with their truth."""
        ...


class FaceSource:
    """Batches of photographed and drawn faces; either may be left out."""

    def __init__(
        self,
        photographed: PhotographedFaces | None,
        drawn: DrawnFaces | None,
        *,
        batch_size: int,
        drawn_share: float,
    ) -> None:
        drawn_count = round(batch_size * drawn_share)
        self.counts = (batch_size - drawn_count, drawn_count)
        self.photographed, self.drawn = photographed, drawn
        if self.counts[0] and photographed is None:
            raise ConfigError("data.synthetic_share below 1 needs photos: give a store with --data.")

    def batch(self, step: int, part: Part) -> FaceBatch:
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
    def __init__(self, source: FaceSource, part: Part) -> None:
        self.source, self.part = source, part

    def __getitem__(self, step: int) -> FaceBatch | MienError:
        try:
            return self.source.batch(step, self.part)
        except MienError as error:  # raised in a worker it would come out with twenty lines of traceback as its message
            return error


def stream(source: FaceSource, steps: range, *, part: Part, workers: int) -> Iterator[FaceBatch]:
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


def resized(batch: FaceBatch, size: int) -> FaceBatch:
    """The same faces in crops of another size."""
    if batch.images.shape[-1] == size:
        return batch
    factor = size / batch.images.shape[-1]
    both = torch.cat([batch.images, batch.mask[:, None]], dim=1)
    both = F.interpolate(both, size=(size, size), mode="bilinear", align_corners=False, antialias=factor < 1)
    return replace(
        batch,
        images=both[:, :3],
        mask=both[:, 3],
        camera=batch.camera.resized(size),
        landmarks68_px=batch.landmarks68_px * factor,
        mesh_px=batch.mesh_px * factor,
        found_px=batch.found_px * factor,
    )
