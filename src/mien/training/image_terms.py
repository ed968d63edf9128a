"""Losses in image space that both networks are trained with: eq. 5 and 6."""

from __future__ import annotations

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
) -> Float[Tensor, ""]:
    """Eq. 6: distance between the features of photo and rendering; differentiable in the rendering.

    Args:
        recognition: Network for face recognition.
        rendered: Rendering of the reconstruction.
        images: Photos, RGB in [0, 1].
        mask: Confidence that a pixel shows skin.
        landmarks68_px: Target landmarks, which place the recognition network's crop.
    """
    with torch.no_grad():
        photo_features = recognition(recognition.crop(images, landmarks68_px))
    features = recognition_features(recognition, rendered, photos=images, mask=mask, landmarks68_px=landmarks68_px)
    return identity_loss(features, photo_features)
