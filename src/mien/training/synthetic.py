"""An endless stream of drawn faces with everything known about them.

    seed, number ──► coefficients, camera ── renderer ──► face ── imaging ──► hair, clothes, covers, camera, JPEG

A face is a function of the stream's seed and its own number: no matter in which batch, process or run it is drawn, it
is the same face. So a run can be resumed, and divided over processes, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mien.encoder import HEAD_UNITS
from mien.morphable import MorphableModel
from mien.rendering import VertexDetail, render
from mien.training.batch import FaceBatch, join_batches
from mien.training.population import Population, SkinBank
from mien.training.studio import Studio, composed

SAMPLE_BATCH, SHEET_COLUMNS = 16, 8


class SyntheticFaces:
    """Draws faces of a model in square crops of `size` pixels; `skins` dress some of them in real colours.

    With a `pool` there are only so many faces, see `Studio`. That halves the cost of a face.
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
    ) -> None:
        self.model, self.size, self.seed = model, size, seed
        self._population = Population(model, size=size, skins=skins, jitter=jitter)
        self._studio = Studio(self.draw, seed=seed, pool=pool)

    def batch(self, numbers: Sequence[int]) -> FaceBatch:
        """The faces with these numbers, as some camera shows them."""
        return self._studio.batch(numbers)

    @torch.no_grad()
    def draw(self, numbers: Sequence[int]) -> FaceBatch:
        """The faces with these numbers and what is around and before them, not yet photographed."""
        sitters = self._population.sitters([np.random.default_rng((self.seed, number)) for number in numbers])
        detail = VertexDetail(None, albedo_offset=sitters.offset)
        drawn = render(self.model, sitters.coefficients, sitters.camera, detail=detail)
        return composed(
            self.model,
            sitters,
            vertices_camera=drawn.surface.vertices_camera,
            images=drawn.image,
            coverage=drawn.coverage,
            names=tuple(f"synthetic-{self.seed}-{number}" for number in numbers),
        )


def write_samples(faces: SyntheticFaces, out: Path, *, count: int) -> Path:
    """Write the first faces of a stream as pictures, their truth as truth.npz, and a sheet, whose path is returned."""
    out.mkdir(parents=True, exist_ok=True)
    batches = [faces.batch(range(k, min(k + SAMPLE_BATCH, count))) for k in range(0, count, SAMPLE_BATCH)]
    batch = join_batches(batches)
    pictures = (batch.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(out / f"face-{number:05d}.png")
    if batch.truth is None:
        raise TypeError("drawn faces come with their truth")
    truth = {name: getattr(batch.truth, name).numpy() for name in HEAD_UNITS}
    camera = {"focal_px": batch.camera.focal_px.numpy(), "centre_px": batch.camera.centre_px.numpy()}
    truth["landmarks68_px"] = batch.landmarks68_px.numpy()
    np.savez(out / "truth.npz", allow_pickle=False, **truth, **camera)
    rows = -(-count // SHEET_COLUMNS)
    sheet = np.zeros((rows * SHEET_COLUMNS, *pictures.shape[1:]), np.uint8)
    sheet[:count] = pictures
    side = pictures.shape[1]
    sheet = sheet.reshape(rows, SHEET_COLUMNS, side, side, 3).transpose(0, 2, 1, 3, 4)
    path = out / "sheet.png"
    Image.fromarray(sheet.reshape(rows * side, SHEET_COLUMNS * side, 3)).save(path)
    return path
