"""Surface error on heads that the packaged model was not made from.

    python benchmarks/shape.py --data ../shared/data

renders 24 ICT heads (benchmarks/ict_heads.py), reconstructs every picture, aligns each candidate surface to the
ground-truth head by the similarity with the least squared distances, and prints the distances from ground-truth points
to it in millimetres at the ICT head's own size. docs/benchmarks.md explains what is measured and why.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import mien  # noqa: F401  (before torch: see mien.threads)

# isort: split
import numpy as np
import torch
from ict_heads import (
    DARK,
    FOVS_DEG,
    POSES_DEG,
    Head,
    HeadPainter,
    IctModel,
    contact_sheet,
    sample_heads,
    save_photograph,
    simulate_camera,
)
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track

from mien.errors import MienError
from mien.evaluation.report import Environment, markdown_table, write_json
from mien.evaluation.shape import Alignment, DistanceSummary, align_surface
from mien.export.contact_sheet import SheetLayout, in_rows
from mien.export.contact_sheet import contact_sheet as grid
from mien.fitting import FitSettings
from mien.geometry import Surface, submesh, vertex_areas
from mien.morphable import MorphableModel
from mien.morphable.landmark_tables import (
    IBUG_BROWS,
    IBUG_CHIN,
    IBUG_INNER,
    IBUG_LEFT_NOSTRIL,
    IBUG_LOWER_LIDS,
    IBUG_LOWER_LIP,
    IBUG_MOUTH_CORNERS,
    IBUG_NOSE_BASE,
    IBUG_NOSE_ROOT,
    IBUG_NOSE_TIP,
    IBUG_OUTER_EYE_CORNERS,
)
from mien.pipeline import Reconstructor
from mien.rasterizer import rasterize_hard
from mien.result import Reconstruction
from mien.typing import Float, Int, Tensor

REACH_MM = 95.0
"""The measured region: ICT's narrow face within this distance of the nose tip, which is 5 mm above the hairline and
reaches to the cheek's outer edge and under the chin."""
REGIONS = ("nose", "mouth", "cheeks", "forehead", "chin", "eyes")
_ALIGNING_EVERY = 4
"""Every fourth point while aligning: 1,200 points move a mean of 2.1 mm by at most 0.02 mm."""


@dataclass(frozen=True)
class MeasuredRegion:
    """Which points of ICT's mesh are measured, and to which part of the face each belongs."""

    vertices: Int[Tensor, "P"]
    part: Int[Tensor, "P"]
    """Index into REGIONS."""
    triangles: Int[Tensor, "T 3"]
    """Of the whole region, for its areas and pictures."""

    @classmethod
    def of(cls, ict: IctModel) -> MeasuredRegion:
        landmarks = ict.mean[ict.landmarks68]
        points = ict.narrow_face
        near = (points - landmarks[IBUG_NOSE_TIP]).norm(dim=-1) < REACH_MM
        near &= ~_hidden(ict)[: len(points)]
        kept = torch.zeros(len(ict.mean), dtype=torch.bool)
        kept[: len(points)] = near
        vertices = kept.nonzero()[:, 0]
        return cls(vertices, _parts(ict.mean[vertices], landmarks), submesh(ict.skin_triangles, kept))


def _hidden(ict: IctModel) -> Tensor:
    """Skin that no photo shows: inside the nostrils and behind the lips, where rays to the front hit other skin."""
    points = ict.mean
    depth = 10_000 - points[:, 2]
    ndc = torch.stack([points[:, 0] / 130, points[:, 1] / 130, depth], dim=-1)
    size = 512
    rendered = rasterize_hard(ndc[None], ict.triangles, image_size=(size, size), near=9_000.0, far=11_000.0)
    pixel = ((ndc[:, :2] + 1) / 2 * size).long().clamp(0, size - 1)
    front = rendered.depth[0][pixel[:, 1], pixel[:, 0]]
    # Only in the middle of the face: elsewhere, hidden skin may become visible when the head turns.
    landmarks = points[ict.landmarks68]
    middle = (
        (points[:, 0].abs() < landmarks[IBUG_MOUTH_CORNERS[1], 0] + 5)
        # The nostrils' cavities end 5 mm above the tip's height; the lids begin 30 mm above it.
        & (points[:, 1] < landmarks[IBUG_NOSE_TIP, 1] + 12)
        & (points[:, 1] > landmarks[IBUG_LOWER_LIP, 1] - 5)
    )
    return middle & (depth > front + 4.0)


def _parts(points: Float[Tensor, "P 3"], landmarks: Float[Tensor, "68 3"]) -> Int[Tensor, "P"]:
    """Boxes on the mean face, in this order of precedence: nose, mouth, chin, forehead, eyes, else cheeks."""
    side, height = points[:, 0].abs(), points[:, 1]
    brow = landmarks[IBUG_BROWS, 1].amin()
    lids = landmarks[list(IBUG_LOWER_LIDS), 1].amin() - 6
    under_lip = (landmarks[IBUG_LOWER_LIP, 1] + landmarks[IBUG_CHIN, 1]) / 2 + 4
    nose_base = landmarks[IBUG_NOSE_BASE, 1] - 2
    up = (height - nose_base) / (landmarks[IBUG_NOSE_ROOT, 1] - nose_base)
    nose = (up > 0) & (up < 1) & (side < (landmarks[IBUG_LEFT_NOSTRIL, 0] + 9) * (1 - 0.6 * up))
    mouth = (height <= nose_base) & (height > under_lip) & (side < landmarks[IBUG_MOUTH_CORNERS[1], 0] + 7)
    chin = (height <= under_lip) & (side < landmarks[IBUG_MOUTH_CORNERS[1], 0] + 7)
    forehead = height > brow
    eyes = (height > lids) & (side < landmarks[IBUG_OUTER_EYE_CORNERS[1], 0] + 8)
    part = torch.full((len(points),), REGIONS.index("cheeks"))
    for name, inside in reversed(
        list({"nose": nose, "mouth": mouth, "chin": chin, "forehead": forehead, "eyes": eyes}.items())
    ):
        part[inside] = REGIONS.index(name)
    return part


@dataclass(frozen=True)
class GtHead:
    """One ground-truth head: measured points, weights, landmarks and all vertices; millimetres."""

    points: Float[Tensor, "P 3"]
    weights: Float[Tensor, "P"]
    landmarks: Float[Tensor, "51 3"]
    vertices: Float[Tensor, "V 3"]

    @classmethod
    def of(cls, ict: IctModel, region: MeasuredRegion, head: Head) -> GtHead:
        vertices = ict.vertices(head.identity, head.expression)
        areas = vertex_areas(vertices, region.triangles)[region.vertices]
        return cls(vertices[region.vertices], areas, vertices[ict.landmarks68[IBUG_INNER]], vertices)


@dataclass(frozen=True)
class Candidate:
    """A surface that is compared with the head, in any unit and pose, with its 51 inner landmarks."""

    name: str
    surface: Surface
    landmarks: Float[Tensor, "51 3"]

    def align(self, gt: GtHead) -> Alignment:
        return align_surface(
            self.surface, gt.points, weights=gt.weights, landmarks=self.landmarks,
            gt_landmarks=gt.landmarks, every=_ALIGNING_EVERY,
        )  # fmt: skip


def ict_mean_candidate(ict: IctModel) -> Candidate:
    return Candidate("ICT mean face", Surface(ict.mean, ict.skin_triangles), ict.mean[ict.landmarks68[IBUG_INNER]])


def model_mean_candidate(model: MorphableModel) -> Candidate:
    return Candidate(
        "mien mean face", Surface(model.mean, _skin_triangles(model)), model.mean[model.landmarks68[IBUG_INNER]]
    )


def reconstruction_candidate(name: str, model: MorphableModel, face: Reconstruction) -> Candidate:
    vertices = torch.from_numpy(face.vertices_model)
    landmarks = vertices[torch.from_numpy(face.landmarks68_vertices).long()[IBUG_INNER]]
    return Candidate(name, Surface(vertices, _skin_triangles(model)), landmarks)


def _skin_triangles(model: MorphableModel) -> Tensor:
    masks = model.masks
    return submesh(model.triangles, (masks.eyes < 0.5) & (masks.mouth < 0.5))


@dataclass(frozen=True)
class HeadResult:
    """The distances of one candidate on one head; millimetres."""

    head: str
    candidate: str
    whole: DistanceSummary
    regions: tuple[DistanceSummary, ...]
    """In the order of REGIONS."""

    @classmethod
    def of(
        cls, head: Head, candidate: Candidate, alignment: Alignment, *, gt: GtHead, region: MeasuredRegion
    ) -> HeadResult:
        parts = [
            DistanceSummary.of(alignment.distances[region.part == k], gt.weights[region.part == k])
            for k in range(len(REGIONS))
        ]
        return cls(head.name, candidate.name, DistanceSummary.of(alignment.distances, gt.weights), tuple(parts))


def summary_table(results: Sequence[HeadResult]) -> str:
    """One row per candidate: means over the heads, and the standard deviation of the heads' means."""
    rows = []
    candidates = list(dict.fromkeys(r.candidate for r in results))
    reference = np.mean([r.whole.mean for r in results if r.candidate == "ICT mean face"])
    for name in candidates:
        own = [r for r in results if r.candidate == name]
        means = np.array([r.whole.mean for r in own])
        regions = [np.mean([r.regions[k].mean for r in own]) for k in range(len(REGIONS))]
        rows.append(
            [
                name,
                len(own),
                *(f"{np.mean([getattr(r.whole, key) for r in own]):.2f}" for key in ("mean", "median", "p90")),
                f"{means.std():.2f}",
                f"{means.max():.2f}",
                *(f"{value:.2f}" for value in regions),
                f"{100 * (1 - means.mean() / reference):+.0f} %",
            ]
        )
    return markdown_table(
        ["surface", "heads", "mean", "median", "p90", "SD over heads", "worst head", *REGIONS, "below ICT mean"], rows
    )


def breakdown_table(results: Sequence[HeadResult], heads: Sequence[Head]) -> str:
    """Mean errors by what was done to the photo."""
    groups = [(f"yaw {yaw}°", [abs(POSES_DEG[h.pose_index][0]) == yaw for h in heads]) for yaw in (0, 25, 45)]
    groups += [(f"field of view {fov:.0f}°", [h.fov_deg == fov for h in heads]) for fov in FOVS_DEG]
    groups += [("grey", [h.grey for h in heads]), ("under-exposed", [h.exposure < DARK for h in heads])]
    candidates = list(dict.fromkeys(r.candidate for r in results))
    rows = []
    for title, chosen in groups:
        names = {head.name for head, taken in zip(heads, chosen, strict=True) if taken}
        own = [[r.whole.mean for r in results if r.candidate == c and r.head in names] for c in candidates]
        rows.append([title, len(names), *(f"{np.mean(values):.2f}" if values else "-" for values in own)])
    return markdown_table(["photos", "number", *candidates], rows)


def head_table(results: Sequence[HeadResult]) -> str:
    candidates = list(dict.fromkeys(r.candidate for r in results))
    found = {(r.head, r.candidate): r for r in results}
    heads = list(dict.fromkeys(r.head for r in results))
    rows = [[h, *(f"{found[h, c].whole.mean:.2f}" if (h, c) in found else "-" for c in candidates)] for h in heads]
    return markdown_table(["head", *candidates], rows)


def profiles_picture(rows: Sequence[tuple[Path, GtHead, Sequence[Alignment]]], *, ict: IctModel, path: Path) -> None:
    """For each head its photo and its profile from the side: ground truth black, candidates in colours."""
    side, scale, columns = 380, 1.8, 3
    colours = ((200, 30, 30), (150, 150, 160))
    tiles = []
    for photo_path, gt, alignments in rows:
        with Image.open(photo_path) as photo:
            shown = photo.convert("RGB").resize((round(side * photo.width / photo.height), side))
        tile = Image.new("RGB", (shown.width + 240, side), "white")
        tile.paste(shown)
        draw = ImageDraw.Draw(tile)
        nose = gt.vertices[ict.landmarks68[IBUG_NOSE_TIP]]
        lines = [*zip((a.surface for a in alignments), colours, strict=True)]
        lines = [*reversed(lines), (Surface(gt.vertices, ict.skin_triangles), (0, 0, 0))]
        for surface, colour in lines:
            line = _profile(surface, nose, scale=scale, rows=side)
            draw.line([(shown.width + x, y) for x, y in line], fill=colour, width=2)
        for k, (text, colour) in enumerate(
            [("ground truth", (0, 0, 0)), ("reconstruction", colours[0]), ("ICT mean face", colours[1])]
        ):
            draw.text((shown.width + 10, 10 + 14 * k), text, fill=colour)
        tiles.append(tile)
    layout = SheetLayout(background=(255, 255, 255))
    sheet = grid(in_rows([np.asarray(tile) for tile in tiles], columns), layout, columns=columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path, optimize=True)


def _profile(surface: Surface, nose: Tensor, *, scale: float, rows: int) -> list[tuple[float, float]]:
    """The front-most point at each height within 80 mm of the nose tip, as pixels with +z to the right."""
    corners = surface.vertices[surface.triangles] - nose
    steps = torch.linspace(0, 1, 12)
    u, v = (g.flatten() for g in torch.meshgrid(steps, steps, indexing="ij"))
    inside = u + v <= 1
    weights = torch.stack([1 - u - v, u, v], dim=-1)[inside]
    near = corners[(corners[:, :, 0].abs().amin(1) < 40) & (corners[:, :, 1].abs().amin(1) < 90)]
    points = torch.einsum("kc,tcd->tkd", weights, near).flatten(0, 1)
    height = points[:, 1].round().long()
    line = []
    for y in range(85, -95, -1):
        depth = points[height == y, 2]
        if len(depth):
            line.append((200 + scale * float(depth.max()), rows / 2 - scale * y))
    return line


def ablated(settings: FitSettings, changes: Sequence[str]) -> FitSettings:
    """Settings with NAME=VALUE changes; exits with the list of names for an unknown one."""
    kinds = {f.name: type(getattr(settings, f.name)) for f in fields(settings)}
    values = {}
    for change in changes:
        name, _, value = change.partition("=")
        if name not in kinds:
            raise SystemExit(f"--ablate {change}: no such setting; there are {', '.join(kinds)}.")
        values[name] = value.lower() in {"1", "true"} if kinds[name] is bool else kinds[name](value)
    return replace(settings, **values)


def pictures(ict: IctModel, model: MorphableModel, heads: Sequence[Head], *, folder: Path, fresh: bool) -> list[Path]:
    """The rendered photos; kept between runs as long as the model's colours stay."""
    made_from = hashlib.sha256(model.albedo_mean.numpy().tobytes())
    made_from.update(Path(__file__).with_name("ict_heads.py").read_bytes())
    folder = folder / f"heads-{made_from.hexdigest()[:8]}"
    paths = [folder / f"{head.name}.jpg" for head in heads]
    missing = [k for k, path in enumerate(paths) if fresh or not path.with_suffix(".focal").exists()]
    if missing:
        painter = HeadPainter(ict, model)
        for k in track(missing, description="rendering heads", console=Console(stderr=True)):
            save_photograph(simulate_camera(ict, painter, heads[k]), paths[k])
        contact_sheet(paths, folder / "contact_sheet.png")
    return paths


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with ict_facekit.npz")
    parser.add_argument(
        "--out", type=Path, default=Path("out/shape"), help="folder of the pictures (default %(default)s)"
    )
    parser.add_argument("--limit", type=int, default=24, help="number of heads")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--focal", choices=list(RUNS), default="exif",
                        help="give the true focal length as EXIF would, or let 0.8 m be assumed, or both")  # fmt: skip
    parser.add_argument("--detail", action="store_true", help="with the displacement map")
    parser.add_argument("--mode", default="fit", help="of the reconstructions: fit, net or auto")
    parser.add_argument("--ablate", action="append", default=[], metavar="NAME=VALUE", help="change FitSettings")
    parser.add_argument("--jobs", type=int, default=1, help="threads of torch")
    parser.add_argument("--fresh", action="store_true", help="render the pictures again")
    parser.add_argument("--render-only", action="store_true")
    parser.add_argument("--heads", action="store_true", help="print every head too")
    parser.add_argument("--profiles", type=Path, help="write the side views of six heads here (.png)")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


KNOWN_FOCAL, ASSUMED_FOCAL = "mien", "mien, 0.8 m assumed"
RUNS = {"exif": (KNOWN_FOCAL,), "default": (ASSUMED_FOCAL,), "both": (KNOWN_FOCAL, ASSUMED_FOCAL)}


def reconstructions(path: Path, reconstructor: Reconstructor, *, runs: Sequence[str]) -> list[Candidate]:
    """One candidate per run; raises MienError if a picture is not reconstructed."""
    focal = float(path.with_suffix(".focal").read_text(encoding="utf-8"))
    return [
        reconstruction_candidate(
            name, reconstructor.model, reconstructor(path, focal_px=focal if name == KNOWN_FOCAL else None)[0]
        )
        for name in runs
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    torch.set_num_threads(options.jobs)
    console = Console(stderr=True)
    ict = IctModel.load(options.data / "ict_facekit.npz")
    settings = ablated(FitSettings(), options.ablate)
    reconstructor = Reconstructor(detail=options.detail, max_faces=1, mode=options.mode, settings=settings)
    model = reconstructor.model
    heads = sample_heads(ict, albedo_count=model.counts[2], seed=options.seed)[: options.limit]
    paths = pictures(ict, model, heads, folder=options.out, fresh=options.fresh)
    if options.render_only:
        return 0
    region = MeasuredRegion.of(ict)
    baselines = [ict_mean_candidate(ict), model_mean_candidate(model)]
    results: list[HeadResult] = []
    shown: list[tuple[Path, GtHead, Sequence[Alignment]]] = []
    for head, path in track(list(zip(heads, paths, strict=True)), "reconstructing", console=console):
        gt = GtHead.of(ict, region, head)
        try:
            candidates = [*baselines, *reconstructions(path, reconstructor, runs=RUNS[options.focal])]
        except MienError as error:
            console.print(f"{head.name}: {error}")
            candidates = baselines
        alignments = [c.align(gt) for c in candidates]
        results += [
            HeadResult.of(head, c, a, gt=gt, region=region) for c, a in zip(candidates, alignments, strict=True)
        ]
        if len(candidates) > len(baselines):
            shown.append((path, gt, [alignments[len(baselines)], alignments[0]]))
    print(f"{Environment.current()}\n\n{summary_table(results)}\n\n{breakdown_table(results, heads)}\n")
    if options.heads:
        print(head_table(results) + "\n")
    if len(shown) < len(heads):
        print(f"{len(heads) - len(shown)} pictures were not reconstructed.\n")
    if options.profiles and shown:
        profiles_picture(shown[:6], ict=ict, path=options.profiles)
    if options.json:
        write_json(options.json, environment=Environment.current(), results=results)
    return int(len(shown) < len(heads))


if __name__ == "__main__":
    sys.exit(main())
