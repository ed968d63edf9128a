"""Removes the constant error of an encoder's identity on photos.

An encoder that learnt the shape of faces from renderings has a constant error on photos: the mesh network that finds
its points errs otherwise there. The mean of its differences to the fits of many photos shows this error, which is then
taken out of the bias of the identity head. Nothing else is learnt from the fits. So the prediction stays an estimate
whose errors are not those of the fit, see `mien.fitting.prediction`.
"""

from __future__ import annotations

import copy

import torch

from mien.networks import FaceEncoder
from mien.networks.crop_space import HEAD_UNITS
from mien.training.data.photos import PhotoFaces
from mien.typing import Float

BATCH = 32


@torch.no_grad()
def identity_differences(encoder: FaceEncoder, faces: PhotoFaces) -> Float[torch.Tensor, "N I"]:
    """Predicted minus fitted identity of every face.

    Args:
        encoder: The encoder.
        faces: Faces of photos with fits, without augmentation.
    """
    differences = []
    for first in range(0, len(faces.store), BATCH):
        batch = faces.batch(range(first, min(first + BATCH, len(faces.store))))
        if batch.gt is None:
            raise ValueError("the faces have no fits")
        found = encoder.encode(batch.images, batch.camera, landmarks468_px=batch.detected_px)
        differences.append(found.identity - batch.gt.identity)
    return torch.cat(differences)


@torch.no_grad()
def centred(encoder: FaceEncoder, differences: Float[torch.Tensor, "N I"]) -> FaceEncoder:
    """A copy of an encoder whose predicted identity is the former one minus the mean difference.

    Args:
        encoder: The encoder; it is not changed.
        differences: From `identity_differences`.
    """
    mean = differences.mean(0)
    if encoder.mirror is not None:
        # A crop and its mirror image are averaged, so that only a symmetric shift of the head has an effect.
        mean = (mean + mean @ encoder.mirror.identity) / 2
    result = copy.deepcopy(encoder)
    result.heads["identity"].get_parameter("bias").sub_(mean / HEAD_UNITS["identity"])
    return result
