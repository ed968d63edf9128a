"""The encoder of the base branch: a face crop, and the points found in it, in; coefficients of the face model out.

    crop ── backbone ──┐
    468 points ── MLP ─┴─ features ── heads ── second look ──► Regression ── camera ──► FaceCoefficients

A crop says nothing of the camera that took it. So the network describes the pose as it appears in the crop (turn
against the line of sight, place, size), and `Regression.coefficients` turns that into the metric pose under a known
camera: the same picture through a longer lens is a face farther away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mien.arrays import Float, Tensor
from mien.assets import asset_path
from mien.backbones import make_backbone
from mien.camera import CAMERA_FROM_MODEL, DEFAULT_FOV_DEG, Camera, Pose
from mien.errors import AssetError, ConfigError
from mien.geometry import compose_rotations
from mien.lighting import SH_COUNT, ambient_lighting
from mien.mirror import Mirror, mirrored_camera, mirrored_points
from mien.morphable import FaceCoefficients, MorphableModel
from mien.network_file import NetworkKind
from mien.perception.alignment import FACE_CROP_SCALE
from mien.second_look import LOOK_SIZE, SecondLook, crop_size

FILE = NetworkKind("mien-encoder-2", "encoder")
DEFAULT_ENCODER = "encoder-lite0.safetensors"
HEAD_UNITS = {
    "identity": 1.0,
    "expression": 0.2,
    "albedo": 1.0,
    "lighting": 0.15,
    "rotation": 0.3,
    "translation": 0.05,
    "scale": 0.1,
}
"""What one unit of each head's last layer means: about the standard deviation of what it predicts, so that all heads
learn at one rate. Standard deviations; strength; standard deviations; light; radians; crop sides; logarithm."""
SHAPE_HEADS, POSE_HEADS = ("identity", "expression"), ("rotation", "translation", "scale")
"""What a second look corrects."""
FIRST_WEIGHT = 1e-3
"""Spread of the heads' weights at the start: small beside the features, so that training starts at the mean face."""
POINT_UNIT = 0.05
"""About how far a point lies from the mean face's, in sides of the crop."""
LOOKS = 3
"""How often `FaceEncoder.encode` lets a second look correct; one that learnt from two gains a little from a third."""
POINT_COUNT, POINT_FEATURES = 468, 128


@dataclass(frozen=True)
class Regression:
    """What the network says of a batch of crops, before a camera is known."""

    identity: Float[Tensor, "B I"]
    expression: Float[Tensor, "B E"]
    """Strengths, not yet held in [0, 1]."""
    albedo: Float[Tensor, "B A"]
    lighting: Float[Tensor, "B 27"]
    """Harmonic by harmonic the three colour channels, as the difference from white light of level 1."""
    rotation: Float[Tensor, "B 3"]
    """Rotation vector in radians, against the line of sight through the crop's centre."""
    translation: Float[Tensor, "B 2"]
    """Where the model's origin lies, in sides of the crop from its centre; x right, y down."""
    scale: Float[Tensor, "B 1"]
    """Logarithm of the apparent size, 0 where the mean face fills a face crop as it does on average."""
    sides_per_m: float
    """Sides of the crop that a metre spans at scale 0."""

    @classmethod
    def join(cls, parts: Sequence[Regression]) -> Regression:
        """One batch of several of one model."""
        return cls(
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in HEAD_UNITS},
            sides_per_m=parts[0].sides_per_m,
        )

    def to(self, device: torch.device) -> Regression:
        """The same on a device."""
        return Regression(**{name: getattr(self, name).to(device) for name in HEAD_UNITS}, sides_per_m=self.sides_per_m)

    def __getitem__(self, index: slice) -> Regression:
        """Some faces of the batch, as a batch."""
        return Regression(**{name: getattr(self, name)[index] for name in HEAD_UNITS}, sides_per_m=self.sides_per_m)

    def mirrored(self, mirror: Mirror) -> Regression:
        """What is said of the crops' mirror images."""
        light = self.lighting.unflatten(1, (SH_COUNT, 3)) * mirror.harmonics[:, None]
        return Regression(
            identity=self.identity @ mirror.identity,
            expression=self.expression @ mirror.expression,
            albedo=self.albedo @ mirror.albedo,
            lighting=light.flatten(1),
            rotation=self.rotation * self.rotation.new_tensor([1.0, -1.0, -1.0]),
            translation=self.translation * self.translation.new_tensor([-1.0, 1.0]),
            scale=self.scale,
            sides_per_m=self.sides_per_m,
        )

    def averaged(self, other: Regression) -> Regression:
        """The mean of two answers about the same faces, whose rotations must be near each other."""
        means = {name: (getattr(self, name) + getattr(other, name)) / 2 for name in HEAD_UNITS}
        return Regression(**means, sides_per_m=self.sides_per_m)

    def pose(self, camera: Camera) -> Pose:
        """The metric pose under the cameras that took the crops; differentiable."""
        side = camera.image_size[0]
        px_per_m = self.sides_per_m * side * self.scale[:, 0].exp()
        distance = camera.focal_px / px_per_m
        place_px = (0.5 + self.translation) * side
        ray = (place_px - camera.centre_px) / camera.focal_px[:, None]
        position = torch.cat([ray, torch.ones_like(ray[:, :1])], dim=-1) * distance[:, None]
        # First the head turns against the line of sight, then the line of sight against the optical axis.
        rotation = compose_rotations(sight_rotation(camera), self.rotation)
        return Pose(rotation, translation=position, scale=torch.ones_like(distance))

    def strengths(self) -> Float[Tensor, "B E"]:
        """Expressions held in [0, 1], with the gradient of the identity: one that left can come back."""
        return self.expression + (self.expression.clamp(0, 1) - self.expression).detach()

    def coefficients(self, camera: Camera) -> FaceCoefficients:
        """The same faces under the cameras that took the crops; differentiable."""
        white = ambient_lighting(len(self.lighting)).to(self.lighting)
        lighting = white + self.lighting.unflatten(1, (SH_COUNT, 3))
        return FaceCoefficients(self.identity, self.strengths(), self.albedo, lighting, self.pose(camera))


def sight_rotation(camera: Camera) -> Float[Tensor, "B 3"]:
    """The turn, in model axes, from the optical axis to the line of sight through the crop's centre."""
    side = camera.image_size[0]
    ray = (side / 2 - camera.centre_px) / camera.focal_px[:, None]
    ray = torch.cat([ray, torch.ones_like(ray[:, :1])], dim=-1) * ray.new_tensor(CAMERA_FROM_MODEL)
    ray = -ray / ray.norm(dim=-1, keepdim=True)  # towards the viewer, who is at +z of the model's axes
    axis = torch.stack([-ray[:, 1], ray[:, 0], torch.zeros_like(ray[:, 0])], dim=-1)
    sine = axis.norm(dim=-1, keepdim=True)
    return axis * torch.where(sine > 1e-6, torch.asin(sine.clamp(max=1)) / sine.clamp(min=1e-6), torch.ones_like(sine))


def appearance(coefficients: FaceCoefficients, camera: Camera, *, sides_per_m: float) -> Regression:
    """What a perfect network says of crops of known faces: the inverse of `Regression.coefficients`.

    Not differentiable. Poses must have scale 1.
    """
    side = camera.image_size[0]
    position = coefficients.pose.translation
    place_px = camera.project(position[:, None])[:, 0]
    px_per_m = camera.focal_px / position[:, 2]
    return Regression(
        identity=coefficients.identity,
        expression=coefficients.expression,
        albedo=coefficients.albedo,
        lighting=(coefficients.lighting - ambient_lighting(len(position)).to(position)).flatten(1),
        rotation=compose_rotations(-sight_rotation(camera), coefficients.pose.rotation),
        translation=place_px / side - 0.5,
        scale=(px_per_m / (sides_per_m * side)).log()[:, None],
        sides_per_m=sides_per_m,
    )


@dataclass(frozen=True)
class MeanFaceFrame:
    """How the mean face lies in its face crop, seen straight on."""

    sides_per_m: float
    """Sides of the crop that a metre spans."""
    origin: Float[Tensor, "2"]
    """Where the model's origin lies, in sides of the crop from its centre; x right, y down."""
    points: Float[Tensor, "468 2"]
    """Where MediaPipe's points lie, in the same unit."""


def mean_face_frame(model: MorphableModel) -> MeanFaceFrame:
    """The frame in which a network that says nothing shows the mean face in the right place."""
    points = model.mediapipe_points(model.mean[None])[0, :, :2]
    low, high = points.amin(0), points.amax(0)
    # `face_crop` takes FACE_CROP_SCALE times the longer side of the points' box, around its centre.
    sides_per_m = 1 / (FACE_CROP_SCALE * float((high - low).max()))
    to_crop = points.new_tensor(CAMERA_FROM_MODEL[:2]) * sides_per_m
    middle = (low + high) / 2
    return MeanFaceFrame(sides_per_m, origin=-middle * to_crop, points=(points - middle) * to_crop)


class PointBranch(nn.Module):
    """Features of the 468 points, from how they differ from the mean face's."""

    mean: Tensor

    def __init__(self, mean: Float[Tensor, "468 2"]) -> None:
        super().__init__()
        self.register_buffer("mean", mean, persistent=False)
        self.first = nn.Linear(mean.numel(), POINT_FEATURES)
        self.second = nn.Linear(POINT_FEATURES, POINT_FEATURES)

    def forward(self, points: Float[Tensor, "B 468 2"]) -> Float[Tensor, "B F"]:
        """Map points in sides of the crop from its centre, y down; differentiable."""
        hidden = self.first(((points - self.mean) / POINT_UNIT).flatten(1))
        return hidden + self.second(nn.functional.silu(hidden))


class FaceEncoder(nn.Module):
    """A backbone with one linear head per group of coefficients; starts at the mean face, straight and centred.

    With `points` the heads also see features of the 468 points that perception found in the crop: a picture of a
    hundred pixels shows a face's shape less exactly than its points do. With `look`, which needs points, shape and
    pose are corrected by a `SecondLook`.
    """

    origin: Tensor
    practice: int = 1
    """How many looks are taken in training, each at the chart of the answer before; `encode` takes LOOKS."""

    def __init__(
        self,
        backbone: str,
        model: MorphableModel,
        *,
        image_size: int = 224,
        dropout: float = 0.0,
        points: bool = False,
        look: bool = False,
    ) -> None:
        if look and not points:
            raise ConfigError("an encoder with a second look needs points; set encoder.points = true.")
        super().__init__()
        self.backbone_name, self.model_hash, self.image_size = backbone, model.fingerprint, image_size
        self.backbone = make_backbone(backbone)
        self.dropout = nn.Dropout(dropout)
        identity, expression, albedo = model.counts
        sizes = dict(zip(HEAD_UNITS, (identity, expression, albedo, 3 * SH_COUNT, 3, 2, 1), strict=True))
        features = self.backbone.features + (POINT_FEATURES if points else 0)
        self.heads = nn.ModuleDict({name: _head(features, size) for name, size in sizes.items()})
        frame = mean_face_frame(model)
        self.points = PointBranch(frame.points) if points else None
        self.sides_per_m = frame.sides_per_m
        self.register_buffer("origin", frame.origin, persistent=False)
        units = [torch.full((sizes[name],), HEAD_UNITS[name]) for name in (*SHAPE_HEADS, *POSE_HEADS)]
        self.look = SecondLook(model, units=torch.cat(units), dropout=dropout) if look else None
        self.mirror = Mirror.of(model)
        self._still: list[nn.Module] = []

    @property
    def crop_size(self) -> int:
        """Side in pixels below which a crop shows the network less than it could see."""
        return crop_size(self.image_size, look=self.look is not None)

    def freeze(self, *, blocks: int, batchnorm: bool, first_look: bool = False) -> None:
        """Keep the stem and leading blocks as they are, statistics included; with `batchnorm` all batch statistics.

        Frozen blocks need no backward pass: at 5 blocks of EfficientNet-Lite0 a step takes half the time. With
        `first_look` everything is frozen but the second look.
        """
        frozen = self.backbone.leading(blocks)
        if first_look:
            frozen = [module for name, module in self.named_children() if name != "look"]
        for module in frozen:
            module.requires_grad_(False)
        norms = [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)] if batchnorm else []
        self._still = [*frozen, *norms]

    def train(self, mode: bool = True) -> FaceEncoder:
        """Switch to training; what is frozen stays in evaluation."""
        super().train(mode)
        for module in self._still:
            module.eval()
        return self

    def inputs(
        self, crops: Float[Tensor, "B 3 H H"], camera: Camera, *, mesh_px: Float[Tensor, "B 468 2"]
    ) -> tuple[Tensor, ...]:
        """What `forward` takes of faces in square crops of any size, with their found points in the crops' pixels."""
        taken = [_resized(crops, self.image_size)]
        if self.points is not None:
            taken.append(mesh_px / crops.shape[-1] - 0.5)
        if self.look is not None:
            lens = torch.cat([camera.focal_px[:, None], camera.centre_px], dim=1) / crops.shape[-1]
            taken += [_resized(crops, LOOK_SIZE), lens]
        return tuple(taken)

    def forward(
        self,
        images: Float[Tensor, "B 3 S S"],
        points: Float[Tensor, "B 468 2"] | None = None,
        sharp: Float[Tensor, "B 3 R R"] | None = None,
        lens: Float[Tensor, "B 3"] | None = None,
    ) -> dict[str, Float[Tensor, "A N"]]:
        """The heads by name, from RGB crops in [0, 1] and points in sides of the crop from its centre, y down.

        A second look takes the crops in its own size and focal length and centre of their cameras, in sides of the
        crop. In training it gives the answers after each of the first `practice` looks, one batch behind the other,
        none differentiated through the one before; else A is B. Plain tensors, for DDP, compilation and ONNX. TypeError
        for an input that the network was not made for, or that it lacks.
        """
        expected = (self.points is not None, self.look is not None, self.look is not None)
        if tuple(given is not None for given in (points, sharp, lens)) != expected:
            raise TypeError(
                f"this encoder is made {'without' if self.points is None else 'with'} points and "
                f"{'without' if self.look is None else 'with'} a second look"
            )
        features = self.dropout(self.backbone(images)).float()
        with torch.autocast(features.device.type, enabled=False):
            if self.points is not None and points is not None:
                features = torch.cat([features, self.points(points.float())], dim=1)
            said = {name: self.heads[name](features) * unit for name, unit in HEAD_UNITS.items()}
        said["translation"] = said["translation"] + self.origin
        if points is None or sharp is None or lens is None:
            return said
        answers = [self._corrected(said, points, sharp, lens)]
        while self.training and len(answers) < self.practice:
            before = {name: answers[-1][name].detach() for name in (*SHAPE_HEADS, *POSE_HEADS)}
            answers.append(self._corrected(said | before, points, sharp, lens))
        return {name: torch.cat([answer[name] for answer in answers]) for name in HEAD_UNITS}

    def _corrected(
        self,
        said: dict[str, Float[Tensor, "B N"]],
        points: Float[Tensor, "B 468 2"],
        sharp: Float[Tensor, "B 3 R R"],
        lens: Float[Tensor, "B 3"],
    ) -> dict[str, Float[Tensor, "B N"]]:
        """An answer after a look at the chart of it; without a second look the answer itself."""
        if self.look is None:
            return said
        camera = Camera(lens[:, 0] * LOOK_SIZE, lens[:, 1:] * LOOK_SIZE, image_size=(LOOK_SIZE, LOOK_SIZE))
        first, names = self.regression(said), (*SHAPE_HEADS, *POSE_HEADS)
        correction = self.look(
            sharp,
            shape=torch.cat([first.identity, first.strengths()], dim=1),
            pose=first.pose(camera),
            camera=camera,
            said=torch.cat([said[name] for name in names], dim=1),
            points=points,
        )
        parts = correction.split([said[name].shape[1] for name in names], dim=1)
        return said | {name: said[name] + part for name, part in zip(names, parts, strict=True)}

    def regression(self, said: dict[str, Float[Tensor, "B N"]]) -> Regression:
        """The heads' tensors, named and typed."""
        return Regression(**said, sides_per_m=self.sides_per_m)

    def encode(
        self, crops: Float[Tensor, "B 3 H H"], camera: Camera, *, mesh_px: Float[Tensor, "B 468 2"]
    ) -> FaceCoefficients:
        """Coefficients of faces in square crops of any size, as `face_crop` cuts them, under the crops' cameras.

        `mesh_px` are the points that perception found, in the crops' pixels; an encoder without points does without.
        It is the mean of several answers, which err differently: a second look is taken once more, on the chart of what
        it had corrected, and where the model has a mirror the network is also shown the crops' mirror images.
        """
        shown, count = self.inputs(crops, camera, mesh_px=mesh_px), len(crops)
        if self.mirror is None:
            return self._answer(shown).coefficients(camera)
        points = mirrored_points(mesh_px, self.mirror.mesh, side=crops.shape[-1])
        turned = self.inputs(crops.flip(-1), mirrored_camera(camera), mesh_px=points)
        both = self._answer(tuple(torch.cat(pair) for pair in zip(shown, turned, strict=True)))
        return both[:count].averaged(both[count:].mirrored(self.mirror)).coefficients(camera)

    def _answer(self, shown: tuple[Tensor, ...]) -> Regression:
        """What the network says; with a second look, after LOOKS of them."""
        said = self(*shown)
        if self.look is not None:
            _, points, sharp, lens = shown
            for _ in range(LOOKS - 1):
                said = self._corrected(said, points, sharp, lens)
        return self.regression(said)

    def to_onnx(self, path: Path) -> None:
        """Write the network with one named output a head and a free batch size; AssetError without `onnx`.

        Inputs are those that `forward` takes of such an encoder, by name. Like `forward` it answers once: the mean that
        `encode` takes is the caller's.
        """
        try:
            import onnxscript  # noqa: F401, PLC0415  # torch's exporter needs it and says so badly
        except ImportError as error:
            raise AssetError("pip install 'mien[onnx]' brings what the export needs.") from error
        camera = Camera.from_fov(DEFAULT_FOV_DEG, image_size=(self.crop_size, self.crop_size), batch=2)
        crops = torch.zeros(2, 3, self.crop_size, self.crop_size)
        example = self.inputs(crops, camera, mesh_px=torch.zeros(2, POINT_COUNT, 2))
        torch.onnx.export(
            self.eval(),
            example,
            str(path),
            input_names=["images", "points", "sharp", "lens"][: len(example)],
            output_names=list(HEAD_UNITS),
            dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in example),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def grown(encoder: FaceEncoder, model: MorphableModel, *, look: bool) -> FaceEncoder:
    """The encoder with points and, with `look`, a second look. What is new hardly has a say yet, and can learn."""
    larger = FaceEncoder(
        encoder.backbone_name,
        model,
        image_size=encoder.image_size,
        dropout=encoder.dropout.p,
        points=True,
        look=look or encoder.look is not None,
    )
    larger.load_state_dict(
        {name: value for name, value in encoder.state_dict().items() if not name.startswith("heads.")}, strict=False
    )
    for name, head in encoder.heads.items():
        old, new = head.get_parameter("weight"), larger.heads[name].get_parameter("weight")
        with torch.no_grad():
            new[:, : old.shape[1]] = old
            larger.heads[name].get_parameter("bias").copy_(head.get_parameter("bias"))
    return larger


def _resized(crops: Float[Tensor, "B 3 H H"], size: int) -> Float[Tensor, "B 3 S S"]:
    if crops.shape[-1] == size:
        return crops
    return nn.functional.interpolate(crops, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def _head(features: int, outputs: int) -> nn.Linear:
    head = nn.Linear(features, outputs)
    nn.init.normal_(head.weight, std=FIRST_WEIGHT)
    nn.init.zeros_(head.bias)
    return head


def save_encoder(encoder: FaceEncoder, path: Path, *, notes: dict[str, str]) -> None:
    """Write the network for `load_encoder`; `notes` go into the header."""
    settings = {
        "backbone": encoder.backbone_name,
        "image_size": encoder.image_size,
        "points": encoder.points is not None,
        "look": encoder.look is not None,
    }
    FILE.save(encoder, path, model_hash=encoder.model_hash, settings=settings, notes=notes)


def load_encoder(model: MorphableModel, name_or_path: str | Path = DEFAULT_ENCODER) -> FaceEncoder:
    """The packaged encoder, or one that `mien train base` wrote, for the model that it was trained with.

    FormatError for another kind of file, ModelMismatch for another model: coefficients mean nothing on another basis.
    """
    path = asset_path(DEFAULT_ENCODER) if str(name_or_path) == DEFAULT_ENCODER else Path(name_or_path)
    return FILE.load(
        path,
        model=model,
        build=lambda s: FaceEncoder(
            s["backbone"],
            model,
            image_size=s["image_size"],
            points=s["points"],
            look=s.get("look", False),  # files of earlier versions know of none
        ),
    )
