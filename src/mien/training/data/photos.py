"""Photo faces of a store as training crops, shuffled per epoch and augmented."""

from __future__ import annotations

import copy
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from mien.camera import Camera
from mien.errors import ConfigError
from mien.morphable import FaceCoefficients, MorphableModel
from mien.morphable.landmark_tables import IBUG_MIRROR
from mien.morphable.symmetry import Mirror, mirror_mesh, mirrored_camera, mirrored_points
from mien.networks.crop_space import CropSpaceParameters, mean_face_frame, to_crop_space
from mien.perception import Crop
from mien.perception.crops import FACE_CROP_SCALE, sample_affine
from mien.training.data.augment import FaceFrame, replace_background, sample_occluders, uneven_light
from mien.training.data.batch import FaceBatch, join_batches
from mien.training.data.camera_simulation import simulate_camera
from mien.training.data.fits import StoredFit
from mien.training.data.store import FaceRecord, FaceStore
from mien.typing import Float, Tensor

ROLL_STD_RAD = 0.3
"""Standard deviation of the crop's rotation in the image plane."""
SHIFT_STD = 0.03
"""Standard deviation of the crop's position, in sides of the crop."""
LOG_SIZE_STD = 0.05
"""Standard deviation of the logarithm of the crop's side."""
OCCLUDED_SHARE = 0.3
"""Share of the photo faces that get occluders."""
NEW_BACKGROUND_SHARE = 0.6
"""Share of the photo faces with another background and uneven light. Studio walls and lamps occur in no other photo,
and a network would learn them as the sign of one kind of image."""


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch visits `count` faces, a permutation; a batch may contain the end of one epoch and the
    start of the next."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def person_order(seed: int, epoch: int, people: Sequence[str], *, together: int) -> np.ndarray:
    """The order of an epoch in which up to `together` faces of a person follow one another.

    Args:
        seed: Decides the order.
        epoch: Number of the epoch.
        people: Who each face is.
        together: Largest number of faces of a person in one run.

    Returns:
        A permutation of the faces. Runs of `together` faces come first, each at a multiple of `together`; then the
        shorter ones.
    """
    open_runs: dict[str, list[int]] = {}
    runs: list[list[int]] = []
    for face in epoch_order(seed, epoch, len(people)):
        person = people[int(face)]
        if len(open_runs.get(person, ())) in {0, together}:
            open_runs[person] = []
            runs.append(open_runs[person])
        open_runs[person].append(int(face))
    return np.array([face for run in sorted(runs, key=lambda run: len(run) < together) for face in run])


class PhotoFaces:
    """An endless stream of the faces of a store in square crops, in another order in every epoch.

    Args:
        store: The faces of one split.
        model: Face model, whose mirror pairs the points of mirrored faces.
        size: Side of the crops, pixels.
        seed: Decides order and augmentation. A crop is a function of the seed and its number in the stream.
        augment: Mirror half of the faces, move and turn the crops, change background, light, occluders and camera.
        jitter: Multiplies the random shift and size of augmented crops.
        fits: Fits by the key of the face, see `load_fits`: the whole fit is the ground truth of the face. Faces without
            one are left out of `store`.
        together: Number of faces of a person that follow one another in the stream. Above 1, all faces of a person are
            mirrored in an epoch or all are not, since a mirrored face is another person.

    Attributes:
        coarse: Kept coarse reconstructions by the key of the face (`mien.training.coarse_cache`), under the camera of
            the stored crop; None for none. They are moved into each crop.
        symmetric: Whether faces that are known can be mirrored.

    Raises:
        ConfigError: The store has no faces in this split, or none with a fit; or the model is not symmetric, and there
            are fits.
    """

    def __init__(
        self,
        store: FaceStore,
        model: MorphableModel,
        *,
        size: int,
        seed: int,
        augment: bool,
        jitter: float = 1.0,
        fits: Mapping[str, StoredFit] | None = None,
        together: int = 1,
    ) -> None:
        if fits is not None:
            store.keep(fits)
        if len(store) == 0:
            raise ConfigError(f"the store {store.address} has no faces in this split; prepare more photos.")
        self.store, self.size, self.seed, self.augment, self.jitter = store, size, seed, augment, jitter
        self.fits, self._sides_per_m, self._mirror = fits, mean_face_frame(model).sides_per_m, Mirror.of(model)
        if fits is not None and self._mirror is None:
            raise ConfigError(
                f"data.fits needs a symmetric face model, and {model.name} is not; set data.fits = false."
            )
        self.coarse: Mapping[str, FaceCoefficients] | None = None
        self.together = together
        self._people = [row.identity for row in store.faces]
        self._order = lru_cache(maxsize=4)(self._order_of)
        self._mirror_mesh = mirror_mesh(model)
        self._mirror_landmarks = torch.tensor(IBUG_MIRROR)
        self.symmetric = self._mirror is not None

    def plain(self, indices: Sequence[int]) -> FaceBatch:
        """The faces with these numbers in the store, without augmentation."""
        unchanged, rng = copy.copy(self), np.random.default_rng(0)
        unchanged.augment = False
        rows = self.store.faces
        return join_batches([unchanged._cropped(self.store[k], rng, name=rows[k].photo)[1] for k in indices])

    def batch(self, numbers: Sequence[int]) -> FaceBatch:
        """The faces with these numbers in the stream; number n belongs to epoch n // len(store)."""
        return join_batches([self._face(number) for number in numbers])

    def _face(self, number: int) -> FaceBatch:
        epoch, position = divmod(number, len(self.store))
        index = int(self._order(epoch)[position])
        rng = np.random.default_rng((self.seed, 1, number))
        record, row = self.store[index], self.store.faces[index]
        mirrored = self.augment and rng.random() < 0.5
        if self.together > 1:
            mirrored = self.augment and self._mirrors_person(row.identity, epoch)
        crop, face = self._cropped(self._mirrored(record) if mirrored else record, rng, name=row.photo)
        if self.together > 1:
            face = replace(face, people=(row.identity,))
        move = functools.partial(self._moved, record=record, crop=crop, camera=face.camera, mirrored=mirrored)
        if self.coarse is not None:
            face = replace(face, coarse=move(self.coarse[row.key]))
        if self.fits is None:
            return face
        fitted = self.fits[row.key]
        return replace(face, gt=move(fitted.full), landmark_fits=move(fitted.landmarks))

    def _order_of(self, epoch: int) -> np.ndarray:
        if self.together == 1:
            return epoch_order(self.seed, epoch, len(self.store))
        return person_order(self.seed, epoch, self._people, together=self.together)

    def _mirrors_person(self, person: str, epoch: int) -> bool:
        digest = hashlib.sha256(f"{self.seed}\t{epoch}\t{person}".encode()).digest()
        return digest[0] % 2 == 1

    def _moved(
        self, face: FaceCoefficients, *, record: FaceRecord, crop: Crop, camera: Camera, mirrored: bool
    ) -> CropSpaceParameters:
        """A fit of the stored crop as a face in a training crop."""
        side = record.crop.shape[-1]
        stored = Camera(torch.tensor([record.focal_px]), torch.tensor([record.centre_px]), image_size=(side, side))
        if mirrored and self._mirror is not None:
            moved = to_crop_space(face, stored, sides_per_m=self._sides_per_m).mirrored(self._mirror)
            face = moved.coefficients(mirrored_camera(stored))
        turned = face.rolled(torch.tensor([-crop.angle]))
        return to_crop_space(turned, camera, sides_per_m=self._sides_per_m)

    def _mirrored(self, record: FaceRecord) -> FaceRecord:
        size = record.crop.shape[-1]
        return replace(
            record,
            crop=record.crop.flip(-1),
            mask=record.mask.flip(-1),
            landmarks68_px=mirrored_points(record.landmarks68_px, self._mirror_landmarks, side=size),
            landmarks468_px=mirrored_points(record.landmarks468_px, self._mirror_mesh, side=size),
            centre_px=(size - record.centre_px[0], record.centre_px[1]),
        )

    def _cropped(self, record: FaceRecord, rng: np.random.Generator, *, name: str) -> tuple[Crop, FaceBatch]:
        crop = self._window(record.landmarks468_px, rng)
        both = torch.cat([record.crop, record.mask[None]])[None]
        sampled = sample_affine(both, crop.photo_from_crop[None].float(), size=(self.size, self.size))[0]
        points, landmarks = crop.to_crop(record.landmarks468_px), crop.to_crop(record.landmarks68_px)
        image, mask = sampled[:3], sampled[3]
        if self.augment:
            image, mask = self._augmented(image, mask, points, rng)
        centre = crop.to_crop(torch.tensor([record.centre_px]))
        camera = Camera(torch.tensor([record.focal_px / crop.scale]), centre.float(), image_size=(self.size, self.size))
        face = FaceBatch(image[None], mask[None], camera, landmarks[None], points[None], points[None], None, (name,))
        return crop, face

    def _augmented(
        self,
        image: Float[Tensor, "3 S S"],
        mask: Float[Tensor, "S S"],
        landmarks468_px: Float[Tensor, "468 2"],
        rng: np.random.Generator,
    ) -> tuple[Float[Tensor, "3 S S"], Float[Tensor, "S S"]]:
        frame = FaceFrame.of(landmarks468_px, self.size)
        if rng.random() < NEW_BACKGROUND_SHARE:
            image = uneven_light(rng, replace_background(rng, image, frame))
        if rng.random() < OCCLUDED_SHARE:
            for occluder in sample_occluders(rng, frame):
                image, mask = occluder.over(image, mask)
        return simulate_camera(rng, image), mask

    def _window(self, landmarks468_px: Float[Tensor, "468 2"], rng: np.random.Generator) -> Crop:
        """The face crop; with augmentation it is turned, shifted and scaled at random."""
        angle = float(rng.normal(0, ROLL_STD_RAD)) if self.augment else 0.0
        rotation = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        turned = landmarks468_px @ rotation  # in the axes of the turned crop
        low, high = turned.amin(0), turned.amax(0)
        side = float((high - low).max()) * FACE_CROP_SCALE
        middle = (low + high) / 2
        if self.augment:
            side *= math.exp(rng.normal(0, 1) * LOG_SIZE_STD * self.jitter)
            shift = torch.from_numpy(rng.normal(0, 1, 2).astype(np.float32)) * (SHIFT_STD * self.jitter * side)
            middle = middle + shift
        middle = rotation @ middle
        return Crop.around((float(middle[0]), float(middle[1])), side, size=self.size, angle=angle)
