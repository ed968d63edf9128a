"""A transferred face as a result of the target model, so that every exporter takes it.

The photo, its camera and its light stay the same. The texture is baked: each texel of the target's UV map takes the
colour of the matching point of the reconstruction's surface. Skin without a match (the back of a closed head,
shoulders) takes the target's mean albedo in the face's tone, lit as the face, plus the continued difference between
known and lit colours. Teeth and other surfaces without a match take the lit mean albedo.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from mien.camera import to_camera_axes
from mien.geometry import Matcher, Matches, Similarity, boundary_vertices, vertex_normals
from mien.lighting import shading
from mien.morphable import MorphableModel
from mien.morphable.landmark_tables import IBUG_INNER
from mien.registration.uv_layout import connected_parts
from mien.rendering import sample_map
from mien.result import Reconstruction
from mien.texture import TexelAtlas
from mien.texture.fill import pull_push
from mien.typing import Float, Tensor

_NEAR_M = 0.004
"""A match nearer than half of this counts fully, one beyond 1.5 times this not at all."""
_FACING = (0.3, 0.6)
"""Cosines between the normals of matching points that give no weight and full weight."""
_FADE_M = 0.015
"""Towards the border of the reconstruction, where its texture is a guess, its colours fade over this distance."""
_INNER_REACH_M = 0.03
"""Borders nearer to a landmark than this are the openings of eyes, nostrils and mouth, where nothing fades."""
_DARKEST = 0.02
"""Smallest mean albedo that an albedo is divided by."""
_TONE_SIDE = 256
"""Side of the UV map in which the tone of the skin is continued."""
_ALBEDO_SIGMA = 0.05
"""Standard deviation of a vertex colour, weighed against the prior of one standard deviation per coefficient."""
_EMPTY_MAP_SIDE = 224


def transferred_face(
    face: Reconstruction,
    own: MorphableModel,
    target: MorphableModel,
    *,
    vertices: Float[Tensor, "V 3"],
    identity: Float[Tensor, "I"],
    expression: Float[Tensor, "E"],
    similarity: Similarity,
) -> Reconstruction:
    """Make a result of the target model.

    Args:
        face: The reconstruction.
        own: The model that the reconstruction was made with.
        target: The model to transfer to.
        vertices: The target's vertices in the model space of the reconstruction, metres.
        identity: Identity coefficients of the target.
        expression: Expression coefficients of the target.
        similarity: From the target's model space to that of the reconstruction.

    Returns:
        The face in the target's model space. Its errors are not known (NaN) and its detail maps are empty.
    """
    source = _Source(face, own)
    normals = vertex_normals(vertices[None], target.triangles)[0]
    found, known = source.match(vertices, normals)
    skin = _face_surface(target, known)
    matched = found.of(torch.from_numpy(face.vertex_albedo))
    albedo = torch.lerp(_in_tone(target, matched, known=known, skin=skin), matched, known[:, None])
    light = shading((normals @ torch.from_numpy(face.rotation).T)[None], torch.from_numpy(face.lighting)[None])[0]
    posed = _posed(face, similarity, similarity.inverse()(vertices[None])[0])
    return replace(
        posed,
        model_name=target.name,
        identity=identity.numpy(),
        expression=expression.numpy(),
        albedo=_albedo_coefficients(target, albedo, known).numpy(),
        triangles=target.triangles.numpy().astype(np.int32),
        uv=target.uv.numpy(),
        visible=(torch.from_numpy(face.visible)[found.nearest_corners] & (known > 0.5)).numpy(),
        landmarks68=posed.xy[target.landmarks68.numpy()],
        landmarks68_vertices=target.landmarks68.numpy().astype(np.int32),
        vertex_albedo=albedo.numpy(),
        texture=source.baked(target, torch.cat([vertices, normals, albedo * light, skin[:, None]], 1)).numpy(),
        texture_offset=np.zeros((_EMPTY_MAP_SIDE, _EMPTY_MAP_SIDE, 3), np.float32),
        displacement=np.zeros((_EMPTY_MAP_SIDE, _EMPTY_MAP_SIDE), np.float32),
        landmark_error=math.nan,
        photometric_error=math.nan,
        stage_seconds=(),
        expression_names=target.expression_names,
    )


class _Source:
    """The surface and the colours of a reconstruction."""

    def __init__(self, face: Reconstruction, own: MorphableModel) -> None:
        self.face = face
        self.matcher = Matcher(torch.from_numpy(face.vertices_model), own.triangles)
        border = boundary_vertices(own.triangles)
        inner = torch.cdist(own.mean[border], own.mean[own.landmarks68[IBUG_INNER]]).amin(1) < _INNER_REACH_M
        outer = own.mean[border[~inner]]
        self.trust = torch.ones(len(own.mean), 1)
        if len(outer):
            self.trust = (torch.cdist(own.mean, outer).amin(1, keepdim=True) / _FADE_M).clamp(0, 1)

    def match(self, points: Float[Tensor, "P 3"], normals: Float[Tensor, "P 3"]) -> tuple[Matches, Float[Tensor, "P"]]:
        """The point of this surface that matches each point of another, and the confidence in it, 0 to 1."""
        found = self.matcher(points, normals)
        near = (1.5 - found.distances / _NEAR_M).clamp(0, 1)
        cosine = (F.normalize(found.of(self.matcher.normals), dim=1) * normals).sum(1)
        facing = ((cosine - _FACING[0]) / (_FACING[1] - _FACING[0])).clamp(0, 1)
        return found, near * facing * found.of(self.trust)[:, 0]

    def baked(self, target: MorphableModel, at_vertices: Float[Tensor, "V 10"]) -> Float[Tensor, "S S 3"]:
        """This texture in the UV map of the target, at the same size.

        Args:
            target: Gives triangles and UV coordinates.
            at_vertices: Position, normal, lit colour, and whether the vertex belongs to the surface of the face.
        """
        texture = torch.from_numpy(self.face.texture.astype(np.float32)).permute(2, 0, 1)[None]
        size = texture.shape[-1]
        atlas = TexelAtlas.of(target, size)
        points, normals, lit, skin = atlas.interpolate(at_vertices[None])[0, :, atlas.valid].T.split(
            [3, 3, 3, 1], dim=1
        )
        found, known = self.match(points, F.normalize(normals, dim=1))
        known = known[:, None]
        difference = known * (sample_map(texture, found.of(torch.from_numpy(self.face.uv)))[0] - lit)
        weights = torch.maximum(known, 1 - skin.round())
        maps = torch.zeros(1, 7, size, size)
        maps[0, :, atlas.valid] = torch.cat([difference / weights.clamp(min=1e-6), lit, weights], 1).T
        difference, lit, weights = maps.split([3, 3, 1], dim=1)
        filled = atlas.dilate(lit + pull_push(difference, weights))
        return filled[0].permute(1, 2, 0).clamp(0, 1)


def _face_surface(target: MorphableModel, known: Float[Tensor, "V"]) -> Float[Tensor, "V"]:
    """1 for the vertices of the connected surface with most known vertices, 0 for eyeballs, teeth and tongue."""
    surfaces = connected_parts(target.triangles, len(target.mean)) + 1
    return (surfaces == torch.bincount(surfaces, known).argmax()).float()


def _in_tone(
    target: MorphableModel, albedo: Float[Tensor, "V 3"], *, known: Float[Tensor, "V"], skin: Float[Tensor, "V"]
) -> Float[Tensor, "V 3"]:
    """The mean albedo of the target; that of skin times the ratio of the known albedo to it, continued in UV space."""
    ratio = albedo / target.albedo_mean.clamp(min=_DARKEST)
    weights = (known * skin)[:, None]
    maps = TexelAtlas.of(target, _TONE_SIDE).interpolate(torch.cat([ratio * weights, weights], 1)[None])
    tone = pull_push(maps[:, :3] / maps[:, 3:].clamp(min=1e-6), maps[:, 3:])
    return target.albedo_mean * torch.lerp(torch.ones(1), sample_map(tone, target.uv)[0], skin[:, None])


def _posed(face: Reconstruction, similarity: Similarity, vertices: Float[Tensor, "V 3"]) -> Reconstruction:
    """The reconstruction with other vertices, whose model space is related to its own by the similarity."""
    scale, rotation, translation = (
        part[0].double().numpy() for part in (similarity.scale, similarity.rotation, similarity.translation)
    )
    own_rotation = face.rotation.astype(np.float64)
    moved = face.translation + to_camera_axes(face.scale * own_rotation @ translation)
    turned = own_rotation @ rotation
    in_camera = to_camera_axes(face.scale * scale * vertices.double().numpy() @ turned.T) + moved
    xy = face.focal_px * in_camera[:, :2] / in_camera[:, 2:] + face.centre_px
    return replace(
        face,
        scale=float(face.scale * scale),
        rotation=turned.astype(np.float32),
        translation=moved.astype(np.float32),
        vertices_model=vertices.numpy(),
        vertices=in_camera.astype(np.float32),
        xy=xy.astype(np.float32),
    )


def _albedo_coefficients(
    target: MorphableModel, albedo: Float[Tensor, "V 3"], known: Float[Tensor, "V"]
) -> Float[Tensor, "A"]:
    """Ridge regression of the target's albedo coefficients on the known vertex colours."""
    columns = (target.albedo_basis * known.sqrt()[:, None]).flatten(1).double() / _ALBEDO_SIGMA
    goal = ((albedo - target.albedo_mean) * known.sqrt()[:, None]).flatten().double() / _ALBEDO_SIGMA
    normal = columns @ columns.T + torch.eye(len(columns), dtype=torch.float64)
    return torch.linalg.solve(normal, columns @ goal).float()
