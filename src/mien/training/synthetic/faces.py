"""An endless stream of synthetic faces with ground truth.

    seed, number ──► coefficients, camera ── renderer ──► face ──► background, body, occluders ──► camera simulation

A face is a function of the stream's seed and its number: in any batch, process or run it is the same face. Therefore a
run can be resumed, and divided over processes, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mien.morphable import MorphableModel
from mien.perception import FaceMesh
from mien.perception.facemesh import MESH_SIZE
from mien.rendering import VertexDetail, render
from mien.training.data.batch import FaceBatch
from mien.training.synthetic.population import Population, SkinBank
from mien.training.synthetic.scene_cache import SceneCache, compose_batch


class SyntheticFaces:
    """Renders faces of a model, with colours per vertex.

    Args:
        model: The face model.
        size: Side of the crops, pixels.
        seed: Decides all faces of the stream.
        skins: Real skin colours for most of the faces.
        pool: Number of different scenes, kept in memory (`SceneCache`); 0 makes every face a new scene.
        jitter: Multiplies the random shift and size of the crops.
        mesh: Network that detects `detected_px`; without it they equal `gt_px`. It runs at its own input size, so that
            smaller crops are rendered at that size and then reduced.

    Example:
        >>> batch = SyntheticFaces(load_model(), size=112, seed=1).batch(range(8))
        >>> batch.images.shape, batch.gt.identity.shape[0]
        (torch.Size([8, 3, 112, 112]), 8)
    """

    def __init__(
        self,
        model: MorphableModel,
        *,
        size: int,
        seed: int = 0,
        skins: SkinBank | None = None,
        pool: int = 0,
        jitter: float = 1.0,
        mesh: FaceMesh | None = None,
    ) -> None:
        self.model, self.size, self.seed = model, size, seed
        render_size = size if mesh is None else max(size, MESH_SIZE)
        self._population = Population(model, size=render_size, skins=skins, jitter=jitter)
        self._scenes = SceneCache(self.render, size=size, seed=seed, pool=pool, mesh=mesh)

    def batch(self, numbers: Sequence[int]) -> FaceBatch:
        """The faces with these numbers, as simulated cameras show them."""
        return self._scenes.batch(numbers)

    @torch.no_grad()
    def render(self, numbers: Sequence[int]) -> FaceBatch:
        """The scenes with these numbers at their rendered size, before the camera simulation."""
        samples = self._population.sample_faces([np.random.default_rng((self.seed, number)) for number in numbers])
        detail = VertexDetail(None, albedo_offset=samples.albedo_offset)
        rendered = render(self.model, samples.coefficients, samples.camera, detail=detail)
        return compose_batch(
            self.model,
            samples,
            vertices_camera=rendered.surface.vertices_camera,
            images=rendered.image,
            coverage=rendered.coverage,
            names=tuple(f"synthetic-{self.seed}-{number}" for number in numbers),
        )
