"""Photographed faces of a store, augmented."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from mien.camera import Camera
from mien.errors import ConfigError
from mien.morphable import MorphableModel
from mien.morphable.landmark_tables import IBUG_MIRROR
from mien.morphable.symmetry import mirror_mesh, mirrored_points
from mien.perception import Crop
from mien.perception.crops import FACE_CROP_SCALE, sample_affine
from mien.training.data.augment import FaceFrame, covers, elsewhere, uneven_light
from mien.training.data.batch import FaceBatch, join_batches
from mien.training.data.camera_simulation import simulate_camera
from mien.training.data.store import FaceRecord, FaceStore
from mien.typing import Float, Tensor

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


class PhotoFaces:
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
        self._mirror_landmarks = torch.tensor(IBUG_MIRROR)

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
            landmarks468_px=mirrored_points(record.landmarks468_px, self._mirror_mesh, side=size),
            focal_px=record.focal_px,
            centre_px=(size - record.centre_px[0], record.centre_px[1]),
            exposure=record.exposure,
        )

    def _cropped(self, record: FaceRecord, rng: np.random.Generator, *, name: str) -> FaceBatch:
        crop = self._window(record.landmarks468_px, rng)
        both = torch.cat([record.crop, record.mask[None]])[None]
        sampled = sample_affine(both, crop.photo_from_crop[None].float(), size=(self.size, self.size))[0]
        mesh, landmarks = crop.to_crop(record.landmarks468_px), crop.to_crop(record.landmarks68_px)
        picture, mask = sampled[:3], sampled[3]
        if self.augment:
            frame = FaceFrame.of(mesh, self.size)
            if rng.random() < ELSEWHERE_SHARE:
                picture = uneven_light(rng, elsewhere(rng, picture, frame))
            if rng.random() < COVER_SHARE:
                for cover in covers(rng, frame):
                    picture = torch.lerp(picture, cover.colours, cover.opacity)
                    mask = mask * (1 - cover.opacity)
            picture = simulate_camera(rng, picture)
        centre = crop.to_crop(torch.tensor([record.centre_px]))
        camera = Camera(torch.tensor([record.focal_px / crop.scale]), centre.float(), image_size=(self.size, self.size))
        return FaceBatch(picture[None], mask[None], camera, landmarks[None], mesh[None], mesh[None], None, (name,))

    def _window(self, landmarks468_px: Float[Tensor, "468 2"], rng: np.random.Generator) -> Crop:
        """The face crop, in augmentation of the turned face and not quite in place."""
        angle = float(rng.normal(0, TURN_RAD)) if self.augment else 0.0
        turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        turned = landmarks468_px @ turn  # in axes that lie along the window's
        low, high = turned.amin(0), turned.amax(0)
        side = float((high - low).max()) * FACE_CROP_SCALE
        middle = (low + high) / 2
        if self.augment:
            side *= math.exp(rng.normal(0, 1) * ZOOM * self.jitter)
            middle = middle + torch.from_numpy(rng.normal(0, 1, 2).astype(np.float32)) * (SHIFT * self.jitter * side)
        middle = turn @ middle
        return Crop.around((float(middle[0]), float(middle[1])), side, size=self.size, angle=angle)
