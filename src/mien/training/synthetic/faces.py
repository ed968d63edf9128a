"""An endless stream of drawn faces with everything known about them.

    seed, number ──► coefficients, camera ── renderer ──► face ── imaging ──► hair, clothes, covers, camera, JPEG

A face is a function of the stream's seed and its own number: no matter in which batch, process or run it is drawn, it
is the same face. So a run can be resumed, and divided over processes, exactly.
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
from mien.training.synthetic.scene_cache import SceneCache, composed


class SyntheticFaces:
    """Draws faces of a model in square crops of `size` pixels; `skins` dress some of them in real colours.

    With a `pool` there are only so many faces, and with `mesh` their points are found, see `Studio`. The network looks
    at faces in its own size, so that smaller ones are drawn in that and shrunk.
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
        drawn_size = size if mesh is None else max(size, MESH_SIZE)
        self._population = Population(model, size=drawn_size, skins=skins, jitter=jitter)
        self._studio = SceneCache(self.draw, size=size, seed=seed, pool=pool, mesh=mesh)

    def batch(self, numbers: Sequence[int]) -> FaceBatch:
        """The faces with these numbers, as some camera shows them."""
        return self._studio.batch(numbers)

    @torch.no_grad()
    def draw(self, numbers: Sequence[int]) -> FaceBatch:
        """The faces with these numbers and what is around and before them, as drawn: not yet photographed or shrunk."""
        sample_faces = self._population.sample_faces([np.random.default_rng((self.seed, number)) for number in numbers])
        detail = VertexDetail(None, albedo_offset=sample_faces.offset)
        drawn = render(self.model, sample_faces.coefficients, sample_faces.camera, detail=detail)
        return composed(
            self.model,
            sample_faces,
            vertices_camera=drawn.surface.vertices_camera,
            images=drawn.image,
            coverage=drawn.coverage,
            names=tuple(f"synthetic-{self.seed}-{number}" for number in numbers),
        )
