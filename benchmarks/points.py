"""What the 468 points tell of a drawn face's shape: where they are, and where the mesh network finds them.

    python benchmarks/points.py --skins skins.safetensors

Ridge regressions from points to coefficients, and the encoder, on the same held-out faces. The mesh network sees
photographs of the faces; errors of vertices are after the best similarity. True points are also told with errors of
their own, which no two of them share: how exactly points would have to be found. A second table has what every look
of the encoder leaves, and a third asks the whole fit about some of such faces, in crops of its own size: what pixels
and points together tell. `--faces 0 --fitted 0` leaves the encoder alone: a minute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.progress import track

from mien.evaluation.report import Environment, markdown_table
from mien.fitting import FitTargets, fit
from mien.morphable import MorphableModel, load_model
from mien.networks import DEFAULT_ENCODER, FaceEncoder, load_encoder
from mien.networks.encoder import REFINE_STEPS
from mien.perception import FaceMesh, IdentityNetwork
from mien.pipeline.inputs import FIT_SIZE_PX
from mien.training.data.batch import FaceBatch, join_batches
from mien.training.shape_distance import aligned_distance_mm
from mien.training.synthetic.faces import SyntheticFaces
from mien.training.synthetic.population import SkinBank
from mien.typing import Float, Tensor

SEED, HELD_OUT_SEED = 501, 503
BATCH = 32
POINT_UNIT = 0.05
"""Sides of the crop; about the spread of a point."""
EXPOSURE = 0.9
"""Of a well exposed photograph."""
OWN_ERRORS = (0.001, 0.0025, 0.005, 0.01)
"""Standard deviations of the errors of either coordinate, in sides of the crop."""
STRENGTHS = (0.03, 0.3, 3.0, 30.0, 300.0)
"""Of the ridge; the best is taken, each regression its own."""


@dataclass(frozen=True)
class ShapeError:
    source: str
    vertices_mm: float


def draw(faces: SyntheticFaces, count: int, *, label: str) -> FaceBatch:
    starts = range(0, count, BATCH)
    return join_batches([faces.batch(range(k, min(k + BATCH, count))) for k in track(starts, label)])


def shape_of(batch: FaceBatch) -> Float[Tensor, "B N"]:
    if batch.gt is None:
        raise TypeError("drawn faces come with their truth")
    return torch.cat([batch.gt.identity, batch.gt.expression], dim=1)


def ridge(model: MorphableModel, known: FaceBatch, held: FaceBatch, *, name: str) -> float:
    """The smallest error of vertices that a ridge regression from the points called `name` leaves."""
    x, new = (_columns(getattr(batch, name), batch.images.shape[-1]) for batch in (known, held))
    y = shape_of(known).double()
    errors = []
    for strength in STRENGTHS:
        penalty = strength * torch.eye(x.shape[1], dtype=x.dtype)
        weights = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
        errors.append(vertex_error(model, (new @ weights).float(), held))
    return min(errors)


def _columns(points_px: Float[Tensor, "B 468 2"], size: int) -> Float[Tensor, "B N"]:
    flat = ((points_px / size - 0.5) / POINT_UNIT).flatten(1).double()
    return torch.cat([flat, torch.ones_like(flat[:, :1])], dim=1)


def vertex_error(model: MorphableModel, shape: Float[Tensor, "B N"], held: FaceBatch) -> float:
    def vertices(coefficients: Float[Tensor, "B N"]) -> Float[Tensor, "B V 3"]:
        identity, expression = coefficients.split(model.counts[:2], dim=1)
        return model.vertices(identity, expression.clamp(0, 1))

    return aligned_distance_mm(vertices(shape), vertices(shape_of(held)), model=model)


def blurred(batch: FaceBatch, error: float, *, seed: int) -> FaceBatch:
    """The faces with errors of their own on each true point."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch.gt_px.shape, generator=generator) * error * batch.images.shape[-1]
    return replace(batch, gt_px=batch.gt_px + noise)


def refiner_only(encoder: FaceEncoder) -> FaceEncoder:
    """The same encoder without its second look."""
    first = deepcopy(encoder)
    first.refiner = None
    return first


def crop_alone(encoder: FaceEncoder) -> FaceEncoder:
    """The same encoder, not shown the mirror image."""
    alone = deepcopy(encoder)
    alone.mirror = None
    return alone


def mean_error(model: MorphableModel, held: FaceBatch) -> float:
    return vertex_error(model, torch.zeros_like(shape_of(held)), held)


@torch.no_grad()
def told(
    model: MorphableModel, encoder: FaceEncoder, held: FaceBatch, *, name: str, refine_steps: int = REFINE_STEPS
) -> float:
    """The error of the encoder where it is told the points called `name`."""
    faces = encoder.encode(held.images, held.camera, landmarks468_px=getattr(held, name), refine_steps=refine_steps)
    return vertex_error(model, torch.cat([faces.identity, faces.expression], dim=1), held)


def by_regression(model: MorphableModel, known: FaceBatch, held: FaceBatch) -> list[ShapeError]:
    """What is left by ridge regressions from true points, from spoilt ones, and from found ones."""
    errors = [ShapeError("ridge from true points", ridge(model, known, held, name="gt_px"))]
    for error in OWN_ERRORS:
        pair = (blurred(batch, error, seed=seed) for batch, seed in ((known, SEED), (held, HELD_OUT_SEED)))
        source = f"ridge from true points, each {100 * error:g} % off"
        errors.append(ShapeError(source, ridge(model, *pair, name="gt_px")))
    return [*errors, ShapeError("ridge from found points", ridge(model, known, held, name="detected_px"))]


def by_looks(model: MorphableModel, encoder: FaceEncoder, held: FaceBatch) -> list[list[str]]:
    """For each number of looks what is left of the crop alone, and with its mirror image."""
    ways = (crop_alone(encoder), encoder)
    return [
        [
            str(refine_steps),
            *(f"{told(model, way, held, name='detected_px', refine_steps=refine_steps):.3f}" for way in ways),
        ]
        for refine_steps in range(1, REFINE_STEPS + 2)
    ]


def by_fit(model: MorphableModel, encoder: FaceEncoder, large: FaceBatch) -> list[ShapeError]:
    """What the whole fit leaves, and the encoder of the same crops."""
    return [
        ShapeError("the mean face", mean_error(model, large)),
        ShapeError("fit, told found points", fitted(model, large, name="detected_px")),
        ShapeError("fit, told true points", fitted(model, large, name="gt_px")),
        ShapeError("encoder, told found points", told(model, encoder, large, name="detected_px")),
    ]


def fitted(model: MorphableModel, held: FaceBatch, *, name: str) -> float:
    """The error of the fit from scratch where it is told the points called `name`."""
    targets = FitTargets(
        held.images,
        held.mask,
        held.mask,
        torch.full((len(held.images),), EXPOSURE),
        held.camera,
        getattr(held, name),
        held.landmarks68_px,
    )
    recognition = IdentityNetwork.from_assets()
    faces = [
        fit(model, targets[slice(k, k + 1)], recognition=recognition).coefficients
        for k in track(range(len(held.images)), f"fit, {name}")
    ]
    shape = [torch.cat([face.identity, face.expression], dim=1) for face in faces]
    return vertex_error(model, torch.cat(shape), held)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--faces", type=int, default=5120, help="that the regressions learn from; 0: no regressions")
    parser.add_argument("--held-out", type=int, default=512)
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED, help="of the held-out faces")
    parser.add_argument("--fitted", type=int, default=48, help="held-out faces that the fit is asked about; 0: no fit")
    parser.add_argument("--skins", type=Path, help="a file of `mien data skins`")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    model, mesh = load_model(), FaceMesh.from_assets()
    encoder = load_encoder(model, options.encoder)
    skins = SkinBank.load(options.skins, model) if options.skins else None

    def drawn(count: int, label: str, *, seed: int = options.seed, size: int = encoder.crop_size) -> FaceBatch:
        return draw(SyntheticFaces(model, size=size, seed=seed, skins=skins, jitter=0.2, mesh=mesh), count, label=label)

    held = drawn(options.held_out, "held out")
    errors = [ShapeError("the mean face", mean_error(model, held))]
    if options.faces:
        errors += by_regression(model, drawn(options.faces, "faces", seed=SEED), held)
    errors += [
        ShapeError(
            "the encoder's first look, told found points", told(model, refiner_only(encoder), held, name="detected_px")
        ),
        ShapeError("encoder, told true points", told(model, encoder, held, name="gt_px")),
        ShapeError("encoder, told found points", told(model, encoder, held, name="detected_px")),
    ]
    print(f"{Environment.current()}\n")
    print_errors(f"{options.held_out} faces", errors)
    if encoder.refiner is not None:
        rows = by_looks(model, encoder, held)
        print(markdown_table(["looks", "the crop alone, mm", "with its mirror image, mm"], rows) + "\n")
    if options.fitted:
        large = drawn(options.fitted, "for the fit", size=FIT_SIZE_PX)
        print_errors(f"{options.fitted} faces", by_fit(model, encoder, large))
    off = (held.detected_px - held.gt_px) / encoder.crop_size * 100
    print(
        f"found points lie {off.norm(dim=-1).mean():.2f} % of the crop's side off the true ones; "
        f"{off.mean(0).norm(dim=-1).mean():.2f} % is what all faces share"
    )
    return 0


def print_errors(title: str, errors: Sequence[ShapeError]) -> None:
    rows = [[error.source, f"{error.vertices_mm:.3f}"] for error in errors]
    print(markdown_table([title, "vertices, mm"], rows) + "\n")


if __name__ == "__main__":
    sys.exit(main())
