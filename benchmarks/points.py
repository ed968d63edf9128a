"""How well 468 points determine the shape of a synthetic face: ground-truth points and detected points.

    python benchmarks/points.py --skins skins.safetensors

Ridge regressions from points to coefficients, and the encoder, on the same held-out faces. Detected points come from
synthetic photos of the faces; vertex errors are after the best similarity. Ground-truth points are also used with
independent noise, which shows how precise detected points would have to be. A second table has the error after each
refinement step of the encoder, a third the error of the whole fit on some of these faces, in crops of its own size.
`--faces 0 --fitted 0` measures only the encoder and takes a minute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import mien  # noqa: F401  (before torch: see mien.threads)

# isort: split
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
        raise TypeError("synthetic faces come with ground-truth coefficients")
    return torch.cat([batch.gt.identity, batch.gt.expression], dim=1)


def ridge(model: MorphableModel, known: FaceBatch, held: FaceBatch, *, name: str) -> float:
    """The smallest vertex error of a ridge regression from the points in the field `name`."""
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
    """The faces with errors of their own on each ground-truth point."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch.gt_px.shape, generator=generator) * error * batch.images.shape[-1]
    return replace(batch, gt_px=batch.gt_px + noise)


def without_refiner(encoder: FaceEncoder) -> FaceEncoder:
    """The same encoder without its refiner."""
    first = deepcopy(encoder)
    first.refiner = None
    return first


def without_mirror(encoder: FaceEncoder) -> FaceEncoder:
    """The same encoder without the mirror image as input."""
    alone = deepcopy(encoder)
    alone.mirror = None
    return alone


def mean_error(model: MorphableModel, held: FaceBatch) -> float:
    return vertex_error(model, torch.zeros_like(shape_of(held)), held)


@torch.no_grad()
def encoder_error(
    model: MorphableModel, encoder: FaceEncoder, held: FaceBatch, *, name: str, refine_steps: int = REFINE_STEPS
) -> float:
    """Vertex error of the encoder with the points in the field `name` as input."""
    faces = encoder.encode(held.images, held.camera, landmarks468_px=getattr(held, name), refine_steps=refine_steps)
    return vertex_error(model, torch.cat([faces.identity, faces.expression], dim=1), held)


def by_regression(model: MorphableModel, known: FaceBatch, held: FaceBatch) -> list[ShapeError]:
    """Errors of ridge regressions from ground-truth points, without and with noise, and from detected points."""
    errors = [ShapeError("ridge from ground-truth points", ridge(model, known, held, name="gt_px"))]
    for error in OWN_ERRORS:
        pair = (blurred(batch, error, seed=seed) for batch, seed in ((known, SEED), (held, HELD_OUT_SEED)))
        source = f"ridge from ground-truth points with {100 * error:g} % noise"
        errors.append(ShapeError(source, ridge(model, *pair, name="gt_px")))
    return [*errors, ShapeError("ridge from detected points", ridge(model, known, held, name="detected_px"))]


def by_refine_steps(model: MorphableModel, encoder: FaceEncoder, held: FaceBatch) -> list[list[str]]:
    """Errors per number of refinement steps, from the crop alone and with its mirror image."""
    ways = (without_mirror(encoder), encoder)
    return [
        [
            str(refine_steps),
            *(f"{encoder_error(model, way, held, name='detected_px', refine_steps=refine_steps):.3f}" for way in ways),
        ]
        for refine_steps in range(1, REFINE_STEPS + 2)
    ]


def by_fit(model: MorphableModel, encoder: FaceEncoder, large: FaceBatch) -> list[ShapeError]:
    """Errors of the whole fit and of the encoder on the same crops."""
    return [
        ShapeError("the mean face", mean_error(model, large)),
        ShapeError("fit, detected points", fitted(model, large, name="detected_px")),
        ShapeError("fit, ground-truth points", fitted(model, large, name="gt_px")),
        ShapeError("encoder, detected points", encoder_error(model, encoder, large, name="detected_px")),
    ]


def fitted(model: MorphableModel, held: FaceBatch, *, name: str) -> float:
    """Vertex error of a fit from scratch with the points in the field `name`."""
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
    parser.add_argument("--faces", type=int, default=5120, help="number of training faces of the regressions; 0: none")
    parser.add_argument("--held-out", type=int, default=512)
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED, help="seed of the held-out faces")
    parser.add_argument("--fitted", type=int, default=48, help="number of held-out faces for the fit; 0: no fit")
    parser.add_argument("--skins", type=Path, help="file of `mien data skins`")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    model, mesh = load_model(), FaceMesh.from_assets()
    encoder = load_encoder(model, options.encoder)
    skins = SkinBank.load(options.skins, model) if options.skins else None

    def make(count: int, label: str, *, seed: int = options.seed, size: int = encoder.crop_size) -> FaceBatch:
        return draw(SyntheticFaces(model, size=size, seed=seed, skins=skins, jitter=0.2, mesh=mesh), count, label=label)

    held = make(options.held_out, "held out")
    errors = [ShapeError("the mean face", mean_error(model, held))]
    if options.faces:
        errors += by_regression(model, make(options.faces, "faces", seed=SEED), held)
    errors += [
        ShapeError(
            "encoder without refiner, detected points",
            encoder_error(model, without_refiner(encoder), held, name="detected_px"),
        ),
        ShapeError("encoder, ground-truth points", encoder_error(model, encoder, held, name="gt_px")),
        ShapeError("encoder, detected points", encoder_error(model, encoder, held, name="detected_px")),
    ]
    print(f"{Environment.current()}\n")
    print_errors(f"{options.held_out} faces", errors)
    if encoder.refiner is not None:
        rows = by_refine_steps(model, encoder, held)
        print(markdown_table(["refine steps", "the crop alone, mm", "with its mirror image, mm"], rows) + "\n")
    if options.fitted:
        large = make(options.fitted, "for the fit", size=FIT_SIZE_PX)
        print_errors(f"{options.fitted} faces", by_fit(model, encoder, large))
    off = (held.detected_px - held.gt_px) / encoder.crop_size * 100
    print(
        f"detected points differ from ground truth by {off.norm(dim=-1).mean():.2f} % of the crop's side; "
        f"{off.mean(0).norm(dim=-1).mean():.2f} % is the mean offset of all faces"
    )
    return 0


def print_errors(title: str, errors: Sequence[ShapeError]) -> None:
    rows = [[error.source, f"{error.vertices_mm:.3f}"] for error in errors]
    print(markdown_table([title, "vertices, mm"], rows) + "\n")


if __name__ == "__main__":
    sys.exit(main())
