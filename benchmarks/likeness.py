"""Likeness of reconstructions to the people in the CC-BY portraits, and identity across expressions.

    python benchmarks/likeness.py --data ../shared/data

Two measurements. Verification: the identity network compares each neutral portrait with the rendering of its
reconstruction. Rank one: identity coefficients of the smiling portrait are searched among those of all neutral ones.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mien  # noqa: F401  (before torch: see mien.threads)

# isort: split
import numpy as np
import torch
from likeness_metrics import FaceRenderer, Likeness, LikenessRow, RankOne, measure_likeness, rank_one, whitened
from rich.console import Console
from rich.progress import track
from shape import ablated

from mien.errors import MienError
from mien.evaluation.landmarks import matching_face
from mien.evaluation.report import Environment, markdown_table, write_json
from mien.fitting import FitSettings
from mien.io.photo import read_photo
from mien.perception import face_crop, face_mask
from mien.perception.crops import sample_affine
from mien.pipeline import Reconstructor
from mien.result import Reconstruction

MASK_SIZE_PX = 224


@dataclass(frozen=True)
class Portrait:
    path: Path
    subject: str
    smiling: bool


@dataclass(frozen=True)
class PortraitLikeness:
    file: str
    likeness: LikenessRow


@dataclass(frozen=True)
class RankOneRow:
    space: str
    result: RankOne


@dataclass(frozen=True)
class LikenessResults:
    portraits: tuple[PortraitLikeness, ...]
    rank_one: tuple[RankOneRow, ...]


def read_portraits(folder: Path) -> list[Portrait]:
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sets = {"neutral_front": False, "canada": False, "smiling_front": True}
    return [Portrait(folder / row["file"], row["subject"], sets[row["set"]]) for row in rows if row["set"] in sets]


@dataclass(frozen=True)
class ReconstructedPortrait:
    """A portrait with its detected landmarks, its skin mask and its reconstruction."""

    pixels: np.ndarray
    face: Reconstruction
    landmarks68_px: np.ndarray
    mask: torch.Tensor


def reconstruct_portrait(portrait: Portrait, reconstructor: Reconstructor) -> ReconstructedPortrait:
    pixels = read_photo(portrait.path).pixels
    face = reconstructor(pixels)[0]
    detections = reconstructor.detector.detect(pixels)
    best = matching_face([o.landmarks68_px for o in detections], face.landmarks68.astype(np.float64))
    detection = detections[0 if best is None else best]
    crop = face_crop(torch.from_numpy(detection.landmarks468_px[:, :2]), size=MASK_SIZE_PX)
    mask = in_photo(face_mask(pixels, detection, crop), crop.crop_from_photo, size=pixels.shape[:2])
    return ReconstructedPortrait(pixels, face, detection.landmarks68_px, mask)


def measure_portrait(
    portrait: ReconstructedPortrait, reconstructor: Reconstructor, renderer: FaceRenderer
) -> LikenessRow:
    return measure_likeness(
        renderer, reconstructor.identity_network, portrait.face,
        pixels=portrait.pixels, landmarks68_px=portrait.landmarks68_px, mask=portrait.mask,
    )  # fmt: skip


def in_photo(mask: torch.Tensor, crop_from_photo: torch.Tensor, *, size: Sequence[int]) -> torch.Tensor:
    """A crop's mask in the photo's pixels, zero outside the crop."""
    height, width = size
    return sample_affine(
        mask.float().view(1, 1, *mask.shape[-2:]), crop_from_photo[None], size=(height, width), padding="zeros"
    )[:, 0]


def likeness_table(rows: Sequence[PortraitLikeness]) -> str:
    names = {
        "mean_person": "control: mean face over the photo",
        "coarse": "base fit over the photo",
        "detail": "with detail over the photo",
        "coarse_alone": "base fit alone",
        "detail_alone": "with detail alone",
    }
    lines = []
    for field, title in names.items():
        values: list[Likeness] = [getattr(row.likeness, field) for row in rows]
        cosine = np.array([v.cosine for v in values])
        distance = np.array([v.distance for v in values])
        lines.append(
            [
                title,
                f"{cosine.mean():.3f} ± {cosine.std():.3f}",
                f"{distance.mean():.3f} ± {distance.std():.3f}",
                f"{100 * np.mean([v.verified for v in values]):.1f} %",
            ]
        )
    return markdown_table([f"{len(rows)} portraits", "cosine", "distance", "verified (< 0.6)"], lines)


def error_line(rows: Sequence[PortraitLikeness]) -> str:
    base = np.array([row.likeness.coarse_error for row in rows])
    detail = np.array([row.likeness.detail_error for row in rows])
    return (
        "Photometric error inside the mask (root mean square, colours in [0, 1]): "
        f"{base.mean():.4f} ± {base.std():.4f} before detail, {detail.mean():.4f} ± {detail.std():.4f} after."
    )


def rank_one_rows(neutral: Sequence[Reconstruction], smiling: Sequence[Reconstruction]) -> list[RankOneRow]:
    gallery, probes = (torch.stack([torch.from_numpy(f.identity) for f in faces]) for faces in (neutral, smiling))
    white_gallery, white_probes = whitened(gallery, probes)
    return [
        RankOneRow("coefficients, Euclidean", rank_one(gallery, probes, cosine=False)),
        RankOneRow("coefficients, cosine", rank_one(gallery, probes, cosine=True)),
        RankOneRow("whitened, Euclidean", rank_one(white_gallery, white_probes, cosine=False)),
        RankOneRow("whitened, cosine", rank_one(white_gallery, white_probes, cosine=True)),
    ]


def rank_one_table(rows: Sequence[RankOneRow]) -> str:
    lines = [
        [r.space, r.result.people, f"{100 * r.result.rate:.1f} %", f"{r.result.own_distance:.3f}",
         f"{r.result.other_distance:.3f}"]
        for r in rows
    ]  # fmt: skip
    return markdown_table(["identity vectors", "people", "rank 1", "same person", "other people"], lines)


def verification(
    portraits: Sequence[Portrait], reconstructor: Reconstructor, console: Console
) -> list[PortraitLikeness]:
    """The likeness of every portrait that was reconstructed; failures are printed on the console."""
    renderer = FaceRenderer(reconstructor.model)
    measured = []
    for portrait in track(portraits, "likeness", console=console):
        try:
            result = reconstruct_portrait(portrait, reconstructor)
            measured.append(PortraitLikeness(portrait.path.name, measure_portrait(result, reconstructor, renderer)))
        except MienError as error:  # noqa: PERF203
            console.print(f"{portrait.path.name}: {error}")
    return measured


def reconstructed_pairs(
    pairs: Sequence[tuple[Portrait, Portrait]], reconstructor: Reconstructor, console: Console
) -> list[tuple[Reconstruction, Reconstruction]]:
    """Neutral and smiling face of every person for whom both were reconstructed."""
    faces = []
    for first, second in track(pairs, "pairs", console=console):
        try:
            faces.append((reconstructor(first.path)[0], reconstructor(second.path)[0]))
        except MienError as error:  # noqa: PERF203
            console.print(f"{second.subject}: {error}")
    return faces


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with photos_ccby")
    parser.add_argument("--limit", type=int, help="number of portraits, and of pairs")
    parser.add_argument("--skip-verification", action="store_true")
    parser.add_argument("--skip-rank-one", action="store_true")
    parser.add_argument("--ablate", action="append", default=[], metavar="NAME=VALUE", help="change FitSettings")
    parser.add_argument("--jobs", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.jobs)
    settings = ablated(FitSettings(), options.ablate)
    console = Console(stderr=True)
    portraits = read_portraits(options.data / "photos_ccby")
    reconstructor = Reconstructor(detail=True, max_faces=1, settings=settings)
    print(f"{Environment.current()}\n")
    measured: list[PortraitLikeness] = []
    missing = 0
    if not options.skip_verification:
        chosen = spread([p for p in portraits if not p.smiling], options.limit)
        measured = verification(chosen, reconstructor, console)
        missing += len(chosen) - len(measured)
        print(f"{likeness_table(measured)}\n\n{error_line(measured)}\n")
    ranks: list[RankOneRow] = []
    if not options.skip_rank_one:
        neutral = {p.subject: p for p in portraits if not p.smiling}
        pairs = spread([(neutral[p.subject], p) for p in portraits if p.smiling], options.limit)
        coarse = Reconstructor(reconstructor.model, detail=False, max_faces=1, settings=settings)
        faces = reconstructed_pairs(pairs, coarse, console)
        missing += len(pairs) - len(faces)
        ranks = rank_one_rows([a for a, _ in faces], [b for _, b in faces])
        print(f"{rank_one_table(ranks)}\n")
    if missing:
        print(f"{missing} photos or pairs were not reconstructed.\n")
    if options.json:
        write_json(
            options.json,
            environment=Environment.current(),
            results=LikenessResults(tuple(measured), tuple(ranks)),
        )
    return int(missing > 0)


def spread(items: Sequence, limit: int | None) -> list:
    if limit is None or limit >= len(items):
        return list(items)
    return [items[k] for k in np.linspace(0, len(items) - 1, limit).round().astype(int)]


if __name__ == "__main__":
    sys.exit(main())
