"""The detail network's objective: maps that a U-Net adds to a frozen coarse reconstruction (eq. 8 to 12).

crop ── frozen encoder ──► coarse ──┬── photo and coarse reconstruction on the UV map ──► U-Net ──► offset, displacement
                                    └── texels: (albedo + offset) · shading(displaced normal) against the photo  (eq. 4)
                                        vertices: rendered with the maps sampled at their UV   (eq. 4, 5, 6, 10, 11)
                                        maps: magnitude, symmetry (eq. 8, 9); ground truth of synthetic faces
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from mien.errors import ConfigError
from mien.evaluation.detail import relief_correlation
from mien.geometry import unique_edges
from mien.losses import magnitude_loss, mesh_smoothness_loss, photometric_loss, symmetry_loss
from mien.morphable import MorphableModel
from mien.networks import DetailNetwork, FaceEncoder
from mien.networks.detail_unet import MIN_SHADING, visible_maps
from mien.perception import IdentityNetwork
from mien.rendering import RenderOutput, build_surface, draw_texture, render, sample_map
from mien.texture import DetailMaps, TexelAtlas, along_normal, texel_face, vertex_detail
from mien.training.config import CoarseInputSettings, DetailLossSettings
from mien.training.contact_sheets import DETAIL_LABELS, detail_sheet
from mien.training.data.batch import FaceBatch, join_batches
from mien.training.detail_inputs import CoarseReconstruction, DetailBatch, detail_batch
from mien.training.image_terms import identity_term, landmark_term, landmarks_of_vertices
from mien.training.objective import LossTerm, Metric
from mien.typing import Float, Tensor, UInt8

MM_PER_M, CM_PER_M = 1000.0, 100.0
UNSEEN_TRUST = 0.2
"""Weight of the ground truth at invisible texels: worth a guess from the other side of the face."""
EVALUATION_BATCH = 8
VISIBILITY_FLOOR = 1e-4
"""Added to the visibility, so that a completely covered face can be compared too."""
BROADEST_SHARE = 1 / 28
"""Share of the map's side, about 8 mm: variation broader than a Gaussian of this width is not fine relief."""


class DetailObjective:
    """Losses and metrics of the detail network. Implements `Objective`.

    Args:
        network: The network that is trained.
        encoder: The frozen encoder below the maps, in evaluation mode; it is not changed.
        model: Face model of both networks.
        weights: Weights of the losses.
        coarse: Where the coarse reconstruction comes from.
        map_size: Side of the maps, texels.
        recognition: Network for the identity loss; may be None if that loss has weight 0.

    Raises:
        ConfigError: The identity loss has a weight and `recognition` is None, or the encoder is in training mode.
    """

    def __init__(
        self,
        network: DetailNetwork,
        encoder: FaceEncoder,
        model: MorphableModel,
        *,
        weights: DetailLossSettings,
        coarse: CoarseInputSettings,
        map_size: int,
        recognition: IdentityNetwork | None,
    ) -> None:
        if weights.identity and recognition is None:
            raise ConfigError(
                f"loss.identity={weights.identity} needs the recognition network; pass one, or set loss.identity to 0."
            )
        self.network, self.model, self.weights, self.recognition = network, model, weights, recognition
        self.reconstruct = CoarseReconstruction(encoder, model, coarse)
        self.atlas = TexelAtlas.of(model, map_size)
        self.edges = unique_edges(model.triangles)

    def train_mode(self) -> None:
        """Put the network into training mode; the encoder stays in evaluation mode."""
        self.network.train()

    def prepare(self, batch: FaceBatch) -> DetailBatch:
        """Compute the coarse reconstruction below the maps and the network's input.

        Raises:
            FitDiverged: The fit of a photo met a number that is not finite.
        """
        return detail_batch(batch, self.reconstruct(batch), self.model, self.atlas, layout=self.network.layout)

    def predict(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Predict both maps, see `DetailNetwork.forward`."""
        return network(*inputs)

    def losses(self, prediction: dict[str, Tensor], prepared: DetailBatch, *, progress: float) -> list[LossTerm]:
        """Compute all losses of non-zero weight; differentiable. `progress` has no influence."""
        del progress
        inside = self.atlas.valid.to(prediction["texture_offset"])
        offset, displacement = prediction["texture_offset"] * inside, prediction["displacement"] * inside
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
        """Eq. 4 on the UV map."""
        if not self.weights.texel:
            return []
        colours, unwrapped = prepared.texels.colours(offset, normal), prepared.unwrapped
        value = photometric_loss(colours, unwrapped.colours, mask=unwrapped.weights[:, 0])
        return [LossTerm("texel", self.weights.texel, value)]

    def _map_terms(
        self, offset: Float[Tensor, "B 3 S S"], displacement: Float[Tensor, "B N S S"], prepared: DetailBatch
    ) -> list[LossTerm]:
        """Eq. 8 and 9; an invisible side follows its mirror image."""
        weights, visible = self.weights, prepared.unwrapped.weights
        hidden = (visible.flip(-1) - visible).clamp(min=0)[:, 0]
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
        on_screen = weights.photometric or weights.landmark or weights.identity
        if not (on_screen or weights.smooth_shape or weights.smooth_albedo):
            return []
        depth = None
        if weights.sampling == "hyperbolic":
            depth = self.atlas.dilate(self.atlas.interpolate(prepared.surface.vertices_camera[..., 2:]))
        detail = vertex_detail(self.model, texture_offset=offset, displacement=displacement, depth=depth)
        surface = build_surface(self.model, prepared.coefficients, detail=detail)
        shape = mesh_smoothness_loss(surface.vertices * CM_PER_M, self.edges)
        albedo = mesh_smoothness_loss(surface.albedo, self.edges)
        terms = [
            LossTerm("smooth_shape", weights.smooth_shape, shape),
            LossTerm("smooth_albedo", weights.smooth_albedo, albedo),
        ]
        if on_screen:
            rendered = render(self.model, prepared.coefficients, prepared.faces.camera, detail=detail)
            terms += self._image_terms(rendered, prepared)
        return terms

    def _image_terms(self, rendered: RenderOutput, prepared: DetailBatch) -> list[LossTerm]:
        """Eq. 4, 5 and 6."""
        weights, faces = self.weights, prepared.faces
        landmarks = landmarks_of_vertices(self.model, rendered.vertices_px, prepared.coefficients.pose.rotmat())
        photometric = photometric_loss(rendered.image, faces.images, mask=faces.mask * rendered.coverage.detach())
        terms = [
            LossTerm("photometric", weights.photometric, photometric),
            LossTerm("landmark", weights.landmark, landmark_term(landmarks, faces)),
        ]
        if weights.identity and self.recognition is not None:
            identity = identity_term(
                self.recognition,
                rendered,
                images=faces.images,
                mask=faces.mask,
                landmarks68_px=faces.landmarks68_px,
            )
            terms.append(LossTerm("identity", weights.identity, identity))
        return terms

    def _supervised(
        self, offset: Float[Tensor, "B 3 S S"], normal: Float[Tensor, "B 1 S S"], prepared: DetailBatch
    ) -> list[LossTerm]:
        """Distances to the ground-truth maps of the synthetic faces."""
        maps, weights = prepared.faces.maps, self.weights
        if maps is None:
            return []
        rows = slice(len(offset) - len(maps.displacement), None)
        visible = prepared.unwrapped.weights[rows]
        trust = (UNSEEN_TRUST + (1 - UNSEEN_TRUST) * visible) * self.atlas.valid
        error_mm = (normal[rows] - maps.displacement) * MM_PER_M
        terms = [
            LossTerm("true_displacement", weights.true_displacement, _weighted_mean(error_mm.square(), trust)),
            LossTerm("true_slope", weights.true_slope, _slope_error(error_mm, trust)),
        ]
        if weights.true_offset:
            offset_error = (offset[rows] - self._gt_offset(prepared, rows)).abs().mean(1, keepdim=True)
            terms.append(LossTerm("true_offset", weights.true_offset, _weighted_mean(offset_error, trust)))
        return terms

    def _gt_offset(self, prepared: DetailBatch, rows: slice) -> Float[Tensor, "B 3 S S"]:
        """The offset with which the coarse albedo under coarse lighting shows the true skin under true lighting."""
        maps, gt = prepared.faces.maps, prepared.faces.gt
        if maps is None or gt is None:
            raise ConfigError("the batch has ground-truth maps without ground-truth coefficients; it needs both.")
        coefficients = gt.coefficients(prepared.faces.camera[rows])
        skin = texel_face(self.atlas, self.model, coefficients, build_surface(self.model, coefficients))
        shading = prepared.texels.shading[rows].clamp(min=MIN_SHADING)
        wanted = (skin.albedo + maps.texture_offset) * skin.shading / shading - prepared.texels.albedo[rows]
        return wanted * self.atlas.valid

    @torch.no_grad()
    def evaluate(self, network: nn.Module, faces: FaceBatch) -> list[Metric]:
        """Measure the colour error inside the mask without and with maps, and the relief if ground truth is known."""
        errors: dict[str, list[Tensor]] = {"base": [], "augmented": []}
        relief: dict[str, list[Tensor]] = {"whole": [], "fine": []}
        for prepared in self._evaluation_batches(faces):
            maps = self._sampled_maps(self._maps(network, prepared))
            errors["base"].append(self._colour_error(prepared, prepared.texels.albedo * prepared.texels.shading))
            colours = prepared.texels.colours(maps.texture_offset, maps.displacement)
            errors["augmented"].append(self._colour_error(prepared, colours))
            if prepared.faces.maps is not None:
                for name, values in self._relief_correlations(maps, prepared.faces.maps, prepared).items():
                    relief[name].append(values)
        metrics = [Metric(f"colour error, {name}", float(torch.cat(e).mean()), "") for name, e in errors.items()]
        for name, values in relief.items():
            known = torch.cat(values) if values else torch.zeros(0)
            known = known[known.isfinite()]  # the correlation of a flat face is not defined
            if len(known):
                metrics.append(Metric(f"relief correlation, {name}", float(known.mean()), ""))
        return metrics

    def _relief_correlations(self, maps: DetailMaps, gt: DetailMaps, prepared: DetailBatch) -> dict[str, Tensor]:
        displacement = maps.displacement
        rows = slice(len(displacement) - len(gt.displacement), None)
        agreement = relief_correlation(
            displacement[rows],
            gt.displacement,
            weights=prepared.unwrapped.weights[rows] + VISIBILITY_FLOOR * self.atlas.valid,
            broadest_texels=BROADEST_SHARE * displacement.shape[-1],
        )
        return {"whole": agreement.whole.correlation, "fine": agreement.fine.correlation}

    def _evaluation_batches(self, faces: FaceBatch) -> Iterator[DetailBatch]:
        """The faces in small batches, each with the same coarse reconstruction at every evaluation."""
        for first in range(0, len(faces.images), EVALUATION_BATCH):
            rows = range(first, min(first + EVALUATION_BATCH, len(faces.images)))
            part = join_batches([faces.face(k) for k in rows])
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(first)
                prepared = self.prepare(part)
            yield prepared

    def _maps(self, network: nn.Module, prepared: DetailBatch) -> DetailMaps:
        pred = network(*prepared.inputs)
        normal = along_normal(self.atlas, prepared.surface, pred["displacement"], self.model)
        return visible_maps(pred["texture_offset"], normal, prepared.unwrapped, inside=self.atlas.valid)

    def _sampled_maps(self, maps: DetailMaps) -> DetailMaps:
        """The maps as the losses see them: if only vertices sample them, linear between the vertices."""
        if self.weights.texel:
            return maps
        both = sample_map(torch.cat([maps.texture_offset, maps.displacement], dim=1), self.model.uv)
        return DetailMaps(*self.atlas.interpolate(both).split([3, 1], dim=1))

    def _colour_error(self, prepared: DetailBatch, colours: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B"]:
        """Root mean square colour difference to the photo inside the mask."""
        faces = prepared.faces
        image, covered = draw_texture(
            self.model, prepared.surface.vertices_camera, faces.camera, texture=self.atlas.dilate(colours)
        )
        weight = covered * faces.mask
        squared = ((image - faces.images) ** 2).mean(1)
        return ((squared * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)).sqrt()

    def visualize(self, network: nn.Module, faces: FaceBatch) -> UInt8[np.ndarray, "H W 3"]:
        """Draw crop, coarse and detailed reconstruction, geometry without and with displacement, and the maps."""
        return self.sheet(network, faces, labels=DETAIL_LABELS)

    @torch.no_grad()
    def sheet(self, network: nn.Module, faces: FaceBatch, *, labels: Sequence[str]) -> UInt8[np.ndarray, "H W 3"]:
        """Draw some of these columns for the first faces.

        Args:
            network: The network in evaluation mode.
            faces: The faces; the first `EVALUATION_BATCH` are drawn.
            labels: Columns, from `DETAIL_LABELS`.
        """
        prepared = next(self._evaluation_batches(faces))
        maps = self._maps(network, prepared)
        return detail_sheet(
            self.model,
            self.atlas,
            batch=prepared.faces,
            coefficients=prepared.coefficients,
            maps=maps,
            sampled=self._sampled_maps(maps),
            faces=len(prepared.coefficients.identity),
            labels=labels,
        )


def _weighted_mean(values: Float[Tensor, "B 1 H W"], weights: Float[Tensor, "B 1 H W"]) -> Float[Tensor, ""]:
    return (values * weights).sum() / weights.sum().clamp(min=1)


def _slope_error(error: Float[Tensor, "B 1 S S"], weights: Float[Tensor, "B 1 S S"]) -> Float[Tensor, ""]:
    """Mean squared difference from a texel to its right neighbour plus that to its lower neighbour."""
    right = (error[..., 1:] - error[..., :-1]).square()
    down = (error[..., 1:, :] - error[..., :-1, :]).square()
    return _weighted_mean(right, torch.minimum(weights[..., 1:], weights[..., :-1])) + _weighted_mean(
        down, torch.minimum(weights[..., 1:, :], weights[..., :-1, :])
    )
