"""Measures detail maps: relief on synthetic faces; colours and likeness on portraits.

    python benchmarks/detail.py --data ../shared/data --detail runs/detail/detail.safetensors

Two measurements. Synthetic faces that no training used (another seed) have known relief and blemishes: predicted relief
is compared with it on visible texels, once with ground-truth coefficients and once with those of a fit. Faces with
blemishes only must stay flat. For portraits outside the training split of `mien data prepare`, the photo is the
reference: colour error inside the mask before and after detail, colour difference of the mean by skin tone, likeness,
landmarks and soundness of the maps. `--detail fit` measures optimised maps instead of a network's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import mien  # noqa: F401  (before torch: see mien.threads)

# isort: split
import numpy as np
import torch
from detail_metrics import laplacian_energy, map_saturation, relief_rms, symmetry_noise
from detail_tables import DetailResults, PortraitDetail, SyntheticFaceDetail, portrait_report, synthetic_report
from likeness import Portrait, ReconstructedPortrait, measure_portrait, read_portraits, reconstruct_portrait, spread
from likeness_metrics import FaceRenderer, LikenessRow, camera_of, coefficients_of, image_tensor
from rich.console import Console
from rich.progress import track
from skimage.color import deltaE_ciede2000, rgb2lab
from skin_tone import tone_group, typology_angle_deg

from mien.errors import MienError
from mien.evaluation.detail import fine_relief, relief_correlation
from mien.evaluation.landmarks import landmark_nme
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
from mien.training.data.prepare import PhotoEntry, PreparationSettings, assign_split
from mien.training.synthetic.detailed_faces import DetailedFaces
from mien.training.synthetic.population import SkinBank
from mien.typing import Float, Tensor

HELD_OUT_SEED = 20_000_003
"""Training runs use small seeds."""
BROADEST = 6 / 270
"""Standard deviation of the Gaussian that separates form from fine relief: 6 mm, as a share of the UV map's side."""
LARGEST_DISPLACEMENT_M = 3e-3
"""No skin has deeper relief over the model; a map that reaches this value has diverged."""
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


class SyntheticBench:
    """Measures maps on synthetic faces."""

    def __init__(self, faces: DetailedFaces, encoder: FaceEncoder, make: MakeMaps) -> None:
        self.faces, self.model, self.atlas = faces, faces.model, faces.atlas
        self.encoder, self.make = encoder, make

    def measure(self, numbers: range) -> list[SyntheticFaceDetail]:
        batch = self.faces.batch(numbers)
        bases = {"gt": self._gt(batch), "fit": self._fitted(batch)}
        return [row for name, base in bases.items() for row in self._rows(batch, base, name)]

    def _gt(self, batch: FaceBatch) -> FaceCoefficients:
        if batch.gt is None:
            raise TypeError("synthetic faces come with ground-truth coefficients")
        return batch.gt.coefficients(batch.camera)

    def _fitted(self, batch: FaceBatch) -> FaceCoefficients:
        """The coefficients of mode auto, given the ground-truth points and mask."""
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

    def _rows(self, batch: FaceBatch, base: FaceCoefficients, name: str) -> list[SyntheticFaceDetail]:
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
        predicted, gt = self.make(self.atlas, base, surface, unwrapped), batch.maps
        if gt is None:
            raise TypeError("synthetic faces come with ground-truth maps")
        inside = self.atlas.valid.float()
        weights, height = unwrapped.weights * inside, predicted.displacement * inside
        scale = BROADEST * len(self.atlas.valid)
        correlation = relief_correlation(height, gt.displacement, weights=weights, broadest_texels=scale)
        fine = fine_relief(gt.displacement, weights=weights, broadest_texels=scale)
        errors = self._vertex_errors(batch, surface, height, visibility)
        columns = (
            relief_rms(gt.displacement, weights=weights) * 1000,
            relief_rms(fine, weights=weights) * 1000,
            relief_rms(height, weights=weights) * 1000,
            correlation.whole.correlation,
            correlation.fine.correlation,
            *(m * 1e6 for m in (correlation.fine.covariance, correlation.fine.predicted_variance)),
            correlation.fine.gt_variance * 1e6,
            *errors,
        )
        return [
            SyntheticFaceDetail(face, name, *(float(column[k]) for column in columns))
            for k, face in enumerate(batch.names)
        ]

    def _vertex_errors(
        self,
        batch: FaceBatch,
        surface: FaceSurface,
        height: Float[Tensor, "B 1 S S"],
        visibility: Float[Tensor, "B V"],
    ) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        """Mean distances to the ground-truth surface in millimetres, in model space, so that pose does not count."""
        if batch.maps is None:
            raise TypeError("synthetic faces come with ground-truth maps")
        gt = build_surface(self.model, self._gt(batch))
        gt_vertices = displaced(self.model, gt.vertices, batch.maps.displacement)
        weights = visibility * self.model.masks.skin
        weights = weights / weights.sum(1, keepdim=True)
        candidates = (surface.vertices, displaced(self.model, surface.vertices, height))
        first, second = (((c - gt_vertices).norm(dim=-1) * weights).sum(1) * 1000 for c in candidates)
        return first, second


def displaced(
    model: MorphableModel, vertices: Float[Tensor, "B V 3"], displacement: Float[Tensor, "B 1 S S"]
) -> Float[Tensor, "B V 3"]:
    return vertices + sample_map(displacement, model.uv) * vertex_normals(vertices, model.triangles)


def measure_detail(
    portrait: ReconstructedPortrait, likeness: LikenessRow, renderer: FaceRenderer, *, file: str, edges: Tensor
) -> PortraitDetail:
    model, face = renderer.model, portrait.face
    coefficients = coefficients_of(face)
    surface = build_surface(model, coefficients)
    displacement = torch.from_numpy(face.displacement)[None, None]
    offset = torch.from_numpy(face.texture_offset).permute(2, 0, 1)[None]
    atlas = TexelAtlas.of(model, offset.shape[-1])
    weights = atlas.valid.float()[None, None]
    colours = (atlas.interpolate(surface.albedo) + offset) * weights
    pixels = camera_of(face).project(surface.vertices_camera)
    modelled = pixels[0, landmark_vertices(model, pixels, coefficients.pose.rotmat())[0]].numpy()
    photo, mean_errors, pixel_errors = colour_differences(portrait, renderer)
    coarse_mm, detailed_mm = (v * 1000 for v in (surface.vertices, displaced(model, surface.vertices, displacement)))
    return PortraitDetail(
        file=file,
        tone=tone_group(float(typology_angle_deg(photo))),
        likeness=likeness,
        coarse_nme51=landmark_nme(modelled, portrait.landmarks68_px, inner=True),
        detail_nme51=landmark_nme(face.landmarks68, portrait.landmarks68_px, inner=True),
        coarse_delta_e=mean_errors[0],
        detail_delta_e=mean_errors[1],
        coarse_pixel_delta_e=pixel_errors[0],
        detail_pixel_delta_e=pixel_errors[1],
        offset_saturation=float(map_saturation(colours, low=0.0, high=1.0, weights=weights)),
        displacement_saturation=float(
            map_saturation(displacement, low=-LARGEST_DISPLACEMENT_M, high=LARGEST_DISPLACEMENT_M, weights=weights)
        ),
        coarse_laplacian_mm2=float(laplacian_energy(coarse_mm, edges)),
        detail_laplacian_mm2=float(laplacian_energy(detailed_mm, edges)),
        displacement_asymmetry_mm=1000 * float(symmetry_noise(sample_map(displacement, model.uv), model.mirror)),
        offset_asymmetry=float(symmetry_noise(sample_map(offset, model.uv), model.mirror)),
    )


def colour_differences(
    portrait: ReconstructedPortrait, renderer: FaceRenderer
) -> tuple[np.ndarray, list[float], list[float]]:
    """Colour differences to the photo inside the mask, of the renderings without and with detail.

    Returns the CIELAB colour of the photo's mean, CIEDE2000 between mean colours, and the mean CIEDE2000 over pixels.
    """
    photo = image_tensor(portrait.pixels)
    renderings = [renderer.render(portrait.face, detail=detail) for detail in (False, True)]
    weight = (renderings[0].covered * renderings[1].covered * portrait.mask)[0]
    inside = weight > 0
    shares = (weight[inside] / weight[inside].sum()).double().numpy()

    def colours(picture: Tensor) -> np.ndarray:
        return picture[0].permute(1, 2, 0)[inside].clamp(0, 1).double().numpy()

    def mean(picture: Tensor) -> np.ndarray:
        return rgb2lab(shares @ colours(picture))

    photo_lab = rgb2lab(colours(photo))
    means = [float(deltaE_ciede2000(mean(r.image), mean(photo))) for r in renderings]
    pixels = [float(shares @ deltaE_ciede2000(rgb2lab(colours(r.image)), photo_lab)) for r in renderings]
    return mean(photo), means, pixels


def held_out(portraits: Sequence[Portrait], folder: Path) -> list[Portrait]:
    """Neutral portraits of people who are not in the training split of `mien data prepare`."""
    settings = PreparationSettings()

    def facts(portrait: Portrait) -> PhotoEntry:
        name = portrait.path.relative_to(folder).as_posix()
        return PhotoEntry(str(portrait.path), name, portrait.subject, None)

    return [p for p in portraits if not p.smiling and assign_split(facts(p), settings) != "train"]


def measure_portraits(
    portraits: Sequence[Portrait], reconstructor: Reconstructor, console: Console
) -> list[PortraitDetail]:
    renderer, edges = FaceRenderer(reconstructor.model), unique_edges(reconstructor.model.triangles)
    rows = []
    for portrait in track(portraits, "portraits", console=console):
        try:
            result = reconstruct_portrait(portrait, reconstructor)
        except MienError as error:
            console.print(f"{portrait.path.name}: {error}")
            continue
        likeness = measure_portrait(result, reconstructor, renderer)
        with torch.no_grad():
            rows.append(measure_detail(result, likeness, renderer, file=portrait.path.name, edges=edges))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with photos_ccby")
    parser.add_argument("--detail", default=DEFAULT_DETAIL, help="file of a detail network, or fit")
    parser.add_argument("--mode", default="auto", help="reconstruction mode of the portraits")
    parser.add_argument("--faces", type=int, default=64, help="synthetic faces")
    parser.add_argument("--map-size", type=int, default=224)
    parser.add_argument("--skins", type=Path, help="file of `mien data skins` with skins of the synthetic faces")
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
    bench = SyntheticBench(faces, load_encoder(model), make)
    starts = range(0, options.faces, BATCH)
    parts = [
        bench.measure(range(k, min(k + BATCH, options.faces)))
        for k in track(starts, "synthetic faces", console=console)
    ]
    synthetic = [row for part in parts for row in part]
    print(f"{synthetic_report(synthetic)}\n")
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
        results = DetailResults(tuple(synthetic), tuple(rows))
        write_json(options.json, environment=Environment.current(), results=results)
    return int(len(rows) < len(portraits))


if __name__ == "__main__":
    sys.exit(main())
