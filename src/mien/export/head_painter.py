"""The whole head of a result, relit as in a studio, from any side and with any expression.

The colours are those of the photo without its light, as in the look "relit" of `mien.export.head_looks`. The skin
around the face continues them, and hair covers the scalp. Teeth, gums, tongue and mouth have colours of their own.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from mien.camera import Camera, to_camera_axes
from mien.export.face_view import FaceView
from mien.export.head_looks import HAIR_M, WAVES_M, RelitFace, relit_face
from mien.export.part_materials import PART_MATERIALS
from mien.export.srgb import encode_srgb
from mien.geometry import rotvec_to_rotmat, vertex_normals
from mien.io.result_files import Scalp
from mien.morphable import HeadModel, MorphableModel, load_head
from mien.morphable.head import EYES, SKIN
from mien.morphable.per_model import per_model
from mien.rendering import sample_map
from mien.result import Reconstruction
from mien.texture.head import continued_over_head, far_colour
from mien.texture.scalp import SurfaceNoise, hair_brightness, hair_cover, within_hairline_mm
from mien.typing import Float, Int, Tensor, UInt8

BACKDROP = (229, 227, 223)
"""Colour behind the head: a light, neutral grey."""
FOV_DEG = 20.0
"""Field of view of the studio's camera: like a portrait lens, from 1 m."""
# Directions to the lamps in view axes (+x right, +y up, +z to the viewer), and their strengths: a large key light from
# the upper left shows the form, a fill light the other side, two lights from behind the outline.
_LAMPS = (((-0.55, 0.55, 0.75), 0.78), ((0.8, 0.05, 0.6), 0.26), ((0.75, 0.35, -0.6), 0.3), ((-0.8, 0.3, -0.6), 0.2))
_SOFTNESS = 0.35
"""Light of a lamp reaches so far around the surface that turns away, as the cosine: large lamps have no hard edge, and
skin scatters light."""
_AMBIENT = (0.16, 0.34)
"""Light from below and from above."""
_MOUTH_DEPTH_M = 0.02
"""Depth behind the front teeth at which a 1/e of the light arrives: lamps do not know that lips and cheeks cover the
mouth."""

_GAMMA = 2.2
"""Encoded colours are about this root of the light, so that a factor of the light is its root in them."""
_WHOLE = 0.999
"""A sample shows the texture if all corners of its triangle do, up to rounding."""


@dataclass(frozen=True)
class Framing:
    """What of the head a picture shows."""

    centre_m: tuple[float, float, float]
    """The point in its middle, about which the head turns, model space."""
    side_m: float
    """Side of the picture at this point."""


WHOLE_HEAD = Framing((0.0, 0.008, -0.075), 0.315)
"""Head and neck about the axis of the skull. The mean head with its neck is 0.29 m high."""
FACE = Framing((0.0, 0.0, -0.03), 0.22)
"""Chin to hairline, to see expressions."""


@dataclass(frozen=True)
class _Gloss:
    """Reflection of the lamps by a surface: Blinn and Phong's."""

    strength: float
    power: float


_GLOSSES = {SKIN: _Gloss(0.05, 14.0), **dict.fromkeys(EYES, _Gloss(0.55, 220.0))}
_WET = _Gloss(0.12, 50.0)


@dataclass(frozen=True)
class _HeadMesh:
    """All parts of the head as one mesh, over its W vertices: the face's, then the head's own."""

    head: HeadModel
    places: Float[Tensor, "W 3"]
    """On the mean head."""
    triangles: Int[Tensor, "T 3"]
    uv: Float[Tensor, "W 2"]
    """In the face's texture; zero for vertices without it."""
    textured: Float[Tensor, "W 1"]
    """1 for vertices of face and eyeballs, whose colour is that of the texture."""
    own_colours: Float[Tensor, "W 3"]
    """Colours of the inside of the mouth, encoded; zero elsewhere."""
    gloss: Float[Tensor, "W 2"]
    """Strength and power."""
    blendshapes: Float[Tensor, "E W 3"]


def _head_mesh(model: MorphableModel) -> _HeadMesh:
    head = load_head(model)
    face, count = len(model.mean), len(model.mean) + len(head.mean)
    uv, textured, own_colours, gloss = (torch.zeros(count, size) for size in (2, 1, 3, 2))
    uv[:face], textured[:face] = model.uv.cpu(), 1.0
    joint = torch.cat([model.mean.cpu(), head.mean])
    front = joint[head.part("teeth").vertices, 2].max()
    for part in head.parts:
        look = _GLOSSES.get(part.name, _WET)
        gloss[part.vertices] = torch.tensor([look.strength, look.power])
        colour = PART_MATERIALS[part.name].colour
        if colour is not None:
            depth = front - joint[part.vertices, 2:]
            own_colours[part.vertices] = encode_srgb(
                torch.tensor(colour) * (-depth / _MOUTH_DEPTH_M).exp().clamp(max=1)
            )
    # The face's triangles in the mouth and on the eyes are not those of the skin.
    eyes = slice(count - len(head.eye_uv), count)
    uv[eyes], textured[eyes] = head.eye_uv / torch.tensor([head.face_width, 1.0]), 1.0
    triangles = torch.cat([part.vertices[part.triangles] for part in head.parts]).int()
    blendshapes = torch.cat([model.expression_basis.cpu(), head.expression_basis], dim=1)
    return _HeadMesh(head, joint, triangles, uv, textured, own_colours, gloss, blendshapes)


class HeadPainter:
    """Pictures of the head of one reconstruction.

    Args:
        reconstruction: The face.
        model: The face's model, on the CPU.
        scalp: What the scalp shows.

    Raises:
        ModelMismatch: The model has no head.
    """

    def __init__(self, reconstruction: Reconstruction, model: MorphableModel, *, scalp: Scalp = "hair") -> None:
        mesh = per_model(model, _head_mesh)
        self._face, self._model, self._mesh = reconstruction, model, mesh
        self._scalp: Scalp = scalp
        identity, expression = _tensor(reconstruction.identity), _tensor(reconstruction.expression)
        own = mesh.head.own_vertices(identity[None], expression[None])[0]
        self._vertices = torch.cat([_tensor(reconstruction.vertices_model), own])
        self._expression = expression

    def vertices(self, expression: Float[Tensor, "E"] | None = None) -> Float[Tensor, "W 3"]:
        """The vertices of face and head in model space.

        Args:
            expression: Strengths of the blendshapes; None for those of the photo.
        """
        if expression is None:
            return self._vertices
        change = expression - self._expression
        changed = change.nonzero()[:, 0]
        return self._vertices + torch.tensordot(change[changed], self._mesh.blendshapes[changed], dims=1)

    def picture(
        self,
        *,
        yaw_deg: float,
        side_px: int,
        pitch_deg: float = 0.0,
        expression: Float[Tensor, "E"] | None = None,
        framing: Framing = WHOLE_HEAD,
    ) -> UInt8[np.ndarray, "S S 3"]:
        """The head in the studio.

        Args:
            yaw_deg: Turn about the vertical axis; positive shows more of the head's right side.
            side_px: Side of the picture in pixels.
            pitch_deg: Turn about the horizontal axis; positive lowers the chin.
            expression: As in `vertices`.
            framing: What of the head it shows.
        """
        yaw, pitch = np.deg2rad(yaw_deg), np.deg2rad(pitch_deg)
        turns = rotvec_to_rotmat(torch.tensor([[0.0, yaw, 0.0], [pitch, 0.0, 0.0]], dtype=torch.float32))
        rotation = turns[1] @ turns[0]
        shape = self.vertices(expression)
        distance = framing.side_m / (2 * np.tan(np.deg2rad(FOV_DEG / 2)))
        placed = to_camera_axes((shape - torch.tensor(framing.centre_m)) @ rotation.T)
        placed = placed + torch.tensor([0.0, 0.0, distance])
        camera = Camera.from_fov(FOV_DEG, image_size=(side_px, side_px))
        backdrop = np.full((side_px, side_px, 3), BACKDROP, np.uint8)
        view = FaceView.of_mesh(placed.float(), self._mesh.triangles, self._mesh.uv, camera=camera)
        normals = self._normals(expression) @ rotation.T
        return view.over(self._relit(view, normals, pixel_m=framing.side_m / side_px), backdrop)

    def _normals(self, expression: Float[Tensor, "E"] | None) -> Float[Tensor, "W 3"]:
        """Unit normals in model space."""
        if expression is None:
            return self._photo_normals
        return vertex_normals(self.vertices(expression)[None], self._mesh.triangles.long())[0]

    @functools.cached_property
    def _photo_normals(self) -> Float[Tensor, "W 3"]:
        return vertex_normals(self._vertices[None], self._mesh.triangles.long())[0]

    @functools.cached_property
    def _relit_face(self) -> RelitFace:
        return relit_face(self._face, self._model, self._mesh.head)

    @functools.cached_property
    def _vertex_colours(self) -> Float[Tensor, "W 3"]:
        """Colours without light: of the face from its texture, of the rest as they continue."""
        mesh, relit, count = self._mesh, self._relit_face, len(self._face.vertices_model)
        face = sample_map(relit.texture[None], mesh.uv[:count])[0]
        masks = self._model.masks
        far = far_colour(face, mesh.head, masks.skin * (1 - masks.neck))
        outer = continued_over_head(face, mesh.head, far=far)[len(face) :][: len(mesh.head.seam_shares)]
        colours = mesh.own_colours.clone()
        if relit.tint is not None:
            colours = relit.tint(colours.T[..., None])[..., 0].T
        colours[:count] = face
        colours[count : count + len(outer)] = outer
        return colours

    def _relit(self, view: FaceView, normals: Float[Tensor, "W 3"], *, pixel_m: float) -> Float[Tensor, "N 3"]:
        """Encoded colours under the lamps; `normals` are in view axes."""
        light, shine = _lit(normals, self._mesh.gloss)
        mesh = self._mesh
        values = torch.cat([self._vertex_colours, mesh.textured, light, shine], dim=-1)
        plain, textured, light, shine = view.vertex_values(values).split([3, 1, 1, 1], dim=-1)
        albedo = torch.where(textured > _WHOLE, view.map_values(self._relit_face.texture), plain).clamp(0, 1)
        cover, hair = self._hair(view, pixel_m)
        return torch.lerp(albedo, hair, cover) * light + shine * (1 - cover)

    def _hair(self, view: FaceView, pixel_m: float) -> tuple[Float[Tensor, "N 1"], Float[Tensor, "N 3"]]:
        """Share of each sample that hair covers, and its colour. A pixel shows the mean of the hairs on it."""
        places = view.vertex_values(self._mesh.places)
        noise, cell = SurfaceNoise(1), max(HAIR_M, pixel_m)
        waves = noise(places.T[:, None], cell_m=WAVES_M)[0]
        hairs = noise(places.T[:, None], cell_m=cell)[0] * (HAIR_M / cell)
        cover = hair_cover(within_hairline_mm(places), waves=waves, hairs=hairs, scalp=self._scalp)
        return cover[:, None], self._relit_face.hair * hair_brightness(hairs)[:, None]


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32, copy=False))


def _lit(
    normals: Float[Tensor, "W 3"], gloss: Float[Tensor, "W 2"]
) -> tuple[Float[Tensor, "W 1"], Float[Tensor, "W 1"]]:
    """Factor of the lamps on the colours of vertices, and the shine that they add; `normals` are in view axes."""
    towards = F.normalize(torch.tensor([direction for direction, _ in _LAMPS]), dim=1)
    brightness = torch.tensor([strength for _, strength in _LAMPS])
    halfway = F.normalize(towards + torch.tensor([0.0, 0.0, 1.0]), dim=1)
    (low, high), (strength, power) = _AMBIENT, gloss.split(1, dim=-1)
    lamps = (normals @ towards.T + _SOFTNESS).clamp(min=0) @ brightness / (1 + _SOFTNESS)
    light = low + (high - low) * (0.5 + 0.5 * normals[:, 1:2]) + lamps[:, None]
    shine = (normals @ halfway.T).clamp(min=0) ** power @ brightness
    return light ** (1 / _GAMMA), strength * shine[:, None]
