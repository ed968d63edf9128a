"""The paper's observations on held-out photos: losses, maps without regularizers, skin colours, figures 2 to 5.

    python benchmarks/paper.py --data STORE --coarse runs/lite0 --detail runs/detail --without runs/without

STORE is a store of `mien data prepare`, whose validation and test photos are measured; docs/paper.md has the commands
of the runs. The last run of --coarse is drawn in figure 2, --without (without regularizers) in figure 3, the last run
of --detail in figures 4 and 5.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mien  # noqa: F401  (before torch: see mien.threads)

# isort: split
import numpy as np
import torch
from detail_metrics import common_share, laplacian_energy, lower_face_share
from PIL import Image
from rich.console import Console
from rich.progress import track
from skimage.color import deltaE_ciede2000, rgb2lab
from skin_tone import ToneGroup, tone_group, typology_angle_deg

from mien.errors import MienError
from mien.evaluation.report import Environment, markdown_table, write_json
from mien.morphable import MorphableModel, load_model
from mien.rendering import VertexDetail, build_surface, render
from mien.texture import vertex_detail
from mien.training.config import CoarseLossSettings, DetailLossSettings
from mien.training.contact_sheets import coarse_sheet
from mien.training.data.batch import FaceBatch, join_batches
from mien.training.data.photos import PhotoFaces
from mien.training.data.store import FaceStore
from mien.training.detail import DetailObjective
from mien.training.detail_inputs import DetailBatch
from mien.training.objective import LossTerm, Objective, P
from mien.training.report import DETAIL_FIGURES
from mien.training.run import load_detail_run, load_run, make_coarse_objective, make_detail_objective
from mien.typing import Float, Tensor

CROP_PX, BATCH, FIGURE_FACES = 224, 8, 6
MM_PER_M = 1000.0
EQ_7 = CoarseLossSettings()
EQ_12 = DetailLossSettings(
    photometric=1.0, landmark=1.0, identity=20.0, texel=0.0, unseen_symmetry=0.0,
    offset_magnitude=1e-4, offset_symmetry=1e-4, displacement_magnitude=1e-4, displacement_symmetry=1e-4,
    smooth_shape=0.08, smooth_albedo=0.1, true_displacement=0.0, true_slope=0.0,
)  # fmt: skip
FIGURE_3 = ("photo", "base", "augmented", "base geometry", "with displacement", "texture offset", "displacement")
TONES: tuple[ToneGroup, ...] = ("very light", "light", "intermediate", "tan", "brown", "dark")


@dataclass(frozen=True)
class NetworkLosses:
    """The losses of a network, means over the photos."""

    network: str
    terms: dict[str, float]


@dataclass(frozen=True)
class DetailedFace:
    """One photo, without and with maps."""

    name: str
    tone: ToneGroup
    coarse_delta_e: float
    """CIEDE2000 between the mean skin colours of photo and coarse reconstruction."""
    offset_delta_e: float
    """The same with the texture offset."""
    detail_delta_e: float
    """The same with both maps."""
    coarse_error: float
    """Root mean square colour difference inside the mask."""
    offset_error: float
    detail_error: float
    displacement_mm: float
    """Root mean square over the vertices of the skin."""
    lower_share: float
    """Share of the squared displacement that lies below the mouth."""
    coarse_roughness_mm2: float
    detail_roughness_mm2: float


@dataclass(frozen=True)
class DetailRun:
    """The measurements of one run of `mien train detail`."""

    network: str
    losses: NetworkLosses
    faces: tuple[DetailedFace, ...]
    common_share: float
    """Share of the squared displacement that is the same in every face."""


def held_out(store: str, model: MorphableModel, limit: int | None) -> FaceBatch:
    """Photos of the validation and the test split; `limit` of each."""
    parts = []
    for split in ("validation", "test"):
        faces = FaceStore(store, split=split)
        count = min(len(faces), limit or len(faces))
        parts.append(PhotoFaces(faces, model, size=CROP_PX, seed=0, augment=False).batch(range(count)))
    return join_batches(parts)


def batches(faces: FaceBatch, label: str) -> Iterator[FaceBatch]:
    for first in track(range(0, len(faces.images), BATCH), label, console=Console(stderr=True)):
        yield join_batches([faces.face(k) for k in range(first, min(first + BATCH, len(faces.images)))])


def measured_losses(objective: Objective[P], faces: FaceBatch, name: str) -> NetworkLosses:
    sums: dict[str, float] = {}
    for batch in batches(faces, name):
        prepared = objective.prepare(batch)
        for term in objective.losses(objective.predict(objective.network, prepared.inputs), prepared, progress=1.0):
            add(sums, term, len(batch.images))
    return NetworkLosses(name, {k: v / len(faces.images) for k, v in sums.items()})


def add(sums: dict[str, float], term: LossTerm, faces: int) -> None:
    sums[term.name] = sums.get(term.name, 0.0) + float(term.value) * faces
    sums["sum"] = sums.get("sum", 0.0) + term.weight * float(term.value) * faces


def measure_coarse(folder: Path, faces: FaceBatch, figure: Path | None, shown: FaceBatch) -> NetworkLosses:
    run = load_run(folder)
    objective = make_coarse_objective(replace(run.config, loss=EQ_7), run.encoder, run.model)
    losses = measured_losses(objective, faces, folder.name)
    for metric in objective.evaluate(run.encoder, faces):
        losses.terms[metric.name] = metric.value
    if figure is not None:
        coefficients = run.encoder.encode(shown.images, shown.camera, landmarks468_px=shown.detected_px)
        Image.fromarray(coarse_sheet(run.model, shown, coefficients, faces=len(shown.images))).save(figure)
    return losses


def measure_detail(folder: Path, faces: FaceBatch) -> tuple[DetailRun, DetailObjective]:
    run = load_detail_run(folder)
    objective = make_detail_objective(replace(run.config, loss=EQ_12), run.network, run.encoder, run.model)
    sums: dict[str, float] = {}
    rows: list[DetailedFace] = []
    shifts = []
    for batch in batches(faces, folder.name):
        prepared = objective.prepare(batch)
        maps = objective.predict(run.network, prepared.inputs)
        for term in objective.losses(maps, prepared, progress=1.0):
            add(sums, term, len(batch.images))
        inside = objective.atlas.valid
        detail = vertex_detail(
            run.model, texture_offset=maps["texture_offset"] * inside, displacement=maps["displacement"] * inside
        )
        shift_mm = displacement_mm(run.model, prepared, detail)
        rows += detailed_faces(run.model, objective.edges, prepared, detail, shift_mm)
        shifts.append(shift_mm)
    losses = NetworkLosses(folder.name, {k: v / len(faces.images) for k, v in sums.items()})
    skin = run.model.masks.skin > 0.5
    return DetailRun(folder.name, losses, tuple(rows), common_share(torch.cat(shifts)[:, skin])), objective


def displacement_mm(model: MorphableModel, prepared: DetailBatch, detail: VertexDetail) -> Float[Tensor, "B V 3"]:
    displaced = build_surface(model, prepared.coefficients, detail=detail).vertices
    return (displaced - prepared.surface.vertices) * MM_PER_M


def detailed_faces(
    model: MorphableModel, edges: Tensor, prepared: DetailBatch, detail: VertexDetail, shift_mm: Float[Tensor, "B V 3"]
) -> list[DetailedFace]:
    batch, coefficients = prepared.faces, prepared.coefficients
    offset_only = VertexDetail(None, detail.albedo_offset)
    outputs = [render(model, coefficients, batch.camera, detail=d) for d in (None, offset_only, detail)]
    weight = batch.mask * torch.stack([o.coverage for o in outputs]).amin(0)
    coarse_mm = prepared.surface.vertices * MM_PER_M
    roughness = [laplacian_energy(v, edges) for v in (coarse_mm, coarse_mm + shift_mm)]
    skin = (model.masks.skin > 0.5).float()
    amount = ((shift_mm.square().sum(-1) * skin).sum(1) / skin.sum()).sqrt()
    lower = lower_face_share(model, shift_mm, skin)
    rows = []
    for k, name in enumerate(batch.names):
        pixels = [colours_inside(image, weight[k]) for image in (batch.images[k], *(o.image[k] for o in outputs))]
        shares = pixels[0][1]
        labs = [rgb2lab(shares @ colours) for colours, _ in pixels]
        errors = [float(np.sqrt(shares @ ((c - pixels[0][0]) ** 2).mean(1))) for c, _ in pixels[1:]]
        rows.append(
            DetailedFace(
                name,
                tone_group(float(typology_angle_deg(labs[0]))),
                *(float(deltaE_ciede2000(lab, labs[0])) for lab in labs[1:]),
                *errors,
                displacement_mm=float(amount[k]),
                lower_share=float(lower[k]),
                coarse_roughness_mm2=float(roughness[0][k]),
                detail_roughness_mm2=float(roughness[1][k]),
            )
        )
    return rows


def colours_inside(image: Float[Tensor, "3 S S"], weight: Float[Tensor, "S S"]) -> tuple[np.ndarray, np.ndarray]:
    inside = weight > 0
    shares = weight[inside] / weight[inside].sum()
    return image.permute(1, 2, 0)[inside].clamp(0, 1).double().numpy(), shares.double().numpy()


def evenly_by_tone(faces: FaceBatch) -> FaceBatch:
    """Faces at equal steps from the lightest to the darkest skin."""
    order = sorted(range(len(faces.images)), key=lambda k: -photo_angle(faces, k))
    picked = [order[round(step * (len(order) - 1) / (FIGURE_FACES - 1))] for step in range(FIGURE_FACES)]
    return join_batches([faces.face(k) for k in picked])


def photo_angle(faces: FaceBatch, number: int) -> float:
    colours, shares = colours_inside(faces.images[number], faces.mask[number])
    return float(typology_angle_deg(rgb2lab(shares @ colours)))


def loss_table(rows: Sequence[NetworkLosses]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.terms))
    return markdown_table(
        ["held-out photos", *(row.network for row in rows)],
        [[name, *(f"{row.terms[name]:.5f}" if name in row.terms else "–" for row in rows)] for name in names],
    )


def map_table(runs: Sequence[DetailRun]) -> str:
    def mean(run: DetailRun, field: str) -> float:
        return float(np.mean([getattr(face, field) for face in run.faces]))

    lines = [
        ("colour error, coarse", "coarse_error", ".4f"),
        ("colour error, with texture offset", "offset_error", ".4f"),
        ("colour error, with both maps", "detail_error", ".4f"),
        ("displacement, mm rms", "displacement_mm", ".3f"),
        ("share of it below the mouth", "lower_share", ".2f"),
        ("roughness, coarse, mm²", "coarse_roughness_mm2", ".4f"),
        ("roughness, with displacement, mm²", "detail_roughness_mm2", ".4f"),
    ]
    table = [[label, *(format(mean(run, field), form) for run in runs)] for label, field, form in lines]
    table.append(["share of the displacement that all faces have", *(f"{run.common_share:.2f}" for run in runs)])
    return markdown_table(["maps", *(run.network for run in runs)], table)


def tone_table(run: DetailRun) -> str:
    table = []
    for tone in TONES:
        group = [face for face in run.faces if face.tone == tone]
        if group:
            fields = ("coarse_delta_e", "offset_delta_e", "detail_delta_e")
            means = [np.mean([getattr(face, field) for face in group]) for field in fields]
            errors = [np.mean([getattr(face, field) for face in group]) for field in ("coarse_error", "offset_error")]
            table.append([tone, len(group), *(f"{m:.2f}" for m in means), *(f"{e:.4f}" for e in errors)])
    header = ["skin in the photo", "photos", "ΔE coarse", "ΔE with offset", "ΔE with both"]
    return markdown_table([*header, "colour error coarse", "with offset"], table)


@torch.no_grad()
def main(arguments: argparse.Namespace) -> int:
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    faces = held_out(arguments.data, load_model(), arguments.limit)
    runs = [measure_detail(folder, faces) for folder in (*arguments.detail, arguments.without)]
    shown = evenly_by_tone(faces)
    coarse = [
        measure_coarse(folder, faces, out / "figure2.png" if folder == arguments.coarse[-1] else None, shown)
        for folder in arguments.coarse
    ]
    figures = {"figure3.png": (runs[-1][1], FIGURE_3)}
    figures |= {name: (runs[-2][1], labels) for name, labels in DETAIL_FIGURES.items()}
    for name, (objective, labels) in figures.items():
        Image.fromarray(objective.sheet(objective.network, shown, labels=labels)).save(out / name)
    measured = [run for run, _ in runs]
    tables = [loss_table(coarse), loss_table([run.losses for run in measured]), map_table(measured)]
    tables += [f"{run.network}:\n\n{tone_table(run)}" for run in measured]
    text = f"{len(faces.images)} held-out photos; in the figures: {', '.join(shown.names)}\n\n" + "\n\n".join(tables)
    (out / "paper.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    write_json(out / "paper.json", environment=Environment.current(), results=measured)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="store of photos")
    parser.add_argument("--coarse", type=Path, nargs="+", required=True, help="runs of `mien train coarse`")
    parser.add_argument("--detail", type=Path, nargs="+", required=True, help="runs of `mien train detail`")
    parser.add_argument("--without", type=Path, required=True, help="the same without regularizers")
    parser.add_argument("--out", "-o", type=Path, default=Path("out/paper"))
    parser.add_argument("--limit", type=int, help="photos per split")
    try:
        sys.exit(main(parser.parse_args()))
    except MienError as error:
        sys.exit(f"error: {error}")
