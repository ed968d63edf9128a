"""The encoder of the base branch: a face crop, and the points found in it, in; coefficients of the face model out.

crop ── backbone ──┐
468 points ── MLP ─┴─ features ── heads ── second look ──► Regression ── camera ──► FaceCoefficients
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from mien.assets import asset_path
from mien.camera import DEFAULT_FOV_DEG, Camera
from mien.errors import AssetError, ConfigError
from mien.lighting import SH_COUNT
from mien.morphable import FaceCoefficients, MorphableModel
from mien.morphable.symmetry import Mirror, mirrored_camera, mirrored_points
from mien.networks.backbones import make_backbone
from mien.networks.crop_space import HEAD_UNITS, POSE_HEADS, SHAPE_HEADS, CropSpaceParameters, mean_face_frame
from mien.networks.refiner import REFINER_SIZE, Refiner, crop_size
from mien.networks.weights_file import NetworkKind
from mien.typing import Float, Tensor

FILE = NetworkKind("mien-encoder-2", "encoder")
DEFAULT_ENCODER = "encoder-lite0.safetensors"
FIRST_WEIGHT = 1e-3
"""Spread of the heads' weights at the start: small beside the features, so that training starts at the mean face."""
POINT_UNIT = 0.05
"""About how far a point lies from the mean face's, in sides of the crop."""
REFINE_STEPS = 3
"""How often `FaceEncoder.encode` lets a second look correct: as often as the packaged one learnt to."""
POINT_COUNT, POINT_FEATURES = 468, 128


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
    pose are corrected by a `Refiner`.
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
        refiner: bool = False,
    ) -> None:
        if refiner and not points:
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
        self.refiner = Refiner(model, units=torch.cat(units), dropout=dropout) if refiner else None
        self.mirror = Mirror.of(model)
        self._still: list[nn.Module] = []

    @property
    def crop_size(self) -> int:
        """Side in pixels below which a crop shows the network less than it could see."""
        return crop_size(self.image_size, refiner=self.refiner is not None)

    def freeze(self, *, blocks: int, batchnorm: bool, refiner_only: bool = False) -> None:
        """Keep the stem and leading blocks as they are, statistics included; with `batchnorm` all batch statistics.

        Frozen blocks need no backward pass: at 5 blocks of EfficientNet-Lite0 a step takes half the time. With
        `first_look` everything is frozen but the second look.
        """
        frozen = self.backbone.leading(blocks)
        if refiner_only:
            frozen = [module for name, module in self.named_children() if name != "refiner"]
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
        self, crops: Float[Tensor, "B 3 H H"], camera: Camera, *, landmarks468_px: Float[Tensor, "B 468 2"]
    ) -> tuple[Tensor, ...]:
        """What `forward` takes of faces in square crops of any size, with their found points in the crops' pixels."""
        taken = [_resized(crops, self.image_size)]
        if self.points is not None:
            taken.append(landmarks468_px / crops.shape[-1] - 0.5)
        if self.refiner is not None:
            lens = torch.cat([camera.focal_px[:, None], camera.centre_px], dim=1) / crops.shape[-1]
            taken += [_resized(crops, REFINER_SIZE), lens]
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
        expected = (self.points is not None, self.refiner is not None, self.refiner is not None)
        if tuple(given is not None for given in (points, sharp, lens)) != expected:
            raise TypeError(
                f"this encoder is made {'without' if self.points is None else 'with'} points and "
                f"{'without' if self.refiner is None else 'with'} a second look"
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
        if self.refiner is None:
            return said
        camera = Camera(lens[:, 0] * REFINER_SIZE, lens[:, 1:] * REFINER_SIZE, image_size=(REFINER_SIZE, REFINER_SIZE))
        first, names = self.regression(said), (*SHAPE_HEADS, *POSE_HEADS)
        correction = self.refiner(
            sharp,
            shape=torch.cat([first.identity, first.strengths()], dim=1),
            pose=first.pose(camera),
            camera=camera,
            said=torch.cat([said[name] for name in names], dim=1),
            points=points,
        )
        parts = correction.split([said[name].shape[1] for name in names], dim=1)
        return said | {name: said[name] + part for name, part in zip(names, parts, strict=True)}

    def regression(self, said: dict[str, Float[Tensor, "B N"]]) -> CropSpaceParameters:
        """The heads' tensors, named and typed."""
        return CropSpaceParameters(**said, sides_per_m=self.sides_per_m)

    def encode(
        self,
        crops: Float[Tensor, "B 3 H H"],
        camera: Camera,
        *,
        landmarks468_px: Float[Tensor, "B 468 2"],
        refine_steps: int = REFINE_STEPS,
    ) -> FaceCoefficients:
        """Coefficients of faces in square crops of any size, as `face_crop` cuts them, under the crops' cameras.

        `landmarks468_px` are the detected points in pixels of the crops; an encoder without points ignores them.
        A second look is taken `looks` times, each on the chart of what it had corrected. Where the model has a mirror
        the network is also shown the crops' mirror images, and the mean of both answers counts: they err differently.
        ConfigError for less than one look.
        """
        if refine_steps < 1:
            raise ConfigError(f"an encoder looks at least once, not {refine_steps} times.")
        shown, count = self.inputs(crops, camera, landmarks468_px=landmarks468_px), len(crops)
        if self.mirror is None:
            return self._answer(shown, refine_steps).coefficients(camera)
        points = mirrored_points(landmarks468_px, self.mirror.mesh, side=crops.shape[-1])
        turned = self.inputs(crops.flip(-1), mirrored_camera(camera), landmarks468_px=points)
        both = self._answer(tuple(torch.cat(pair) for pair in zip(shown, turned, strict=True)), refine_steps)
        return both[:count].averaged(both[count:].mirrored(self.mirror)).coefficients(camera)

    def _answer(self, shown: tuple[Tensor, ...], refine_steps: int) -> CropSpaceParameters:
        """What the network says; with a second look, after so many of them."""
        said = self(*shown)
        if self.refiner is not None:
            _, points, sharp, lens = shown
            for _ in range(refine_steps - 1):
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
        example = self.inputs(crops, camera, landmarks468_px=torch.zeros(2, POINT_COUNT, 2))
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


def extend_encoder(encoder: FaceEncoder, model: MorphableModel, *, refiner: bool) -> FaceEncoder:
    """The encoder with points and, with `look`, a second look. What is new hardly has a say yet, and can learn."""
    larger = FaceEncoder(
        encoder.backbone_name,
        model,
        image_size=encoder.image_size,
        dropout=encoder.dropout.p,
        points=True,
        refiner=refiner or encoder.refiner is not None,
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
        "refiner": encoder.refiner is not None,
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
            refiner=s.get("refiner", s.get("look", False)),  # mien 0.1 wrote "look", or neither
        ),
    )
