"""Composes rendered faces into scenes, keeps scenes in memory, and simulates a camera for each use of a scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from mien.morphable import MorphableModel, landmark_vertices
from mien.networks.crop_space import mean_face_frame, to_crop_space
from mien.perception import FaceMesh, detect_landmarks468
from mien.training.data.augment import compose_scene
from mien.training.data.batch import FaceBatch, join_batches, resized
from mien.training.data.camera_simulation import simulate_camera
from mien.training.synthetic.population import FaceSamples
from mien.typing import Float, Tensor

IMAGE_SERIES, DETECTION_SERIES = 1, 3
"""Seeds of the camera simulation: of the image in the batch, and of the image in which points are detected."""


class SceneCache:
    """Turns scenes into batches, each image by a simulated camera; an image is a function of seed and number alone.

    Args:
        render: Makes the scenes with the given numbers.
        size: Side of the images in a batch, pixels; scenes of another size are resized.
        seed: Decides the simulated cameras.
        pool: Number of different scenes. They stay in memory in half precision (8 bytes per pixel, and 8 per texel of
            their maps), and each use gets another simulated camera. 0 renders every scene anew.
        mesh: Network that detects `detected_px`, once per scene, in an image of its own at the size of the scene.
    """

    def __init__(
        self,
        render: Callable[[Sequence[int]], FaceBatch],
        *,
        size: int,
        seed: int,
        pool: int,
        mesh: FaceMesh | None,
    ) -> None:
        self._render, self._size, self._seed, self._pool, self._mesh = render, size, seed, pool, mesh
        self._cached: dict[int, FaceBatch] = {}

    def batch(self, numbers: Sequence[int]) -> FaceBatch:
        """The faces with these numbers, as simulated cameras show them."""
        keys = [number % self._pool for number in numbers] if self._pool else list(numbers)
        missing = sorted(set(keys) - set(self._cached))
        scenes = dict(zip(missing, _split(self._make_scenes(missing)), strict=True)) if missing else {}
        if self._pool:
            scenes = {key: _cast(scene, torch.float16) for key, scene in scenes.items()}
            self._cached |= scenes
        scenes |= self._cached
        batch = _cast(join_batches([scenes[key] for key in keys]), torch.float32)
        return replace(batch, images=self._simulate_cameras(batch.images, numbers, series=IMAGE_SERIES))

    def _make_scenes(self, numbers: Sequence[int]) -> FaceBatch:
        scenes = self._render(numbers)
        if self._mesh is not None:
            images = self._simulate_cameras(scenes.images, numbers, series=DETECTION_SERIES)
            scenes = replace(scenes, detected_px=detect_landmarks468(self._mesh, images, near_px=scenes.gt_px))
        return resized(scenes, self._size)

    def _simulate_cameras(
        self, images: Float[Tensor, "B 3 S S"], numbers: Sequence[int], *, series: int
    ) -> Float[Tensor, "B 3 S S"]:
        simulated = [
            simulate_camera(np.random.default_rng((self._seed, series, number)), image)
            for number, image in zip(numbers, images, strict=True)
        ]
        return torch.stack(simulated)


def compose_batch(
    model: MorphableModel,
    samples: FaceSamples,
    *,
    vertices_camera: Float[Tensor, "B V 3"],
    images: Float[Tensor, "B 3 S S"],
    coverage: Float[Tensor, "B S S"],
    names: tuple[str, ...],
) -> FaceBatch:
    """Rendered faces in scenes, with their points and ground truth.

    Args:
        model: The face model.
        samples: The faces; their generators decide the scenes.
        vertices_camera: Vertices in camera space, metres.
        images: Colours of the rendered faces.
        coverage: Share of each pixel that the face covers.
        names: Names of the faces.
    """
    camera = samples.camera
    vertices_px = camera.project(vertices_camera)
    landmarks468_px = camera.project(model.mediapipe_points(vertices_camera))
    scenes = [compose_scene(rng, images[k], coverage[k], landmarks468_px[k]) for k, rng in enumerate(samples.rngs)]
    landmarks = landmark_vertices(model, vertices_px, samples.coefficients.pose.rotmat())
    return FaceBatch(
        images=torch.stack([image for image, _ in scenes]),
        mask=torch.stack([mask for _, mask in scenes]),
        camera=camera,
        landmarks68_px=vertices_px.gather(1, landmarks[..., None].expand(-1, -1, 2)),
        gt_px=landmarks468_px,
        detected_px=landmarks468_px,
        gt=to_crop_space(samples.coefficients, camera, sides_per_m=mean_face_frame(model).sides_per_m),
        names=names,
    )


def _split(batch: FaceBatch) -> list[FaceBatch]:
    return [batch.face(k) for k in range(len(batch.images))]


def _cast(batch: FaceBatch, dtype: torch.dtype) -> FaceBatch:
    """The same batch with images, masks and maps in another precision."""
    maps = None if batch.maps is None else batch.maps.to(dtype)
    return replace(batch, images=batch.images.to(dtype), mask=batch.mask.to(dtype), maps=maps)
