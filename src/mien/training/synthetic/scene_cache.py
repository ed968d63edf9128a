"""Drawn scenes, kept or drawn anew, and photographed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from mien.morphable import MorphableModel, landmark_vertices
from mien.networks.crop_space import mean_face_frame, to_crop_space
from mien.perception import FaceMesh, detect_landmarks468
from mien.training.data.augment import surrounded
from mien.training.data.batch import FaceBatch, join_batches, resized
from mien.training.data.camera_simulation import simulate_camera
from mien.training.synthetic.population import FaceSamples
from mien.typing import Float, Tensor

SHOWN, LOOKED_AT = 1, 3
"""Which chances a photograph is taken with: the one that is shown, or the one in which points are found."""


class SceneCache:
    """Photographs the scenes that `draw` makes from numbers; a photograph is a function of seed and number alone.

    With a `pool` there are only so many scenes, kept in memory in half precision (8 bytes a pixel of each, and 8 a
    texel of their maps); each is photographed anew, by another camera, whenever its turn comes. Pictures are brought
    to `size` pixels. With `mesh` a scene's points are found as perception finds them, once, in a photograph of their
    own at the size at which the scene is drawn.
    """

    def __init__(
        self,
        draw: Callable[[Sequence[int]], FaceBatch],
        *,
        size: int,
        seed: int,
        pool: int,
        mesh: FaceMesh | None,
    ) -> None:
        self._draw, self._size, self._seed, self._pool, self._mesh = draw, size, seed, pool, mesh
        self._final_model: dict[int, FaceBatch] = {}

    def batch(self, numbers: Sequence[int]) -> FaceBatch:
        """The faces with these numbers, as some camera shows them."""
        faces = [number % self._pool for number in numbers] if self._pool else list(numbers)
        missing = sorted(set(faces) - set(self._final_model))
        scenes = dict(zip(missing, _singles(self._scenes(missing)), strict=True)) if missing else {}
        if self._pool:
            scenes = {number: _in_precision(scene, torch.float16) for number, scene in scenes.items()}
            self._final_model |= scenes
        scenes |= self._final_model
        drawn = _in_precision(join_batches([scenes[face] for face in faces]), torch.float32)
        return replace(drawn, images=self._photographed(drawn.images, numbers, series=SHOWN))

    def _scenes(self, numbers: Sequence[int]) -> FaceBatch:
        drawn = self._draw(numbers)
        if self._mesh is not None:
            shots = self._photographed(drawn.images, numbers, series=LOOKED_AT)
            drawn = replace(drawn, detected_px=detect_landmarks468(self._mesh, shots, near_px=drawn.gt_px))
        return resized(drawn, self._size)

    def _photographed(
        self, images: Float[Tensor, "B 3 S S"], numbers: Sequence[int], *, series: int
    ) -> Float[Tensor, "B 3 S S"]:
        shots = [
            simulate_camera(np.random.default_rng((self._seed, series, number)), picture)
            for number, picture in zip(numbers, images, strict=True)
        ]
        return torch.stack(shots)


def composed(
    model: MorphableModel,
    sample_faces: FaceSamples,
    *,
    vertices_camera: Float[Tensor, "B V 3"],
    images: Float[Tensor, "B 3 S S"],
    coverage: Float[Tensor, "B S S"],
    names: tuple[str, ...],
) -> FaceBatch:
    """Drawn faces in their surroundings, with their points and their truth."""
    camera = sample_faces.camera
    vertices_px = camera.project(vertices_camera)
    landmarks468_px = camera.project(model.mediapipe_points(vertices_camera))
    scenes = [surrounded(rng, images[k], coverage[k], landmarks468_px[k]) for k, rng in enumerate(sample_faces.rngs)]
    landmarks = landmark_vertices(model, vertices_px, sample_faces.coefficients.pose.rotmat())
    return FaceBatch(
        images=torch.stack([picture for picture, _ in scenes]),
        mask=torch.stack([mask for _, mask in scenes]),
        camera=camera,
        landmarks68_px=vertices_px.gather(1, landmarks[..., None].expand(-1, -1, 2)),
        gt_px=landmarks468_px,
        detected_px=landmarks468_px,
        gt=to_crop_space(sample_faces.coefficients, camera, sides_per_m=mean_face_frame(model).sides_per_m),
        names=names,
    )


def _singles(batch: FaceBatch) -> list[FaceBatch]:
    """Each face as a batch of its own, with its own memory."""
    return [batch.face(k) for k in range(len(batch.images))]


def _in_precision(batch: FaceBatch, dtype: torch.dtype) -> FaceBatch:
    """The same batch with pictures and maps in another precision."""
    maps = None if batch.maps is None else batch.maps.to(dtype)
    return replace(batch, images=batch.images.to(dtype), mask=batch.mask.to(dtype), maps=maps)
