"""Detail maps against what is known: relief on drawn faces, colours and likeness on portraits.

    python benchmarks/detail.py --data ../shared/data --detail runs/detail/detail.safetensors

Two measurements. Drawn faces that no training drew (another seed) have their true relief and marks: found relief is
compared over the texels that the camera sees, on the true coefficients and on a fit's; faces with marks alone have
to stay flat. Portraits outside the training split of `mien data prepare` have a photo: colour error inside the mask
before and after detail, colour difference of the mean by tone of skin, likeness, landmarks and the maps' soundness.
`--detail fit` measures the optimised maps in place of a network's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from likeness import Portrait, SeenPortrait, measure_portrait, read_portraits, see_portrait, spread
from rich.console import Console
from rich.progress import track

from mien.arrays import Float, Tensor
from mien.detail import CROP_SHARE, DEFAULT_DETAIL, load_detail, predict_maps
from mien.encoder import FaceEncoder, load_encoder
from mien.errors import MienError
from mien.evaluation.colour import ToneGroup, delta_e_2000, lab_of, tone_group, typology_angle_deg
from mien.evaluation.detail import (
    fine_relief,
    laplacian_energy,
    map_saturation,
    relief_correlation,
    relief_rms,
    symmetry_noise,
)
from mien.evaluation.landmarks import landmark_nme
from mien.evaluation.likeness import Drawer, LikenessRow, camera_of, coefficients_of, image_tensor
from mien.evaluation.report import Environment, markdown_table, write_json
from mien.fitting import (
    DetailMaps,
    DetailSettings,
    FitSettings,
    FitTargets,
    Unwrapped,
    fit,
    fit_detail,
    texel_face,
    unwrap_photo,
)
from mien.geometry import unique_edges, vertex_normals
from mien.morphable import FaceCoefficients, MorphableModel, load_model
from mien.reconstruct import Reconstructor
from mien.rendering import FaceSurface, build_surface, landmark_vertices, sample_map, vertex_visibility
from mien.texture_space import TexelAtlas
from mien.training.batch import FaceBatch
from mien.training.detailed import DetailedFaces
from mien.training.population import SkinBank
from mien.training.prepare import PhotoFacts, PreparationSettings, split_of

HELD_OUT_SEED = 20_000_003
"""Runs draw their faces from small seeds."""
BROADEST = 6 / 270
"""Structure broader than a Gaussian of 6 mm, in sides of the chart, is form and not fine relief."""
LEAST_RELIEF_MM = 0.04
"""Root mean square of fine relief over seen texels from which a face counts as folded; two drawn faces in five have it,
the others' pores and fuller cheeks are no wrinkles."""
DEEP_RELIEF_MM = 0.1
"""From which it is an old face's: half of the folded ones, and few lie between."""
LARGEST_DISPLACEMENT_M = 3e-3
"""No skin has deeper relief over the model; a map that reaches it has run away."""
BATCH = 4
RELIEF_BAR, PHOTOMETRIC_BAR, DELTA_E_BAR = 0.6, 0.4, 4.0

MakeMaps = Callable[[TexelAtlas, FaceCoefficients, FaceSurface, Unwrapped], DetailMaps]


@dataclass(frozen=True)
class DrawnFace:
    """One drawn face under one base."""

    name: str
    base: str
    """"true" coefficients, or those of a "fit" to the photographed drawing."""
    true_rms_mm: float
    true_fine_rms_mm: float
    found_rms_mm: float
    correlation: float
    fine_correlation: float
    base_vertex_mm: float
    """Mean distance of the base's seen vertices to the true surface, displacement and all."""
    detail_vertex_mm: float


@dataclass(frozen=True)
class PortraitDetail:
    """One portrait."""

    file: str
    tone: ToneGroup
    likeness: LikenessRow
    base_nme51: float
    detail_nme51: float
    base_delta_e: float
    """CIEDE2000 between the mean colours of photo and drawing inside the mask."""
    detail_delta_e: float
    base_pixel_delta_e: float
    """The mean of CIEDE2000 over the pixels inside the mask."""
    detail_pixel_delta_e: float
    offset_saturation: float
    """Share of texels whose colour leaves [0, 1]."""
    displacement_saturation: float
    base_laplacian_mm2: float
    detail_laplacian_mm2: float
    displacement_asymmetry_mm: float
    offset_asymmetry: float


@dataclass(frozen=True)
class DetailResults:
    drawn: tuple[DrawnFace, ...]
    portraits: tuple[PortraitDetail, ...]


def maps_of_network(model: MorphableModel, path: str) -> MakeMaps:
    network = load_detail(model, path)

    def make(
        atlas: TexelAtlas, coefficients: FaceCoefficients, surface: FaceSurface, unwrapped: Unwrapped
    ) -> DetailMaps:
        return predict_maps(network, texel_face(atlas, model, coefficients, surface), unwrapped)

    return make


def maps_of_fit(model: MorphableModel) -> MakeMaps:
    def make(
        atlas: TexelAtlas, coefficients: FaceCoefficients, surface: FaceSurface, unwrapped: Unwrapped
    ) -> DetailMaps:
        return fit_detail(
            model,
            atlas,
            surface=surface,
            coefficients=coefficients,
            unwrapped=unwrapped,
            settings=DetailSettings(),
        )

    return make


class DrawnBench:
    """Measures maps on drawn faces."""

    def __init__(self, faces: DetailedFaces, encoder: FaceEncoder, make: MakeMaps) -> None:
        self.faces, self.model, self.atlas = faces, faces.model, faces.atlas
        self.encoder, self.make = encoder, make

    def measure(self, numbers: range) -> list[DrawnFace]:
        batch = self.faces.batch(numbers)
        bases = {"true": self._true(batch), "fit": self._fitted(batch)}
        return [row for name, base in bases.items() for row in self._rows(batch, base, name)]

    def _true(self, batch: FaceBatch) -> FaceCoefficients:
        if batch.truth is None:
            raise TypeError("drawn faces come with their truth")
        return batch.truth.coefficients(batch.camera)

    def _fitted(self, batch: FaceBatch) -> FaceCoefficients:
        """What mode auto finds, given the drawing's own points and mask."""
        targets = FitTargets(
            crops=batch.images,
            mask=batch.mask,
            outline=batch.mask,
            exposure=torch.ones(len(batch.images)),
            camera=batch.camera,
            mesh_px=batch.mesh_px,
            landmarks68_px=batch.landmarks68_px,
        )
        with torch.no_grad():
            guess = self.encoder.encode(batch.images, batch.camera, mesh_px=batch.found_px)
        return fit(self.model, targets, settings=FitSettings(), start=guess).coefficients

    def _rows(self, batch: FaceBatch, base: FaceCoefficients, name: str) -> list[DrawnFace]:
        with torch.no_grad():
            surface = build_surface(self.model, base)
            visibility = vertex_visibility(self.model, surface, batch.camera)
            unwrapped = unwrap_photo(
                self.atlas,
                surface,
                photo=torch.cat([batch.images, batch.mask[:, None], batch.mask[:, None]], dim=1),
                vertices_px=batch.camera.project(surface.vertices_camera),
                visibility=visibility,
            )
        found, true = self.make(self.atlas, base, surface, unwrapped), batch.maps
        if true is None:
            raise TypeError("drawn faces come with their maps")
        inside = self.atlas.valid.float()
        weights, height = unwrapped.weights * inside, found.displacement * inside
        known = true.displacement
        scale = BROADEST * len(self.atlas.valid)
        correlation = relief_correlation(height, known, weights=weights, broadest_texels=scale)
        fine = fine_relief(known, weights=weights, broadest_texels=scale)
        errors = self._vertex_errors(batch, surface, height, visibility)
        columns = (
            relief_rms(known, weights=weights) * 1000,
            relief_rms(fine, weights=weights) * 1000,
            relief_rms(height, weights=weights) * 1000,
            correlation.whole,
            correlation.fine,
            *errors,
        )
        return [DrawnFace(face, name, *(float(column[k]) for column in columns)) for k, face in enumerate(batch.names)]

    def _vertex_errors(
        self,
        batch: FaceBatch,
        surface: FaceSurface,
        height: Float[Tensor, "B 1 S S"],
        visibility: Float[Tensor, "B V"],
    ) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        """Mean distances to the true surface, millimetres, in model space: where the head is does not count."""
        if batch.maps is None:
            raise TypeError("drawn faces come with their maps")
        true = build_surface(self.model, self._true(batch))
        wanted = moved(self.model, true.vertices, batch.maps.displacement)
        weights = visibility * self.model.masks.skin
        weights = weights / weights.sum(1, keepdim=True)
        contenders = (surface.vertices, moved(self.model, surface.vertices, height))
        first, second = (((c - wanted).norm(dim=-1) * weights).sum(1) * 1000 for c in contenders)
        return first, second


def moved(
    model: MorphableModel, vertices: Float[Tensor, "B V 3"], displacement: Float[Tensor, "B 1 S S"]
) -> Float[Tensor, "B V 3"]:
    return vertices + sample_map(displacement, model.uv) * vertex_normals(vertices, model.triangles)


def measure_detail(
    seen: SeenPortrait, likeness: LikenessRow, drawer: Drawer, *, file: str, edges: Tensor
) -> PortraitDetail:
    model, face = drawer.model, seen.face
    coefficients = coefficients_of(face)
    surface = build_surface(model, coefficients)
    displacement = torch.from_numpy(face.displacement)[None, None]
    offset = torch.from_numpy(face.texture_offset).permute(2, 0, 1)[None]
    atlas = TexelAtlas.of(model, offset.shape[-1])
    weights = atlas.valid.float()[None, None]
    colours = (atlas.interpolate(surface.albedo) + offset) * weights
    pixels = camera_of(face).project(surface.vertices_camera)
    modelled = pixels[0, landmark_vertices(model, pixels, coefficients.pose.rotmat())[0]].numpy()
    photo, mean_errors, pixel_errors = colour_differences(seen, drawer)
    base_mm, detailed_mm = (v * 1000 for v in (surface.vertices, moved(model, surface.vertices, displacement)))
    return PortraitDetail(
        file=file,
        tone=tone_group(float(typology_angle_deg(photo))),
        likeness=likeness,
        base_nme51=landmark_nme(modelled, seen.landmarks68_px, inner=True),
        detail_nme51=landmark_nme(face.landmarks68, seen.landmarks68_px, inner=True),
        base_delta_e=mean_errors[0],
        detail_delta_e=mean_errors[1],
        base_pixel_delta_e=pixel_errors[0],
        detail_pixel_delta_e=pixel_errors[1],
        offset_saturation=float(map_saturation(colours, low=0.0, high=1.0, weights=weights)),
        displacement_saturation=float(
            map_saturation(displacement, low=-LARGEST_DISPLACEMENT_M, high=LARGEST_DISPLACEMENT_M, weights=weights)
        ),
        base_laplacian_mm2=float(laplacian_energy(base_mm, edges)),
        detail_laplacian_mm2=float(laplacian_energy(detailed_mm, edges)),
        displacement_asymmetry_mm=1000 * float(symmetry_noise(sample_map(displacement, model.uv), model.mirror)),
        offset_asymmetry=float(symmetry_noise(sample_map(offset, model.uv), model.mirror)),
    )


def colour_differences(seen: SeenPortrait, drawer: Drawer) -> tuple[Tensor, list[float], list[float]]:
    """Inside the mask: CIELAB of the photo's mean; CIEDE2000 of the means to it, and the mean of CIEDE2000 over pixels.

    Both differences of the drawings without and with detail.
    """
    photo = image_tensor(seen.pixels)
    drawings = [drawer.draw(seen.face, detail=detail) for detail in (False, True)]
    weight = (drawings[0].covered * drawings[1].covered * seen.mask)[0]
    inside = weight > 0
    shares = weight[inside] / weight[inside].sum()

    def colours(picture: Tensor) -> Tensor:
        return picture[0].permute(1, 2, 0)[inside].clamp(0, 1)

    def mean(picture: Tensor) -> Tensor:
        return lab_of(shares @ colours(picture))

    means = [float(delta_e_2000(mean(d.image), mean(photo))) for d in drawings]
    pixels = [float(shares @ delta_e_2000(lab_of(colours(d.image)), lab_of(colours(photo)))) for d in drawings]
    return mean(photo), means, pixels


def held_out(portraits: Sequence[Portrait], folder: Path) -> list[Portrait]:
    """Neutral portraits of people who are not in the training split of `mien data prepare`."""
    settings = PreparationSettings()

    def facts(portrait: Portrait) -> PhotoFacts:
        name = portrait.path.relative_to(folder).as_posix()
        return PhotoFacts(str(portrait.path), name, portrait.subject, None)

    return [p for p in portraits if not p.smiling and split_of(facts(p), settings) != "train"]


def drawn_report(rows: Sequence[DrawnFace]) -> str:
    lines = []
    for base in ("true", "fit"):
        folded = [r for r in rows if r.base == base and r.true_fine_rms_mm >= LEAST_RELIEF_MM]
        deep = [r for r in folded if r.true_fine_rms_mm >= DEEP_RELIEF_MM]
        flat = [r for r in rows if r.base == base and r.true_rms_mm == 0]
        lines.append(
            [
                base,
                len(folded),
                _spread_of([r.fine_correlation for r in folded], "{:.3f}"),
                len(deep),
                _spread_of([r.fine_correlation for r in deep], "{:.3f}"),
                _spread_of([r.correlation for r in folded], "{:.3f}"),
                _spread_of([r.base_vertex_mm for r in folded], "{:.3f}"),
                _spread_of([r.detail_vertex_mm for r in folded], "{:.3f}"),
                len(flat),
                _spread_of([r.found_rms_mm for r in folded], "{:.3f}"),
                _spread_of([r.found_rms_mm for r in flat], "{:.3f}"),
            ]
        )
    header = ["base", "folded faces", f"fine correlation (≥ {RELIEF_BAR})", "deep ones", "their fine correlation",
              "whole correlation", "vertex error, mm", "with displacement", "flat faces", "relief found on folded, mm",
              "on flat, mm"]  # fmt: skip
    return markdown_table(header, lines)


def _spread_of(values: Sequence[float], form: str) -> str:
    finite = np.array([v for v in values if np.isfinite(v)])
    if len(finite) == 0:
        return "–"
    return f"{form.format(finite.mean())} ± {form.format(finite.std())}"


def portrait_report(rows: Sequence[PortraitDetail]) -> str:
    base, detail = (np.array([getattr(r.likeness, f"{n}_error") for r in rows]) for n in ("base", "detail"))
    gain = 1 - detail.mean() / base.mean()
    pairs = [
        ("photometric error inside the mask", base, detail, "{:.4f}"),
        ("landmark error, NME51 %", [100 * r.base_nme51 for r in rows], [100 * r.detail_nme51 for r in rows], "{:.3f}"),
        ("verified %", [100 * r.likeness.base.verified for r in rows], [100 * r.likeness.detail.verified for r in rows],
         "{:.1f}"),
        ("verified alone %", [100 * r.likeness.base_alone.verified for r in rows],
         [100 * r.likeness.detail_alone.verified for r in rows], "{:.1f}"),
        ("identity distance", [r.likeness.base.distance for r in rows], [r.likeness.detail.distance for r in rows],
         "{:.3f}"),
        ("Laplacian energy, mm²", [r.base_laplacian_mm2 for r in rows], [r.detail_laplacian_mm2 for r in rows],
         "{:.4f}"),
    ]  # fmt: skip
    lines = [[name, _spread_of(a, form), _spread_of(b, form)] for name, a, b, form in pairs]
    sound = [
        ("texels outside [0, 1] %", [100 * r.offset_saturation for r in rows], "{:.3f}"),
        ("texels displaced by 3 mm %", [100 * r.displacement_saturation for r in rows], "{:.3f}"),
        ("asymmetry of displacement, mm", [r.displacement_asymmetry_mm for r in rows], "{:.4f}"),
        ("asymmetry of offset", [r.offset_asymmetry for r in rows], "{:.4f}"),
    ]
    lines += [[name, "", _spread_of(values, form)] for name, values, form in sound]
    table = markdown_table([f"{len(rows)} portraits", "base", "augmented"], lines)
    return f"{table}\n\nPhotometric gain: {100 * gain:.1f} % (bar {100 * PHOTOMETRIC_BAR:.0f} %).\n\n{tone_table(rows)}"


def tone_table(rows: Sequence[PortraitDetail]) -> str:
    groups = sorted({r.tone for r in rows})
    lines = []
    for group in groups:
        of_group = [r for r in rows if r.tone == group]
        lines.append(
            [
                group,
                len(of_group),
                _spread_of([r.base_delta_e for r in of_group], "{:.2f}"),
                _spread_of([r.detail_delta_e for r in of_group], "{:.2f}"),
                _spread_of([r.base_pixel_delta_e for r in of_group], "{:.2f}"),
                _spread_of([r.detail_pixel_delta_e for r in of_group], "{:.2f}"),
            ]
        )
    header = ["tone", "portraits", "ΔE2000 of means, base", f"augmented (≤ {DELTA_E_BAR:g})",
              "mean ΔE2000 of pixels, base", "augmented"]  # fmt: skip
    return markdown_table(header, lines)


def measure_portraits(
    portraits: Sequence[Portrait], reconstructor: Reconstructor, console: Console
) -> list[PortraitDetail]:
    drawer, edges = Drawer(reconstructor.model), unique_edges(reconstructor.model.triangles)
    rows = []
    for portrait in track(portraits, "portraits", console=console):
        try:
            seen = see_portrait(portrait, reconstructor)
        except MienError as error:
            console.print(f"{portrait.path.name}: {error}")
            continue
        likeness = measure_portrait(seen, reconstructor, drawer)
        with torch.no_grad():
            rows.append(measure_detail(seen, likeness, drawer, file=portrait.path.name, edges=edges))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with photos_ccby")
    parser.add_argument("--detail", default=DEFAULT_DETAIL, help="a detail network's file, or fit")
    parser.add_argument("--mode", default="auto", help="how coefficients of portraits are found")
    parser.add_argument("--faces", type=int, default=64, help="drawn faces")
    parser.add_argument("--map-size", type=int, default=224)
    parser.add_argument("--skins", type=Path, help="file of `mien data skins` for drawn faces to wear")
    parser.add_argument("--limit", type=int, help="number of portraits")
    parser.add_argument("--jobs", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.jobs)
    console = Console(stderr=True)
    model = load_model()
    print(f"{Environment.current()}\n")
    skins = None if options.skins is None else SkinBank.load(options.skins, model)
    size = round(CROP_SHARE * options.map_size)
    faces = DetailedFaces(model, size=size, map_size=options.map_size, seed=HELD_OUT_SEED, skins=skins)
    make = maps_of_fit(model) if options.detail == "fit" else maps_of_network(model, options.detail)
    bench = DrawnBench(faces, load_encoder(model), make)
    starts = range(0, options.faces, BATCH)
    parts = [
        bench.measure(range(k, min(k + BATCH, options.faces))) for k in track(starts, "drawn faces", console=console)
    ]
    drawn = [row for part in parts for row in part]
    print(f"{drawn_report(drawn)}\n")
    folder = options.data / "photos_ccby"
    portraits = spread(held_out(read_portraits(folder), folder), options.limit)
    reconstructor = Reconstructor(
        model,
        mode=options.mode,
        detail=True,
        resolution=options.map_size,
        max_faces=1,
        detail_mode="fit" if options.detail == "fit" else "net",
        detail_network=DEFAULT_DETAIL if options.detail == "fit" else options.detail,
    )
    rows = measure_portraits(portraits, reconstructor, console)
    print(portrait_report(rows))
    if options.json:
        results = DetailResults(tuple(drawn), tuple(rows))
        write_json(options.json, environment=Environment.current(), results=results)
    return int(len(rows) < len(portraits))


if __name__ == "__main__":
    sys.exit(main())
