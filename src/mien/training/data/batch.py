"""A batch of face crops with what is known about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch.nn import functional as F

from mien.camera import Camera
from mien.morphable.landmark_tables import IBUG_MIRROR
from mien.morphable.symmetry import Mirror, mirrored_camera, mirrored_points
from mien.networks.crop_space import CropSpaceParameters
from mien.texture import DetailMaps
from mien.typing import Float, Tensor

TENSORS = ("images", "mask", "landmarks68_px", "gt_px", "detected_px")
"""Fields that are tensors with one row per face."""


@dataclass(frozen=True)
class FaceBatch:
    """Square crops as `face_crop` cuts them, photo faces first, then synthetic faces.

    The order decides which rows have ground truth: `gt` has one row per synthetic face, and these are the last faces of
    the batch (`gt_rows`). `maps` has one row per face with known detail maps, and these are the last of those
    (`map_rows`). `coarse` has one row per photo face, or is None. Because these batch axes differ in length, this class
    is no `mien.batched.Batched`.

    Raises:
        ValueError: `gt` has more rows than there are crops, or `maps` more than `gt`.
    """

    images: Float[Tensor, "B 3 S S"]
    """RGB in [0, 1]."""
    mask: Float[Tensor, "B S S"]
    """Confidence that a pixel shows the face's skin, 0 to 1."""
    camera: Camera
    """The camera of each crop: it projects the face into the pixels of the crop."""
    landmarks68_px: Float[Tensor, "B 68 2"]
    """The 68 landmarks: ground truth of synthetic faces, detected in photos."""
    gt_px: Float[Tensor, "B 468 2"]
    """The 468 points: ground truth of synthetic faces, detected in photos."""
    detected_px: Float[Tensor, "B 468 2"]
    """The 468 points as the detector finds them, the only ones that a network may see; equal to `gt_px` where no
    detector ran."""
    gt: CropSpaceParameters | None
    """Ground truth of the last faces of the batch; None for a batch of photos."""
    names: tuple[str, ...]
    """One name per face, for messages and reports."""
    maps: DetailMaps | None = None
    """Ground-truth detail maps of the last faces of the batch; None if none are known."""
    landmark_fits: CropSpaceParameters | None = None
    """The faces fitted to their points alone, where a refiner may start; None unless all faces have such a fit."""
    coarse: CropSpaceParameters | None = None
    """Coarse reconstructions of the photo faces, made from their crops in the store; None if none are kept."""
    people: tuple[str, ...] = ()
    """Who each face is; "" for a face that belongs to no person with several photos. Empty if no face does."""

    def __post_init__(self) -> None:
        faces, gts, maps = len(self.images), self._gt_count, self._map_count
        if gts > faces or maps > gts:
            raise ValueError(
                f"a batch of {faces} crops cannot have {gts} rows of ground truth and {maps} detail maps; the last "
                "faces have ground truth, and of these the last have maps."
            )

    @property
    def _gt_count(self) -> int:
        return 0 if self.gt is None else len(self.gt.identity)

    @property
    def _map_count(self) -> int:
        return 0 if self.maps is None else len(self.maps.displacement)

    @property
    def photo_count(self) -> int:
        """Number of photo faces, which come first and have no ground truth."""
        return len(self.images) - self._gt_count

    @property
    def gt_rows(self) -> slice:
        """The synthetic faces: row k of `gt` belongs to row k of this slice of the batch."""
        return slice(self.photo_count, len(self.images))

    @property
    def map_rows(self) -> slice:
        """The faces with known maps: row k of `maps` belongs to row k of this slice of the batch."""
        return slice(len(self.images) - self._map_count, len(self.images))

    def photos(self) -> FaceBatch:
        """The photo faces alone."""
        return self.first(self.photo_count)

    def first(self, count: int) -> FaceBatch:
        """The first faces as a batch, each with its ground truth and maps if it has them."""
        if count >= len(self.images):
            return self
        return join_batches([self.face(number) for number in range(count)])

    def to(self, device: torch.device) -> FaceBatch:
        """The same batch on a device."""
        moved = {name: getattr(self, name).to(device) for name in TENSORS}
        gt = None if self.gt is None else self.gt.to(device)
        maps = None if self.maps is None else self.maps.to(device)
        fits = None if self.landmark_fits is None else self.landmark_fits.to(device)
        coarse = None if self.coarse is None else self.coarse.to(device)
        return replace(
            self, **moved, camera=self.camera.to(device), gt=gt, maps=maps, landmark_fits=fits, coarse=coarse
        )

    def face(self, number: int) -> FaceBatch:
        """One face as a batch of its own, copied so that it does not keep the whole batch in memory."""
        index = slice(number, number + 1)
        tensors = {name: getattr(self, name)[index].clone() for name in TENSORS}
        gt_row = number - self.gt_rows.start
        gt = None if self.gt is None or gt_row < 0 else self.gt[gt_row : gt_row + 1]
        map_row = number - self.map_rows.start
        maps = None
        if self.maps is not None and map_row >= 0:
            part = self.maps[map_row : map_row + 1]
            maps = DetailMaps(part.texture_offset.clone(), part.displacement.clone())
        fits = None if self.landmark_fits is None else self.landmark_fits[index]
        coarse = None if self.coarse is None or number >= self.photo_count else self.coarse[index]
        return FaceBatch(
            **tensors,
            camera=self.camera[index],
            gt=gt,
            names=self.names[index],
            maps=maps,
            landmark_fits=fits,
            coarse=coarse,
            people=self.people[index],
        )

    def mirrored(self, mirror: Mirror) -> FaceBatch:
        """The mirror images of the faces, with mirrored points, camera and ground truth.

        Args:
            mirror: The mirror of the face model (`Mirror.of`).

        Raises:
            ValueError: The batch has detail maps, which are not mirrored here.
        """
        if self.maps is not None:
            raise ValueError("a batch with detail maps cannot be mirrored; remove its maps first.")
        side = self.images.shape[-1]
        return replace(
            self,
            images=self.images.flip(-1),
            mask=self.mask.flip(-1),
            camera=mirrored_camera(self.camera),
            landmarks68_px=mirrored_points(self.landmarks68_px, torch.tensor(IBUG_MIRROR), side=side),
            gt_px=mirrored_points(self.gt_px, mirror.mesh, side=side),
            detected_px=mirrored_points(self.detected_px, mirror.mesh, side=side),
            gt=None if self.gt is None else self.gt.mirrored(mirror),
            landmark_fits=None if self.landmark_fits is None else self.landmark_fits.mirrored(mirror),
            coarse=None if self.coarse is None else self.coarse.mirrored(mirror),
        )


def join_batches(batches: Sequence[FaceBatch]) -> FaceBatch:
    """One batch of several with crops of one size.

    Args:
        batches: At least one batch. Batches of photos come first, then batches with ground truth, and of these the ones
            with maps last, so that rows of `gt` and `maps` keep belonging to the last faces.

    Raises:
        ValueError: The batches come in another order.
    """
    for before, after in pairwise(batches):
        if (before.gt is not None and after.photo_count) or (before.maps is not None and after.map_rows.start):
            raise ValueError(
                f"{after.names[0]} has less ground truth than {before.names[-1]} before it; join photo faces first, "
                "then faces with ground truth, then faces with maps."
            )
    gts = [batch.gt for batch in batches if batch.gt is not None]
    maps = [batch.maps for batch in batches if batch.maps is not None]
    fits = [batch.landmark_fits for batch in batches if batch.landmark_fits is not None]
    coarse = [batch.coarse for batch in batches if batch.coarse is not None]
    photos = sum(batch.photo_count for batch in batches)
    tensors = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in TENSORS}
    camera = Camera.join([batch.camera for batch in batches])
    return FaceBatch(
        **tensors,
        camera=camera,
        gt=CropSpaceParameters.join(gts) if gts else None,
        names=tuple(name for batch in batches for name in batch.names),
        maps=DetailMaps.join(maps) if maps else None,
        landmark_fits=CropSpaceParameters.join(fits) if len(fits) == len(batches) else None,
        coarse=CropSpaceParameters.join(coarse) if coarse and sum(map(len, coarse)) == photos else None,
        people=_joined_people(batches),
    )


def _joined_people(batches: Sequence[FaceBatch]) -> tuple[str, ...]:
    if not any(batch.people for batch in batches):
        return ()
    return tuple(person for batch in batches for person in batch.people or ("",) * len(batch.images))


def resized(batch: FaceBatch, size: int) -> FaceBatch:
    """The same faces in crops of `size` × `size` pixels; points and cameras are scaled, maps stay."""
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
        gt_px=batch.gt_px * factor,
        detected_px=batch.detected_px * factor,
    )
