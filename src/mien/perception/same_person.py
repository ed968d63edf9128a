"""Which of the faces in several photos belong to one person."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mien.perception.recognition import SAME_PERSON_DISTANCE
from mien.typing import Float, Tensor


def find_person(features: Sequence[Float[Tensor, "_ 128"]]) -> list[int | None]:
    """Choose the face of one person in each photo.

    The person is the one in most photos. If no person is in more than half of them, it is the first face of the first
    photo that has one. Starting from one face, a photo joins if one of its faces is as near to a face that joined
    before as two photos of a person are; so a series of turns from the front to the side stays together.

    Args:
        features: Recognition features of the faces of each photo, the most prominent first; a photo can have no face.

    Returns:
        Number of the person's face in each photo; None for a photo that does not show the person.
    """
    clusters = [
        (photo, _grown(features, photo, face)) for photo, faces in enumerate(features) for face in range(len(faces))
    ]
    if not clusters:
        return [None] * len(features)
    sizes = [sum(face is not None for face in cluster) for _, cluster in clusters]
    if 2 * max(sizes) <= len(features):
        return clusters[0][1]
    largest = [cluster for (_, cluster), size in zip(clusters, sizes, strict=True) if size == max(sizes)]
    return min(largest, key=lambda cluster: _spread(features, cluster))


def _grown(features: Sequence[Float[Tensor, "_ 128"]], photo: int, face: int) -> list[int | None]:
    """The cluster around one face: the nearest face of all other photos joins first."""
    chosen: list[int | None] = [None] * len(features)
    nearest = [torch.full((len(faces),), torch.inf) for faces in features]
    while True:
        chosen[photo] = face
        for k, faces in enumerate(features):
            if chosen[k] is None and len(faces):
                nearest[k] = torch.minimum(nearest[k], (faces - features[photo][face]).norm(dim=1).cpu())
        open_photos = [k for k, faces in enumerate(features) if chosen[k] is None and len(faces)]
        if not open_photos:
            return chosen
        photo = min(open_photos, key=lambda k: float(nearest[k].min()))
        if float(nearest[photo].min()) > SAME_PERSON_DISTANCE:
            return chosen
        face = int(nearest[photo].argmin())


def _spread(features: Sequence[Float[Tensor, "_ 128"]], cluster: Sequence[int | None]) -> float:
    """Mean distance of the features of a cluster from their mean."""
    members = torch.stack([faces[face] for faces, face in zip(features, cluster, strict=True) if face is not None])
    return float((members - members.mean(0)).norm(dim=1).mean())
