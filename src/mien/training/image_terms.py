"""Losses in image space that both networks are trained with: eq. 5 and 6."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mien.fitting.photometric import recognition_features
from mien.losses import identity_loss, landmark_loss
from mien.morphable import MorphableModel, landmark_vertices
from mien.perception import IdentityNetwork
from mien.rendering import RenderOutput
from mien.training.data.batch import FaceBatch
from mien.typing import Float, Tensor


def landmarks_of_vertices(
    model: MorphableModel, vertices_px: Float[Tensor, "B V 2"], rotation: Float[Tensor, "B 3 3"]
) -> Float[Tensor, "B 68 2"]:
    """Select the model's 68 landmarks, with contour landmarks on the visible outline; differentiable in `vertices_px`.

    Args:
        model: Face model with 68 landmarks.
        vertices_px: Projected vertices, pixels.
        rotation: Rotation matrices of the heads.
    """
    chosen = landmark_vertices(model, vertices_px.detach(), rotation.detach())
    return vertices_px.gather(1, chosen[..., None].expand(-1, -1, 2))


def landmark_term(landmarks_px: Float[Tensor, "B 68 2"], batch: FaceBatch) -> Float[Tensor, ""]:
    """Eq. 5 in halves of the crop's side, all landmarks with equal weight; differentiable.

    Args:
        landmarks_px: Landmarks of the reconstruction, pixels of the batch's crops.
        batch: Faces with their target landmarks.
    """
    unit = batch.images.shape[-1] / 2
    equal = torch.ones_like(landmarks_px[..., 0])
    return landmark_loss(landmarks_px / unit, batch.landmarks68_px / unit, weights=equal)


def identity_term(
    recognition: IdentityNetwork,
    rendered: RenderOutput,
    *,
    images: Float[Tensor, "B 3 S S"],
    mask: Float[Tensor, "B S S"],
    landmarks68_px: Float[Tensor, "B 68 2"],
    photo_features: Float[Tensor, "B 128"] | None = None,
) -> Float[Tensor, ""]:
    """Eq. 6: distance between the features of photo and rendering; differentiable in the rendering.

    Args:
        recognition: Network for face recognition.
        rendered: Rendering of the reconstruction.
        images: Photos, RGB in [0, 1].
        mask: Confidence that a pixel shows skin.
        landmarks68_px: Target landmarks, which place the recognition network's crop.
        photo_features: Features of the photos; None to compute them.
    """
    known = photo_features
    if known is None:
        with torch.no_grad():
            known = recognition(recognition.crop(images, landmarks68_px))
    features = recognition_features(recognition, rendered, photos=images, mask=mask, landmarks68_px=landmarks68_px)
    return identity_loss(features, known)


class KeptFeatures:
    """Recognition features of photos that are the same in every epoch, computed in the first one: 0.5 kB per photo.

    Args:
        recognition: Network for face recognition.
    """

    def __init__(self, recognition: IdentityNetwork) -> None:
        self._recognition = recognition
        self._kept: dict[str, Float[Tensor, "128"]] = {}

    @torch.no_grad()
    def __call__(
        self, names: Sequence[str], images: Float[Tensor, "B 3 S S"], landmarks68_px: Float[Tensor, "B 68 2"]
    ) -> Float[Tensor, "B 128"]:
        """The features of photos. All of a batch are computed if one is missing, since sums depend on the batch size.

        Args:
            names: One name per photo, different for different photos.
            images: Photos, RGB in [0, 1].
            landmarks68_px: Target landmarks, which place the recognition network's crop.
        """
        if any(name not in self._kept for name in names):
            features = self._recognition(self._recognition.crop(images, landmarks68_px))
            self._kept |= dict(zip(names, features.unbind(), strict=True))
        return torch.stack([self._kept[name] for name in names])
