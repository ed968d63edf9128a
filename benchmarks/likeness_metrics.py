"""Likeness of a reconstruction to its person: identity network, colour error, and coefficients as a face index.

The compared renderings contain no colours copied from the photo: a reconstruction is rendered from its albedo
coefficients, offset and displacement maps and lighting, and not from its completed texture, which shows the photo
itself wherever the skin was visible.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from mien.camera import Camera, Pose
from mien.errors import ConfigError
from mien.geometry import rotmat_to_rotvec
from mien.lighting import shading
from mien.morphable import FaceCoefficients, MorphableModel
from mien.perception import SAME_PERSON_DISTANCE, IdentityNetwork
from mien.perception.recognition import MEAN_COLOUR
from mien.rendering import VertexDetail, build_surface, draw_texture, sample_map
from mien.result import Reconstruction
from mien.texture import DisplacedNormals, TexelAtlas
from mien.typing import Float, Tensor, UInt8

ATLAS_SIZE = 512
"""Side of the texture of renderings, texels; a face in a 900-pixel photo has fewer pixels."""


@dataclass(frozen=True)
class Rendering:
    """A reconstruction rendered at its position in the photo."""

    image: Float[Tensor, "1 3 H W"]
    covered: Float[Tensor, "1 H W"]
    """1 where the face is."""

    def over(self, background: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "1 3 H W"]:
        """The rendering composited over a background of the same size or of one pixel."""
        return self.image * self.covered[:, None] + background * (1 - self.covered[:, None])


def coefficients_of(face: Reconstruction) -> FaceCoefficients:
    """The coefficients of a reconstruction as a batch of one."""

    def batch(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None]

    pose = Pose(rotmat_to_rotvec(batch(face.rotation)), batch(face.translation), torch.tensor([float(face.scale)]))
    return FaceCoefficients(
        batch(face.identity), batch(face.expression), batch(face.albedo), batch(face.lighting), pose
    )


class FaceRenderer:
    """Renders reconstructions of one model; holds the model's UV atlas."""

    def __init__(self, model: MorphableModel) -> None:
        self.model = model
        self.atlas = TexelAtlas.of(model, ATLAS_SIZE)

    @torch.no_grad()
    def render(self, face: Reconstruction, *, detail: bool) -> Rendering:
        """Render with or without the detail maps, in the size of the photo."""
        return self._render(face, coefficients_of(face), detail=detail)

    @torch.no_grad()
    def render_mean_person(self, face: Reconstruction) -> Rendering:
        """Render the mean identity and albedo in the same expression, pose and light: a control."""
        own = coefficients_of(face)
        mean_person = replace(own, identity=torch.zeros_like(own.identity), albedo=torch.zeros_like(own.albedo))
        return self._render(face, mean_person, detail=False)

    def _render(self, face: Reconstruction, coefficients: FaceCoefficients, *, detail: bool) -> Rendering:
        base = build_surface(self.model, coefficients)
        colours = self.atlas.interpolate(base.albedo)
        displacement = colours.new_zeros(1, 1, ATLAS_SIZE, ATLAS_SIZE)
        surface = base
        if detail:
            offset_map = torch.from_numpy(face.texture_offset).permute(2, 0, 1)[None]
            displacement_map = torch.from_numpy(face.displacement)[None, None]
            surface = build_surface(
                self.model,
                coefficients,
                detail=VertexDetail(
                    sample_map(displacement_map, self.model.uv)[..., 0], sample_map(offset_map, self.model.uv)
                ),
            )
            colours = colours + _resized(offset_map)
            displacement = _resized(displacement_map)
        normals_of = DisplacedNormals(
            self.atlas,
            self.model,
            vertices=base.vertices,
            normals=base.normals,
            rotmat=coefficients.pose.rotmat(),
        )
        shade = shading(normals_of(displacement), coefficients.lighting).permute(0, 3, 1, 2)
        texture = self.atlas.dilate(colours * shade).clamp(0, 1)
        image, covered = draw_texture(self.model, surface.vertices_camera, camera_of(face), texture=texture)
        return Rendering(image, covered)


def _resized(maps: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(maps, size=(ATLAS_SIZE, ATLAS_SIZE), mode="bilinear", align_corners=False)


def camera_of(face: Reconstruction) -> Camera:
    """The photo's camera."""
    width, height = face.image_size
    centre = torch.from_numpy(np.asarray(face.centre_px, dtype=np.float32))[None]
    return Camera(torch.tensor([float(face.focal_px)]), centre, (height, width))


def image_tensor(pixels: UInt8[np.ndarray, "H W 3"]) -> Float[Tensor, "1 3 H W"]:
    """A photo's pixels in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None] / 255


@dataclass(frozen=True)
class Likeness:
    """Similarity of two face pictures according to the identity network."""

    cosine: float
    distance: float
    """Euclidean; below 0.6 the network considers them the same person."""

    @property
    def verified(self) -> bool:
        """Whether the network considers them the same person."""
        return self.distance < SAME_PERSON_DISTANCE

    @classmethod
    def between(cls, first: Float[Tensor, "P"], second: Float[Tensor, "P"]) -> Likeness:
        """Compare two vectors of the network."""
        cosine = torch.nn.functional.cosine_similarity(first, second, dim=0)
        return cls(float(cosine), float((first - second).norm()))


@dataclass(frozen=True)
class LikenessRow:
    """The likeness of one photo's reconstructions to the photo."""

    coarse: Likeness
    """Linear model without detail maps, rendered over the photo."""
    detail: Likeness
    """With the detail maps, rendered over the photo."""
    coarse_alone: Likeness
    """Linear model on a plain background, without hair, ears and neck of the photo."""
    detail_alone: Likeness
    mean_person: Likeness
    """Control: the mean face in the same expression, pose and light, rendered over the photo."""
    coarse_error: float
    """Root mean squared colour error inside the mask."""
    detail_error: float


@torch.no_grad()
def measure_likeness(
    renderer: FaceRenderer,
    network: IdentityNetwork,
    face: Reconstruction,
    *,
    pixels: UInt8[np.ndarray, "H W 3"],
    landmarks68_px: Float[np.ndarray, "68 2"],
    mask: Float[Tensor, "1 H W"],
) -> LikenessRow:
    """Compare a photo with the renderings of its reconstruction.

    The photo's chip is cut by its detected landmarks (`landmarks68_px`), the chips of the renderings by the landmarks
    of the model. `mask` is 1 where the photo shows skin of the face.
    """
    photo = image_tensor(pixels)
    coarse, detail = renderer.render(face, detail=False), renderer.render(face, detail=True)
    plain = torch.tensor(MEAN_COLOUR).div(255).view(1, 3, 1, 1)
    renderings = [
        coarse.over(photo),
        detail.over(photo),
        coarse.over(plain),
        detail.over(plain),
        renderer.render_mean_person(face).over(photo),
    ]
    found = torch.from_numpy(np.ascontiguousarray(landmarks68_px, dtype=np.float32))[None]
    modelled = torch.from_numpy(face.landmarks68)[None].expand(len(renderings), -1, -1)
    vectors = network(torch.cat([network.crop(photo, found), network.crop(torch.cat(renderings), modelled)]))
    compared = [Likeness.between(vectors[0], vector) for vector in vectors[1:]]
    return LikenessRow(
        coarse=compared[0],
        detail=compared[1],
        coarse_alone=compared[2],
        detail_alone=compared[3],
        mean_person=compared[4],
        coarse_error=colour_error(coarse, photo, mask=mask),
        detail_error=colour_error(detail, photo, mask=mask),
    )


def colour_error(rendering: Rendering, photo: Float[Tensor, "1 3 H W"], *, mask: Float[Tensor, "1 H W"]) -> float:
    """Root mean squared colour difference where the rendering covers the mask; ConfigError if it covers nothing."""
    weight = rendering.covered * mask
    if float(weight.sum()) <= 0:
        raise ConfigError("The rendering and the mask do not overlap; are both in the photo's pixels?")
    squared = ((rendering.image - photo) ** 2).mean(1)
    return float(((squared * weight).sum() / weight.sum()).sqrt())


@dataclass(frozen=True)
class RankOne:
    """How often a person's second face is nearest to the first, among all."""

    rate: float
    people: int
    own_distance: float
    """Mean distance of the two faces of one person."""
    other_distance: float
    """Mean distance of faces of two people."""


def rank_one(gallery: Float[Tensor, "P I"], probes: Float[Tensor, "P I"], *, cosine: bool) -> RankOne:
    """Search each probe in the gallery, where row k of both is one person; ConfigError for fewer than two people.

    Distances are Euclidean, or one minus the cosine.
    """
    if len(gallery) < 2 or gallery.shape != probes.shape:
        raise ConfigError(f"rank one needs two or more pairs, got {len(gallery)} and {len(probes)} faces.")
    if cosine:
        gallery, probes = (torch.nn.functional.normalize(x, dim=-1) for x in (gallery, probes))
    distances = 1 - probes @ gallery.mT if cosine else torch.cdist(probes, gallery)
    people = len(gallery)
    own = distances.diagonal()
    return RankOne(
        rate=float((distances.argmin(1) == torch.arange(people)).float().mean()),
        people=people,
        own_distance=float(own.mean()),
        other_distance=float((distances.sum() - own.sum()) / (people * (people - 1))),
    )


def whitened(
    gallery: Float[Tensor, "P I"], probes: Float[Tensor, "P I"], *, shrinkage: float = 0.1
) -> tuple[Float[Tensor, "P I"], Float[Tensor, "P I"]]:
    """Both sets relative to the gallery's mean and covariance, which is pulled towards its mean variance.

    With fewer people than coefficients the covariance alone has no inverse; the pull gives it one.
    """
    mean = gallery.mean(0)
    centred = (gallery - mean).double()
    covariance = centred.mT @ centred / max(1, len(gallery) - 1)
    size = len(covariance)
    level = covariance.diagonal().mean() * torch.eye(size, dtype=covariance.dtype)
    values, vectors = torch.linalg.eigh((1 - shrinkage) * covariance + shrinkage * level)
    transform = (vectors / values.clamp(min=1e-12).sqrt()).to(gallery)
    return (gallery - mean) @ transform, (probes - mean) @ transform
