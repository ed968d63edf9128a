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
from pathlib import Path

import torch
from detail_tables import DetailResults, DrawnFace, PortraitDetail, drawn_report, portrait_report
from likeness import Portrait, SeenPortrait, measure_portrait, read_portraits, see_portrait, spread
from rich.console import Console
from rich.progress import track

from mien.errors import MienError
from mien.evaluation.colour import delta_e_2000, lab_of, tone_group, typology_angle_deg
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
from mien.evaluation.report import Environment, write_json
from mien.fitting import DetailSettings, FitSettings, FitTargets, fit, fit_detail
from mien.geometry import unique_edges, vertex_normals
from mien.morphable import FaceCoefficients, MorphableModel, landmark_vertices, load_model
from mien.networks import DEFAULT_DETAIL, FaceEncoder, load_detail, load_encoder, predict_maps
from mien.networks.detail_unet import CROP_SHARE
from mien.pipeline import Reconstructor
from mien.rendering import FaceSurface, build_surface, sample_map, vertex_visibility
from mien.texture import DetailMaps, TexelAtlas, Unwrapped, texel_face, unwrap_photo
from mien.training.data.batch import FaceBatch
from mien.training.data.prepare import PhotoFacts, PreparationSettings, split_of
from mien.training.synthetic.detailed_faces import DetailedFaces
from mien.training.synthetic.population import SkinBank
from mien.typing import Float, Tensor

HELD_OUT_SEED = 20_000_003
"""Runs draw their faces from small seeds."""
BROADEST = 6 / 270
"""Structure broader than a Gaussian of 6 mm, in sides of the chart, is form and not fine relief."""
LARGEST_DISPLACEMENT_M = 3e-3
"""No skin has deeper relief over the model; a map that reaches it has run away."""
BATCH = 4

MakeMaps = Callable[[TexelAtlas, FaceCoefficients, FaceSurface, Unwrapped], DetailMaps]


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
        if batch.gt is None:
            raise TypeError("drawn faces come with their truth")
        return batch.gt.coefficients(batch.camera)

    def _fitted(self, batch: FaceBatch) -> FaceCoefficients:
        """What mode auto finds, given the drawing's own points and mask."""
        targets = FitTargets(
            crops=batch.images,
            mask=batch.mask,
            outline=batch.mask,
            exposure=torch.ones(len(batch.images)),
            camera=batch.camera,
            landmarks468_px=batch.gt_px,
            landmarks68_px=batch.landmarks68_px,
        )
        with torch.no_grad():
            guess = self.encoder.encode(batch.images, batch.camera, landmarks468_px=batch.detected_px)
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
            correlation.whole.correlation,
            correlation.fine.correlation,
            *(m * 1e6 for m in (correlation.fine.covariance, correlation.fine.found_variance)),
            correlation.fine.true_variance * 1e6,
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
