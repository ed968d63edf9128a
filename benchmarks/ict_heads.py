"""Synthetic photos of heads that the packaged model was not made from: ICT FaceKit's, with mien's camera and light.

Shape: ICT's own identities and expressions (Li et al., Learning Formation of Physically-Based Face Attributes, CVPR
2020; MIT). Colour: the packaged model's albedo, carried over by a warp between the two mean faces, because the free
ICT model has none. Light: nine spherical harmonics in our convention, times ambient occlusion, plus a little gloss;
then exposure, grey, noise and JPEG. Everything follows from one seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from mien.camera import Camera, Pose
from mien.export.contact_sheet import SheetLayout, in_rows
from mien.export.contact_sheet import contact_sheet as grid
from mien.geometry import Surface, align_points, rotmat_to_rotvec, rotvec_to_rotmat, submesh, vertex_normals
from mien.lighting import LUMA, shading
from mien.morphable import MorphableModel
from mien.morphable.landmark_tables import IBUG_CHIN, IBUG_INNER
from mien.rasterizer import rasterize_hard
from mien.typing import Float, Int, Tensor

MM = 10.0
"""ICT's unit is the centimetre."""

# Half-open vertex ranges of the parts (part_vertex_range of the pack).
_FACE, _HEAD = slice(0, 9409), slice(9409, 11248)
_NARROW_FACE = 6706
_MOUTH_SOCKET, _GUMS, _TEETH = slice(11248, 13294), slice(14062, 17039), slice(17039, 21451)
_EYES = (slice(21451, 23021), slice(23021, 24591))
_DRAWN_QUADS = 24692
"""Skin, sockets, gums, teeth and eyeballs; lashes and fluids after them need transparency."""
_SKIN_QUADS = 11144

POSES_DEG = ((0, 0, 0), (25, -8, 3), (-25, 6, -4), (45, 4, 0), (-45, -6, 5))
"""Yaw, pitch, roll."""
FOVS_DEG = (15.0, 30.0, 50.0)
"""Across the longer side of the photo: a short tele lens, our default, a phone's main camera."""
PHOTO_SIZE = (800, 640)
"""Rows and columns."""
DARK = 0.8
"""An exposure below this is named as dark."""
HEAD_SHARE = 0.58
"""Crown to chin over the photo's height: large enough that the frame cuts the bust, not the model's end."""
_HEAD_HEIGHT_M = 0.225

# Direction to the light (right, up, to the viewer), how strong it is beside the ambient light, and its tint.
LIGHTS = (
    ((0.2, 0.5, 1.0), 0.35, (1.0, 1.0, 1.0)),
    ((-0.9, 0.5, 0.7), 0.55, (1.03, 1.0, 0.96)),
    ((0.9, 0.3, 0.6), 0.65, (0.98, 1.0, 1.03)),
    ((0.0, 1.0, 0.5), 0.50, (1.02, 1.0, 0.98)),
    ((-0.4, -0.3, 1.0), 0.30, (1.05, 1.0, 0.93)),
)

EXPRESSIONS: tuple[dict[str, float], ...] = (
    {},
    {"mouthSmile": 0.7, "cheekSquint": 0.4, "eyeSquint": 0.3},
    {"jawOpen": 0.35, "browInnerUp": 0.4, "eyeWide": 0.3},
    {},
    {"mouthSmile": 0.45, "mouthDimple": 0.3},
    {"browDown": 0.7, "mouthPress": 0.5, "eyeSquint": 0.3},
    {"mouthPucker": 0.6, "browOuterUp": 0.3},
    {"jawOpen": 0.2, "mouthSmile": 0.8, "mouthUpperUp": 0.4, "cheekSquint": 0.6},
    {"mouthFrown": 0.5, "browInnerUp": 0.6},
    {"jawOpen": 0.15, "mouthStretch": 0.3, "noseSneer": 0.2},
)
"""ARKit blendshapes without their side; asymmetry is random."""


@dataclass(frozen=True)
class IctModel:
    """ICT's linear head in millimetres."""

    mean: Float[Tensor, "V 3"]
    triangles: Int[Tensor, "T 3"]
    """Triangles of the rendered parts."""
    skin_triangles: Int[Tensor, "S 3"]
    identity_deltas: Float[Tensor, "100 V 3"]
    expression_deltas: Float[Tensor, "E V 3"]
    expression_names: tuple[str, ...]
    landmarks68: Int[Tensor, "68"]

    @classmethod
    def load(cls, path: Path) -> IctModel:
        with np.load(path, allow_pickle=False) as pack:
            quad = torch.from_numpy(pack["triangle_to_quad"])
            triangles = torch.from_numpy(pack["triangles"]).long()
            return cls(
                torch.from_numpy(pack["vertices"]) * MM,
                triangles[quad < _DRAWN_QUADS],
                triangles[quad < _SKIN_QUADS],
                torch.from_numpy(pack["identity_deltas"]) * MM,
                torch.from_numpy(pack["expression_deltas"]) * MM,
                tuple(str(name) for name in pack["expression_names"]),
                torch.from_numpy(pack["landmarks68"]).long(),
            )

    def vertices(self, identity: Float[Tensor, "100"], expression: Float[Tensor, "E"]) -> Float[Tensor, "V 3"]:
        """Positions of one head."""
        offset = identity @ self.identity_deltas.flatten(1) + expression @ self.expression_deltas.flatten(1)
        return self.mean + offset.view(-1, 3)

    @property
    def narrow_face(self) -> Float[Tensor, "N 3"]:
        """The mean's points of the source's narrow face, the first vertices: no ears, no neck, no scalp."""
        return self.mean[:_NARROW_FACE]


@dataclass(frozen=True)
class Head:
    """One head: all its random choices."""

    index: int
    identity: Float[Tensor, "100"]
    expression: Float[Tensor, "E"]
    albedo: Float[Tensor, "A"]
    pose_index: int
    light_index: int
    fov_deg: float
    grey: bool
    exposure: float
    shaven: bool
    seed: int

    @property
    def name(self) -> str:
        yaw, pitch, _ = POSES_DEG[self.pose_index]
        extra = ("_grey" if self.grey else "") + ("_dark" if self.exposure < DARK else "")
        return f"head{self.index:02d}_yaw{yaw:+d}_pitch{pitch:+d}_light{self.light_index}_fov{self.fov_deg:.0f}{extra}"


def sample_heads(ict: IctModel, *, albedo_count: int, count: int = 24, seed: int = 2026) -> list[Head]:
    """Heads that go through poses, lights and focal lengths so that no two of these always come together."""
    heads = []
    for k in range(count):
        generator = torch.Generator().manual_seed(1000 * seed + k)
        uniform = torch.rand(4, generator=generator)
        identity = torch.randn(len(ict.identity_deltas), generator=generator) * (0.8 + 0.2 * uniform[0])
        expression = _sample_expression(ict, EXPRESSIONS[k % len(EXPRESSIONS)], generator)
        heads.append(
            Head(
                index=k,
                identity=identity,
                expression=expression,
                albedo=torch.randn(albedo_count, generator=generator).clamp(-2.5, 2.5) * 0.8,
                pose_index=k % len(POSES_DEG),
                light_index=(k + k // len(POSES_DEG)) % len(LIGHTS),
                fov_deg=FOVS_DEG[(k + k // 6) % len(FOVS_DEG)],
                grey=k % 8 == 3,
                exposure=0.5 if k % 8 == 6 else float(0.9 + 0.2 * uniform[1]),
                shaven=bool(uniform[2] < 0.25),
                seed=1000 * seed + k,
            )
        )
    return heads


def _sample_expression(ict: IctModel, blendshapes: dict[str, float], generator: torch.Generator) -> Tensor:
    values = torch.zeros(len(ict.expression_names))
    for blendshape, strength in blendshapes.items():
        for k, name in enumerate(ict.expression_names):
            if name in {blendshape, f"{blendshape}_L", f"{blendshape}_R"}:
                values[k] = strength * (0.85 + 0.3 * torch.rand(1, generator=generator).item())
    return values.clamp(0, 1)


class HeadPainter:
    """Vertex colours of ICT's head from the packaged model's albedo."""

    def __init__(self, ict: IctModel, model: MorphableModel) -> None:
        self.ict, self.model = ict, model
        skin = ict.mean[: _HEAD.stop]
        warped = _warp(model.mean * 1000, model.landmarks68, skin, ict.landmarks68)
        masks = model.masks
        triangles = submesh(model.triangles, (masks.eyes < 0.5) & (masks.mouth < 0.5))
        found = Surface(warped, triangles).closest(skin)
        self.corners, self.weights = triangles[found.triangle_ids], found.barycentrics
        # Ears, scalp and neck lie beyond the packaged face: its colours fade into the skin's mean there.
        self.inside = 1 - _smoothstep(found.distances, 3.0, 18.0)
        self.inside *= _smoothstep(skin[:, 1], -105.0, -85.0) * _smoothstep(skin[:, 2], 10.0, 35.0)

    def colours(self, head: Head) -> Float[Tensor, "V 3"]:
        """Albedo of every vertex, sRGB-encoded."""
        generator = torch.Generator().manual_seed(head.seed)
        own = self.model.albedo(head.albedo[None])[0].clamp(0.02, 0.98)
        masks = self.model.masks
        plain = masks.skin * (1 - masks.lips) * (1 - masks.brows) * (1 - masks.eyes) * (1 - masks.mouth)
        mean_skin = (own * plain[:, None]).sum(0) / plain.sum()
        colours = torch.empty(len(self.ict.mean), 3)
        skin = (own[self.corners] * self.weights[..., None]).sum(1)
        colours[: _HEAD.stop] = mean_skin + self.inside[:, None] * (skin - mean_skin)
        self._hair(colours, head, generator)
        self._clothes(colours, generator)
        colours[_HEAD.stop :] = mean_skin * 0.8  # eye sockets, almost invisible
        colours[_MOUTH_SOCKET] = torch.tensor([0.45, 0.18, 0.17])
        colours[_GUMS] = torch.tensor([0.72, 0.38, 0.37])
        colours[_TEETH] = torch.tensor([0.88, 0.85, 0.78])
        iris = torch.tensor([[0.28, 0.17, 0.10], [0.36, 0.48, 0.58], [0.36, 0.40, 0.26], [0.20, 0.12, 0.08]])
        chosen = iris[int(torch.randint(len(iris), (1,), generator=generator))]
        for eye in _EYES:
            colours[eye] = _eye_colours(self.ict.mean[eye], chosen)
        return colours.clamp(0, 1)

    def _hair(self, colours: Tensor, head: Head, generator: torch.Generator) -> None:
        x, y, z = (self.ict.mean[: _HEAD.stop] / MM).unbind(-1)
        hairline = y - 1.05 * z - 0.6 + 0.25 * torch.sin(2.1 * x) + 0.15 * torch.sin(5.3 * x + 1)
        ear = (x.abs() > 7.6) & (y < 4.8) & (y > -4) & (z < 3.2) & (z > -3.5)
        hair = torch.sigmoid(3.0 * hairline) * ~ear
        shades = torch.tensor([[0.07, 0.05, 0.05], [0.16, 0.10, 0.07], [0.25, 0.16, 0.10], [0.34, 0.24, 0.15]])
        colour = shades[int(torch.randint(len(shades), (1,), generator=generator))]
        strands = 1 + 0.2 * torch.randn(len(y), 1, generator=generator)
        strength = 0.35 if head.shaven else 0.95
        blend = strength * hair[:, None]
        colours[: _HEAD.stop] += blend * (colour * strands - colours[: _HEAD.stop])

    def _clothes(self, colours: Tensor, generator: torch.Generator) -> None:
        y = self.ict.mean[: _HEAD.stop, 1]
        cloth = torch.rand(1, generator=generator) * 0.5 + 0.1 + 0.2 * (torch.rand(3, generator=generator) - 0.5)
        colours[: _HEAD.stop] += _smoothstep(-y, 140.0, 144.0)[:, None] * (cloth - colours[: _HEAD.stop])


def _eye_colours(eye: Float[Tensor, "P 3"], iris: Float[Tensor, "3"]) -> Float[Tensor, "P 3"]:
    """White, limbus, iris and pupil by the distance from the axis through the middle of the eyeball; millimetres."""
    middle = (eye.amin(0) + eye.amax(0)) / 2
    radius = (eye[:, :2] - middle[:2]).norm(dim=-1)
    behind = eye[:, 2] < middle[2]
    radius = torch.where(behind, torch.full_like(radius, 12.0), radius)[:, None]
    white, pupil = torch.tensor([0.90, 0.87, 0.85]), torch.tensor([0.03, 0.03, 0.03])
    colour = iris * (1.15 - 0.35 * _smoothstep(radius, 4.2, 5.8))
    colour = pupil + _smoothstep(radius, 1.9, 2.4) * (colour - pupil)
    return colour + _smoothstep(radius, 5.4, 6.2) * (white - colour)


def _smoothstep(x: Tensor, low: float, high: float) -> Tensor:
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _warp(
    points: Float[Tensor, "V 3"],
    landmarks: Int[Tensor, "68"],
    target: Float[Tensor, "W 3"],
    target_landmarks: Int[Tensor, "68"],
) -> Float[Tensor, "V 3"]:
    """Similarity of the 51 inner landmarks, then the biharmonic spline that makes all 51 and the chin coincide."""
    used = torch.cat([torch.arange(68)[IBUG_INNER], torch.tensor([IBUG_CHIN])])
    goal = target[target_landmarks[used]]
    points = align_points(points[landmarks[used]][None], goal[None])(points[None])[0]
    centres = points[landmarks[used]].double()

    def features(p: Tensor) -> Tensor:
        return torch.cat([torch.cdist(p, centres), torch.ones(len(p), 1, dtype=p.dtype), p / 100], dim=1)

    basis = features(centres)
    system = torch.zeros(len(used) + 4, len(used) + 4, dtype=torch.float64)
    system[: len(used)] = basis
    system[len(used) :, : len(used)] = basis[:, len(used) :].T
    system[: len(used), : len(used)] += 2.0 * torch.eye(len(used))  # millimetres of slack: the tables disagree
    right = torch.cat([goal.double() - centres, torch.zeros(4, 3, dtype=torch.float64)])
    return points + (features(points.double()) @ torch.linalg.solve(system, right)).to(points)


@dataclass(frozen=True)
class Photograph:
    """The picture of a head and its focal length."""

    pixels: np.ndarray
    focal_px: float


def simulate_camera(
    ict: IctModel, painter: HeadPainter, head: Head, *, pose_deg: Sequence[float] | None = None
) -> Photograph:
    """Render one head at twice the size and downsample it.

    Args:
        ict: The model of the head.
        painter: Its colours.
        head: The head.
        pose_deg: Yaw, pitch and roll; None for those of the head's number.
    """
    generator = torch.Generator().manual_seed(head.seed + 500)
    offset = torch.rand(2, generator=generator) * 0.04 - 0.02 + torch.tensor([0.0, 0.01])
    camera = Camera.from_fov(head.fov_deg, image_size=PHOTO_SIZE)
    fine = camera.cropped(
        scale=torch.tensor([2.0]), shift_px=torch.zeros(1, 2), image_size=(2 * PHOTO_SIZE[0], 2 * PHOTO_SIZE[1])
    )
    focal = float(camera.focal_px)
    distance = focal * _HEAD_HEIGHT_M / (HEAD_SHARE * PHOTO_SIZE[0])
    pose = Pose(
        rotation=_pose_rotvec(POSES_DEG[head.pose_index] if pose_deg is None else pose_deg),
        translation=torch.tensor([[float(offset[0]) * distance, float(offset[1]) * distance, distance]]),
        scale=torch.ones(1),
    )
    # Turned about a point between the ears, a little above the chin: where necks turn heads.
    vertices = ict.vertices(head.identity, head.expression)[None] / 1000 - torch.tensor([0.0, 0.01, 0.03])
    normals = vertex_normals(vertices, ict.triangles)
    occlusion = _ambient_occlusion(vertices[0], normals[0], ict.triangles)
    attributes = torch.cat(
        [painter.colours(head), pose.to_view_axes(normals)[0], occlusion[:, None], _gloss(len(occlusion))], dim=1
    )
    covered, values, points = _rasterized(pose.to_camera(vertices), ict.triangles, attributes, fine)
    light = LIGHTS[head.light_index]
    colours = _lit(values, points, light)
    background = _background(fine.image_size, generator)
    image = torch.where(covered, colours, background)
    image = F.avg_pool2d(image.permute(2, 0, 1)[None], 2)[0].permute(1, 2, 0)
    image = _developed(image * head.exposure, grey=head.grey, generator=generator)
    return Photograph(image, focal)


def _pose_rotvec(angles_deg: Sequence[float]) -> Float[Tensor, "1 3"]:
    yaw, pitch, roll = (math.radians(a) for a in angles_deg)
    turns = [rotvec_to_rotmat(torch.tensor([v])) for v in ([0.0, 0.0, roll], [pitch, 0.0, 0.0], [0.0, yaw, 0.0])]
    return rotmat_to_rotvec(turns[0] @ turns[1] @ turns[2])


def _rasterized(
    vertices_camera: Tensor, triangles: Tensor, attributes: Tensor, camera: Camera
) -> tuple[Tensor, Tensor, Tensor]:
    depth = vertices_camera[..., 2]
    rendered = rasterize_hard(
        camera.to_ndc(vertices_camera), triangles, image_size=camera.image_size,
        near=float(depth.min()) - 0.01, far=float(depth.max()) + 0.01,
    )  # fmt: skip
    ids, weights = rendered.triangle_ids[0].long(), rendered.barycentrics[0][..., None]
    corners = triangles[ids.clamp(min=0)]
    values = (attributes[corners] * weights).sum(2)
    points = (vertices_camera[0][corners] * weights).sum(2)
    return (ids >= 0)[..., None], values, points


def _gloss(count: int) -> Float[Tensor, "V 1"]:
    gloss = torch.full((count, 1), 0.10)
    for eye in _EYES:
        gloss[eye] = 0.8
    gloss[_TEETH] = 0.3
    return gloss


def _lit(values: Tensor, points: Tensor, light: tuple) -> Tensor:
    albedo, normals, occlusion, gloss = values.split([3, 3, 1, 1], dim=-1)
    normals = F.normalize(normals, dim=-1)
    direction = F.normalize(torch.tensor(light[0]), dim=0)
    lit = shading(normals[None], sh_lighting(light)[None])[0].clamp(min=0.05)
    to_viewer = F.normalize(-points, dim=-1) * torch.tensor([1.0, -1.0, -1.0])
    half = F.normalize(to_viewer + direction, dim=-1)
    power = torch.where(gloss > 0.5, 120.0, 14.0)
    shine = gloss * (normals * half).sum(-1, keepdim=True).clamp(min=0) ** power * light[1]
    return albedo * lit * occlusion + shine * occlusion


def sh_lighting(light: tuple) -> Float[Tensor, "9 3"]:
    """Ambient light plus a distant lamp, in `mien.lighting`'s basis; a surface that faces the lamp gets about 1.1."""
    direction, strength, tint = light
    x, y, z = F.normalize(torch.tensor(direction), dim=0).tolist()
    # Coefficients of a delta function: the basis functions' values at its direction without Lambert's kernel.
    delta = torch.tensor(
        [1.0, math.sqrt(3) * y, math.sqrt(3) * z, math.sqrt(3) * x, math.sqrt(15) * x * y, math.sqrt(15) * y * z,
         math.sqrt(5) / 2 * (3 * z * z - 1), math.sqrt(15) * x * z, math.sqrt(15) / 2 * (x * x - y * y)]
    )  # fmt: skip
    lamp = strength * delta / 4 * 1.6
    ambient = torch.zeros(9)
    ambient[0] = 1.1 - 1.35 * strength
    return (ambient + lamp)[:, None] * torch.tensor(tint)


_SKY = 48
"""Number of directions of ambient occlusion."""


def _ambient_occlusion(
    vertices: Float[Tensor, "V 3"], normals: Float[Tensor, "V 3"], triangles: Int[Tensor, "T 3"]
) -> Float[Tensor, "V"]:
    """Cosine-weighted share of the sky that each vertex sees, softened; from depth images of far cameras."""
    k = torch.arange(_SKY) + 0.5
    height, turn = 1 - 2 * k / _SKY, k * math.pi * (3 - math.sqrt(5))  # a Fibonacci sphere
    ring = (1 - height**2).sqrt()
    sky = torch.stack([ring * turn.cos(), height, ring * turn.sin()], dim=-1)
    visible, total = torch.zeros(len(vertices)), torch.zeros(len(vertices))
    size, far = 320, 20.0
    for direction in sky:
        side = F.normalize(torch.linalg.cross(torch.tensor([0.31, 0.17, 0.93]), direction), dim=0)
        frame = torch.stack([side, torch.linalg.cross(direction, side), direction])
        local = vertices @ frame.T
        depth = far - local[:, 2]
        ndc = torch.cat([local[:, :2] / 0.25, depth[:, None]], dim=-1)
        rendered = rasterize_hard(ndc[None], triangles, image_size=(size, size), near=far - 0.5, far=far + 0.5)
        pixel = ((ndc[:, :2] + 1) / 2 * size).long().clamp(0, size - 1)
        front = rendered.depth[0][pixel[:, 1], pixel[:, 0]]
        cosine = (normals @ direction).clamp(min=0)
        visible += cosine * ((front == 0) | (depth < front + 0.003))
        total += cosine
    return 0.25 + 0.75 * (visible / total.clamp(min=1e-6))


def _background(size: tuple[int, int], generator: torch.Generator) -> Float[Tensor, "H W 3"]:
    """A plain wall: one colour, a slow gradient."""
    level, tint = torch.rand(1, generator=generator) * 0.5 + 0.25, torch.rand(3, generator=generator) - 0.5
    colour = level + 0.12 * tint
    grid = F.interpolate(
        torch.rand(1, 1, 3, 3, generator=generator) * 0.2 - 0.1, size=size, mode="bicubic", align_corners=True
    )[0, 0]
    return (colour + grid[..., None]).clamp(0, 1)


def _developed(image: Tensor, *, grey: bool, generator: torch.Generator) -> np.ndarray:
    if grey:
        image = (image * torch.tensor(LUMA)).sum(-1, keepdim=True).expand_as(image)
    noise = torch.randn(image.shape, generator=generator) * 0.008
    return ((image + (noise.mean(-1, keepdim=True) if grey else noise)).clamp(0, 1) * 255).round().byte().numpy()


def save_photograph(photo: Photograph, path: Path) -> None:
    """Write the JPEG beside a text file with the focal length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo.pixels).save(path, quality=94)
    path.with_suffix(".focal").write_text(f"{photo.focal_px:.6f}\n", encoding="utf-8")


def contact_sheet(paths: Sequence[Path], target: Path, *, columns: int = 6, width: int = 240) -> None:
    """All pictures on one page."""
    tiles = []
    for path in paths:
        with Image.open(path) as image:
            tiles.append(image.convert("RGB").resize((width, round(width * image.height / image.width))))
    sheet = grid(in_rows([np.asarray(tile) for tile in tiles], columns), SheetLayout(), columns=columns)
    Image.fromarray(sheet).save(target, quality=90)
