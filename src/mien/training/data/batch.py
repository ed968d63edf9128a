"""A batch of face crops with what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch.nn import functional as F

from mien.batched import SHARED, map_tensors
from mien.camera import Camera
from mien.morphable.landmark_tables import IBUG_MIRROR
from mien.morphable.symmetry import Mirror, mirrored_camera, mirrored_points
from mien.networks.crop_space import CropSpaceParameters
from mien.texture import DetailMaps
from mien.typing import Float, Tensor

TENSORS = ("images", "mask", "landmarks68_px", "gt_px", "detected_px")


@dataclass(frozen=True)
class FaceBatch:
    """Square crops as `face_crop` cuts them; photographed faces first, then drawn ones with their truth."""

    images: Float[Tensor, "B 3 S S"]
    mask: Float[Tensor, "B S S"]
    """How sure it is that a pixel shows the face's skin, 0 to 1."""
    camera: Camera
    """The camera seen through each crop."""
    landmarks68_px: Float[Tensor, "B 68 2"]
    gt_px: Float[Tensor, "B 468 2"]
    """Where the points are: true of drawn faces, found of photographed ones."""
    detected_px: Float[Tensor, "B 468 2"]
    """Where perception finds them, which is all that a network may know; `gt_px` where it was not asked."""
    gt: CropSpaceParameters | None
    """What is true of the last faces of the batch; None where no face is drawn."""
    names: tuple[str, ...] = field(metadata=SHARED)
    maps: DetailMaps | None = None
    """The true maps of the last faces of the batch; None where none are known."""

    @property
    def photographed(self) -> int:
        """How many faces of the batch come without truth."""
        return len(self.images) - (0 if self.gt is None else len(self.gt.identity))

    def photos(self) -> FaceBatch:
        """The photographed faces alone."""
        return self.first(self.photographed)

    def first(self, count: int) -> FaceBatch:
        """The leading faces as a batch, with what is true of those of them that are drawn."""
        if count >= len(self.images):
            return self
        return join_batches([self.face(number) for number in range(count)])

    def to(self, device: torch.device) -> FaceBatch:
        """The same batch on a device."""
        return map_tensors(self, lambda tensor: tensor.to(device))

    def face(self, number: int) -> FaceBatch:
        """One face as a batch, in memory of its own."""
        index = slice(number, number + 1)
        tensors = {name: getattr(self, name)[index].clone() for name in TENSORS}
        known = number - self.photographed
        gt = None if self.gt is None or known < 0 else self.gt[known : known + 1]
        maps = self._maps_of(number)
        return FaceBatch(**tensors, camera=self.camera[index], gt=gt, names=self.names[index], maps=maps)

    def mirrored(self, mirror: Mirror) -> FaceBatch:
        """The faces as a mirror shows them; ValueError for faces with maps."""
        if self.maps is not None:
            raise ValueError("the maps of a face are not mirrored")
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
        )

    def _maps_of(self, number: int) -> DetailMaps | None:
        known = number - len(self.images) + (0 if self.maps is None else len(self.maps.displacement))
        if self.maps is None or known < 0:
            return None
        return map_tensors(self.maps[known : known + 1], torch.clone)


def join_batches(batches: Sequence[FaceBatch]) -> FaceBatch:
    """One batch of several with crops of one size; those with truth must come last, and of them those with maps."""
    maps = [batch.maps for batch in batches if batch.maps is not None]
    truths = [batch.gt for batch in batches if batch.gt is not None]
    tensors = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in TENSORS}
    names = tuple(name for batch in batches for name in batch.names)
    return FaceBatch(
        **tensors,
        camera=Camera.join([batch.camera for batch in batches]),
        gt=CropSpaceParameters.join(truths) if truths else None,
        names=names,
        maps=DetailMaps.join(maps) if maps else None,
    )


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
        gt_px=batch.gt_px * factor,
        detected_px=batch.detected_px * factor,
    )
