"""The augmented branch: what the U-Net adds to a frozen base reconstruction (eq. 8 to 12).

crop ── frozen encoder ──► base ──┬── unwrapped photo, base on the chart ──► U-Net ──► offset, displacement
                                  └── texels: (albedo + offset) · shading(displaced normal) against the photo   (eq. 4)
                                      vertices: drawn with the maps sampled at their UV     (eq. 4, 5, 6, 10, 11)
                                      maps: magnitude, symmetry (eq. 8, 9); of drawn faces also the truth
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mien.errors import ConfigError
from mien.evaluation.detail import relief_correlation
from mien.fitting import FitSettings, FitTargets, fit
from mien.fitting.photometric import recognition_features
from mien.geometry import unique_edges
from mien.losses import (
    identity_loss,
    landmark_loss,
    magnitude_loss,
    mesh_smoothness_loss,
    photometric_loss,
    symmetry_loss,
)
from mien.morphable import FaceCoefficients, MorphableModel, landmark_vertices
from mien.networks import DetailNetwork, FaceEncoder, load_detail
from mien.networks.crop_space import HEAD_UNITS
from mien.networks.detail_unet import LEAST_LIGHT, texture_inputs, where_seen
from mien.perception import IdentityNetwork
from mien.rendering import FaceSurface, RenderOutput, build_surface, draw_texture, render, sample_map, vertex_visibility
from mien.texture import (
    DetailMaps,
    TexelAtlas,
    TexelFace,
    Unwrapped,
    along_normal,
    texel_face,
    unwrap_photo,
    vertex_detail,
)
from mien.training.config import DetailBaseSettings, DetailLossSettings, DetailNetworkSettings
from mien.training.contact_sheets import DETAIL_LABELS, detail_sheet
from mien.training.data.batch import FaceBatch, join_batches, resized
from mien.training.objective import LossTerm, Metric
from mien.typing import Float, Tensor, UInt8

MM_PER_M, CM_PER_M = 1000.0, 100.0
UNSEEN_TRUST = 0.2
"""Of the truth where the camera does not see it: worth a guess from the other side."""
CLOSING_SHARE = 1 / 16
"""Gaps of the skin mask up to this share of the crop are eyes, lips or brows: of the face, though not skin."""
MEASURE_BATCH = 8
SEEN_FLOOR = 1e-4
"""So that a face that is covered altogether can be compared too."""
BROADEST_SHARE = 1 / 28
"""Of the map's side: what is broader than a Gaussian of this is not fine relief. About 8 mm."""


def make_detail_network(settings: DetailNetworkSettings, model: MorphableModel) -> DetailNetwork:
    """The U-Net at the start of a run; ConfigError where `start` holds another kind of network."""
    fresh = DetailNetwork(
        model.fingerprint, layout=settings.layout, displacement=settings.displacement, width=settings.width
    )
    if not settings.start:
        return fresh
    network = load_detail(model, settings.start).requires_grad_(True)
    for name in ("layout", "displacement", "width"):
        if getattr(network, name) != getattr(fresh, name):
            raise ConfigError(
                f"{settings.start} has network.{name} = {getattr(network, name)!r}, and the configuration says "
                f"{getattr(fresh, name)!r}; make them agree."
            )
    return network


@dataclass(frozen=True)
class DetailBatch:
    """Faces with their base reconstruction, and what the network sees of both."""

    faces: FaceBatch
    inputs: tuple[Float[Tensor, "B C S S"]]
    coefficients: FaceCoefficients
    surface: FaceSurface
    texels: TexelFace
    unwrapped: Unwrapped


class DetailObjective:
    """The losses of the augmented branch; holds everything that is not trained, the encoder among it."""

    def __init__(
        self,
        network: DetailNetwork,
        encoder: FaceEncoder,
        model: MorphableModel,
        *,
        weights: DetailLossSettings,
        base: DetailBaseSettings,
        map_size: int,
        recognition: IdentityNetwork | None,
        validation: FaceBatch,
        device: torch.device | None = None,
    ) -> None:
        """`validation` holds faces that no step sees; `recognition` may be None where its weight is 0."""
        if weights.recognition and recognition is None:
            raise ConfigError("loss.recognition is not 0, so the recognition network is needed.")
        device = device or torch.device("cpu")
        self.network, self.weights, self.base_settings = network.to(device), weights, base
        self.encoder = encoder.to(device).eval().requires_grad_(False)
        self.model = model.to(device)
        self.atlas = TexelAtlas.of(self.model, map_size)
        self.recognition = None if recognition is None else recognition.to(device)
        self.validation = validation.to(device)
        self.edges = unique_edges(self.model.triangles)

    @torch.no_grad()
    def prepare(self, batch: FaceBatch) -> DetailBatch:
        """The base reconstruction under the maps, and the network's input."""
        coefficients = self._base(batch)
        surface = build_surface(self.model, coefficients)
        vertices_px = batch.camera.project(surface.vertices_camera)
        masks = torch.stack([batch.mask, _closed(batch.mask)], dim=1)
        unwrapped = unwrap_photo(
            self.atlas,
            surface,
            photo=torch.cat([batch.images, masks], dim=1),
            vertices_px=vertices_px,
            visibility=vertex_visibility(self.model, surface, batch.camera),
        )
        texels = texel_face(self.atlas, self.model, coefficients, surface)
        if self.network.layout == "texture":
            inputs = texture_inputs(texels, unwrapped)
        else:
            inputs = self._pictures(batch, coefficients)
        return DetailBatch(batch, (inputs,), coefficients, surface, texels, unwrapped)

    def _pictures(self, batch: FaceBatch, coefficients: FaceCoefficients) -> Float[Tensor, "B 6 S S"]:
        """Photo and base rendering side by side, the paper's input."""
        photos = resized(batch, len(self.atlas.corners))
        drawn = render(self.model, coefficients, photos.camera)
        return torch.cat([photos.images, drawn.image], dim=1)

    def _base(self, batch: FaceBatch) -> FaceCoefficients:
        if self.base_settings.source == "encoder" or batch.gt is None:
            return self._of_photos(batch)
        drawn = self._of_drawn(batch)
        if not batch.photographed:
            return drawn
        return FaceCoefficients.join([self._of_photos(batch.photos()), drawn])

    def _of_photos(self, batch: FaceBatch) -> FaceCoefficients:
        said = self.encoder.encode(batch.images, batch.camera, landmarks468_px=batch.detected_px)
        if self.base_settings.source == "encoder":
            return said
        targets = FitTargets(
            crops=batch.images,
            mask=batch.mask,
            outline=_closed(batch.mask),
            exposure=torch.ones_like(batch.mask[:, 0, 0]),
            camera=batch.camera,
            landmarks468_px=batch.gt_px,
            landmarks68_px=batch.landmarks68_px,
        )
        return fit(self.model, targets, settings=FitSettings(warm_photometric_steps=0), start=said).coefficients

    def _of_drawn(self, batch: FaceBatch) -> FaceCoefficients:
        """The truth, off by about what a fit errs."""
        if batch.gt is None:
            raise ConfigError("drawn faces come with their truth; this batch has none.")
        base = self.base_settings
        errors = {
            "identity": base.identity_error,
            "expression": base.expression_error,
            "albedo": base.albedo_error,
            "lighting": base.lighting_error,
            **dict.fromkeys(("rotation", "translation", "scale"), base.pose_error),
        }
        off = {
            name: (value := getattr(batch.gt, name)) + HEAD_UNITS[name] * error * torch.randn_like(value)
            for name, error in errors.items()
        }
        return replace(batch.gt, **off).coefficients(batch.camera[slice(batch.photographed, None)])

    def losses(self, said: dict[str, Tensor], prepared: DetailBatch, *, progress: float) -> list[LossTerm]:
        """All terms of non-zero weight."""
        del progress
        inside = self.atlas.valid.to(said["texture_offset"])
        offset, displacement = said["texture_offset"] * inside, said["displacement"] * inside
        normal = along_normal(self.atlas, prepared.surface, displacement, self.model)
        terms = [
            *self._texel_terms(offset, normal, prepared),
            *self._map_terms(offset, displacement, prepared),
            *self._vertex_terms(offset, displacement, prepared),
            *self._supervised(offset, normal, prepared),
        ]
        return [term for term in terms if term.weight]

    def _texel_terms(
        self, offset: Float[Tensor, "B 3 S S"], normal: Float[Tensor, "B 1 S S"], prepared: DetailBatch
    ) -> list[LossTerm]:
        if not self.weights.texel:
            return []
        made = prepared.texels.colours(offset, normal)
        unwrapped = prepared.unwrapped
        return [
            LossTerm(
                "texel", self.weights.texel, photometric_loss(made, unwrapped.colours, mask=unwrapped.weights[:, 0])
            )
        ]

    def _map_terms(
        self, offset: Float[Tensor, "B 3 S S"], displacement: Float[Tensor, "B N S S"], prepared: DetailBatch
    ) -> list[LossTerm]:
        """Eq. 8 and 9; a side that is not seen follows its mirror image."""
        weights = self.weights
        seen = prepared.unwrapped.weights
        hidden = (seen.flip(-1) - seen).clamp(min=0)[:, 0]
        mm = displacement * MM_PER_M
        return [
            LossTerm("offset_magnitude", weights.offset_magnitude, magnitude_loss(offset)),
            LossTerm("offset_symmetry", weights.offset_symmetry, symmetry_loss(offset)),
            LossTerm("unseen_symmetry", weights.unseen_symmetry, symmetry_loss(offset, weights=hidden)),
            LossTerm("displacement_magnitude", weights.displacement_magnitude, magnitude_loss(mm)),
            LossTerm("displacement_symmetry", weights.displacement_symmetry, symmetry_loss(mm)),
        ]

    def _vertex_terms(
        self, offset: Float[Tensor, "B 3 S S"], displacement: Float[Tensor, "B N S S"], prepared: DetailBatch
    ) -> list[LossTerm]:
        """Eq. 4, 5, 6, 10 and 11, on the mesh with the maps sampled at its vertices."""
        weights = self.weights
        on_screen = weights.pixel or weights.landmark or weights.recognition
        if not (on_screen or weights.smooth_shape or weights.smooth_albedo):
            return []
        depth = None
        if weights.sampling == "hyperbolic":
            depth = self.atlas.dilate(self.atlas.interpolate(prepared.surface.vertices_camera[..., 2:]))
        detail = vertex_detail(self.model, texture_offset=offset, displacement=displacement, depth=depth)
        surface = build_surface(self.model, prepared.coefficients, detail=detail)
        terms = [
            LossTerm(
                "smooth_shape", weights.smooth_shape, mesh_smoothness_loss(surface.vertices * CM_PER_M, self.edges)
            ),
            LossTerm("smooth_albedo", weights.smooth_albedo, mesh_smoothness_loss(surface.albedo, self.edges)),
        ]
        if on_screen:
            drawn = render(self.model, prepared.coefficients, prepared.faces.camera, detail=detail)
            terms += self._picture_terms(drawn, prepared)
        return terms

    def _picture_terms(self, drawn: RenderOutput, prepared: DetailBatch) -> list[LossTerm]:
        weights, faces = self.weights, prepared.faces
        unit = faces.images.shape[-1] / 2
        chosen = landmark_vertices(self.model, drawn.vertices_px.detach(), prepared.coefficients.pose.rotmat())
        landmarks = drawn.vertices_px.gather(1, chosen[..., None].expand(-1, -1, 2))
        equal = torch.ones_like(landmarks[..., 0])
        mask = faces.mask * drawn.coverage.detach()
        terms = [
            LossTerm("pixel", weights.pixel, photometric_loss(drawn.image, faces.images, mask=mask)),
            LossTerm(
                "landmark",
                weights.landmark,
                landmark_loss(landmarks / unit, faces.landmarks68_px / unit, weights=equal),
            ),
        ]
        if weights.recognition and self.recognition is not None:
            with torch.no_grad():
                seen = self.recognition(self.recognition.crop(faces.images, faces.landmarks68_px))
            made = recognition_features(
                self.recognition, drawn, photos=faces.images, mask=faces.mask, landmarks68_px=faces.landmarks68_px
            )
            terms.append(LossTerm("recognition", weights.recognition, identity_loss(made, seen)))
        return terms

    def _supervised(
        self, offset: Float[Tensor, "B 3 S S"], normal: Float[Tensor, "B 1 S S"], prepared: DetailBatch
    ) -> list[LossTerm]:
        """Distances to the maps of the drawn faces."""
        maps, weights = prepared.faces.maps, self.weights
        if maps is None:
            return []
        drawn = slice(len(offset) - len(maps.displacement), None)
        seen = prepared.unwrapped.weights[drawn]
        trust = (UNSEEN_TRUST + (1 - UNSEEN_TRUST) * seen) * self.atlas.valid
        error_mm = (normal[drawn] - maps.displacement) * MM_PER_M
        off = (offset[drawn] - self._true_offset(prepared, drawn)).abs().mean(1, keepdim=True)
        return [
            LossTerm("true_displacement", weights.true_displacement, _weighted(error_mm.square(), trust)),
            LossTerm("true_slope", weights.true_slope, _slopes(error_mm, trust)),
            LossTerm("true_offset", weights.true_offset, _weighted(off, trust)),
        ]

    def _true_offset(self, prepared: DetailBatch, drawn: slice) -> Float[Tensor, "B 3 S S"]:
        """What the base's albedo lacks under the base's light to show the true skin under the true light."""
        maps, gt = prepared.faces.maps, prepared.faces.gt
        if maps is None or gt is None:
            raise ConfigError("true maps come with true coefficients; this batch has none.")
        coefficients = gt.coefficients(prepared.faces.camera[drawn])
        true = texel_face(self.atlas, self.model, coefficients, build_surface(self.model, coefficients))
        light = prepared.texels.shading[drawn].clamp(min=LEAST_LIGHT)
        wanted = (true.albedo + maps.texture_offset) * true.shading / light - prepared.texels.albedo[drawn]
        return wanted * self.atlas.valid

    @torch.no_grad()
    def evaluate(self, network: nn.Module) -> list[Metric]:
        """What the maps gain on the validation faces: colour error inside the mask, and relief where it is known."""
        errors: dict[str, list[Tensor]] = {"base": [], "augmented": []}
        relief: dict[str, list[Tensor]] = {"whole": [], "fine": []}
        for number in range(0, len(self.validation.images), MEASURE_BATCH):
            prepared = self._held(number)
            maps = self._worn(self._maps(network, prepared))
            faces, offset, normal = prepared.faces, maps.texture_offset, maps.displacement
            plain = prepared.texels.albedo * prepared.texels.shading
            for name, colours in (("base", plain), ("augmented", prepared.texels.colours(offset, normal))):
                errors[name].append(self._colour_error(prepared, colours))
            if faces.maps is not None:
                drawn = slice(len(offset) - len(faces.maps.displacement), None)
                seen = prepared.unwrapped.weights[drawn] + SEEN_FLOOR * self.atlas.valid
                broadest = BROADEST_SHARE * normal.shape[-1]
                agree = relief_correlation(
                    normal[drawn], faces.maps.displacement, weights=seen, broadest_texels=broadest
                )
                relief["whole"].append(agree.whole.correlation)
                relief["fine"].append(agree.fine.correlation)
        figures = [Metric(f"colour error, {name}", float(torch.cat(e).mean()), "") for name, e in errors.items()]
        for name, values in relief.items():
            known = torch.cat(values) if values else torch.zeros(0)
            known = known[known.isfinite()]  # flat faces correlate with nothing
            if len(known):
                figures.append(Metric(f"relief correlation, {name}", float(known.mean()), ""))
        return figures

    def _held(self, number: int) -> DetailBatch:
        """Some validation faces with the bases that every measurement gives them."""
        batch = self.validation
        part = join_batches([batch.face(k) for k in range(number, min(number + MEASURE_BATCH, len(batch.images)))])
        state = torch.get_rng_state()
        torch.manual_seed(number)
        prepared = self.prepare(part)
        torch.set_rng_state(state)
        return prepared

    def _maps(self, network: nn.Module, prepared: DetailBatch) -> DetailMaps:
        said = network(*prepared.inputs)
        normal = along_normal(self.atlas, prepared.surface, said["displacement"], self.model)
        return where_seen(said["texture_offset"], normal, prepared.unwrapped, inside=self.atlas.valid)

    def _worn(self, maps: DetailMaps) -> DetailMaps:
        """The maps as the losses see them: those that only vertices sample are linear between these, whatever else the
        network says there."""
        if self.weights.texel:
            return maps
        both = sample_map(torch.cat([maps.texture_offset, maps.displacement], dim=1), self.model.uv)
        return DetailMaps(*self.atlas.interpolate(both).split([3, 1], dim=1))

    def _colour_error(self, prepared: DetailBatch, colours: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B"]:
        """Root mean squared colour difference to the photo inside the mask."""
        faces = prepared.faces
        image, covered = draw_texture(
            self.model, prepared.surface.vertices_camera, faces.camera, texture=self.atlas.dilate(colours)
        )
        weight = covered * faces.mask
        squared = ((image - faces.images) ** 2).mean(1)
        return ((squared * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)).sqrt()

    def visualize(self, network: nn.Module) -> UInt8[np.ndarray, "H W 3"]:
        """Crop, base, augmented, geometry before and after, and the maps."""
        return self.sheet(network, labels=DETAIL_LABELS)

    @torch.no_grad()
    def sheet(self, network: nn.Module, *, labels: Sequence[str]) -> UInt8[np.ndarray, "H W 3"]:
        """Some of those columns, for the first validation faces."""
        prepared = self._held(0)
        maps = self._maps(network, prepared)
        return detail_sheet(
            self.model,
            self.atlas,
            batch=prepared.faces,
            coefficients=prepared.coefficients,
            maps=maps,
            worn=self._worn(maps),
            faces=len(prepared.coefficients.identity),
            labels=labels,
        )


def _closed(mask: Float[Tensor, "B S S"]) -> Float[Tensor, "B S S"]:
    """The mask with its small gaps closed."""
    radius = round(mask.shape[-1] * CLOSING_SHARE / 2)
    return -_largest(-_largest(mask[:, None], radius), radius)[:, 0]


def _largest(values: Float[Tensor, "B 1 S S"], radius: int) -> Float[Tensor, "B 1 S S"]:
    """The largest value within a square around each pixel, along one axis and then the other."""
    across = F.max_pool2d(values, (1, 2 * radius + 1), stride=1, padding=(0, radius))
    return F.max_pool2d(across, (2 * radius + 1, 1), stride=1, padding=(radius, 0))


def _weighted(values: Float[Tensor, "B 1 H W"], weights: Float[Tensor, "B 1 H W"]) -> Float[Tensor, ""]:
    return (values * weights).sum() / weights.sum().clamp(min=1)


def _slopes(error: Float[Tensor, "B 1 S S"], weights: Float[Tensor, "B 1 S S"]) -> Float[Tensor, ""]:
    """Mean squared difference from a texel to its right and to its lower neighbour."""
    right = (error[..., 1:] - error[..., :-1]).square()
    down = (error[..., 1:, :] - error[..., :-1, :]).square()
    return _weighted(right, torch.minimum(weights[..., 1:], weights[..., :-1])) + _weighted(
        down, torch.minimum(weights[..., 1:, :], weights[..., :-1, :])
    )
