"""The encoder: predicts coefficients of the face model from a face crop and the points detected in it (section 2.1).

crop ── backbone ──┐
468 points ── MLP ─┴─ features ── heads ── refiner ──► CropSpaceParameters ── camera ──► FaceCoefficients
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from mien.camera import Camera
from mien.errors import AssetError, ConfigError
from mien.lighting import SH_COUNT
from mien.morphable import FaceCoefficients, MorphableModel
from mien.morphable.symmetry import Mirror, mirrored_camera, mirrored_points
from mien.networks.backbones import make_backbone
from mien.networks.crop_space import (
    HEAD_UNITS,
    POSE_HEADS,
    SHAPE_HEADS,
    CropSpaceParameters,
    mean_face_frame,
    to_crop_space,
)
from mien.networks.refiner import REFINER_SIZE, Refiner, crop_size
from mien.typing import Float, Tensor

FIRST_WEIGHT = 1e-3
"""Standard deviation of the heads' weights at the start: small beside the features, so that training starts at the mean
face."""
POINT_UNIT = 0.05
"""Typical distance of a point from the mean face's, in sides of the crop."""
REFINE_STEPS = 3
"""Refinement steps of `FaceEncoder.encode` with a refiner that starts at the heads' prediction."""
RefinerStart = Literal["prediction", "landmarks"]
"""What a refiner corrects: the prediction of the heads, or a fit to the landmarks."""
POINT_COUNT, POINT_FEATURES = 468, 128
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 32, 1024
"""Limits of the side of the backbone's input, pixels."""


class PointBranch(nn.Module):
    """Features of the 468 points, from their differences to the mean face's points."""

    mean: Tensor

    def __init__(self, mean: Float[Tensor, "468 2"]) -> None:
        super().__init__()
        self.register_buffer("mean", mean, persistent=False)
        self.first = nn.Linear(mean.numel(), POINT_FEATURES)
        self.second = nn.Linear(POINT_FEATURES, POINT_FEATURES)

    def forward(self, points: Float[Tensor, "B 468 2"]) -> Float[Tensor, "B F"]:
        """Map points in sides of the crop from its centre (x right, y down) to features; differentiable."""
        hidden = self.first(((points - self.mean) / POINT_UNIT).flatten(1))
        return hidden + self.second(nn.functional.silu(hidden))


class FaceEncoder(nn.Module):
    """A backbone with one linear head per group of coefficients.

    Before training it predicts the mean face, seen from the front and centred.

    Args:
        backbone: Name for `make_backbone`.
        model: Face model whose coefficients are predicted.
        image_size: Side of the backbone's input, pixels.
        dropout: Share of features that are left out in training, before the heads and in the refiner.
        points: Whether the heads also get features of the 468 detected points. A crop of a hundred pixels shows the
            shape of a face less exactly than its points do.
        refiner: Whether a `Refiner` corrects shape and pose; needs points.
        refine_from: What the refiner corrects. "prediction": the prediction of the heads, in `encode`. "landmarks": a
            fit to the landmarks, in `refine`; `encode` then gives the heads' prediction.

    Raises:
        ConfigError: `refiner` without `points`, an unknown backbone, or `image_size` out of range.

    Example:
        >>> encoder = load_encoder(model)
        >>> coefficients = encoder.encode(crops, camera, landmarks468_px=points_px)
    """

    origin: Tensor

    def __init__(
        self,
        backbone: str,
        model: MorphableModel,
        *,
        image_size: int = 224,
        dropout: float = 0.0,
        points: bool = False,
        refiner: bool = False,
        refine_from: RefinerStart = "prediction",
    ) -> None:
        if refiner and not points:
            raise ConfigError("refiner=True needs points=True; set encoder.points = true.")
        if not MIN_IMAGE_SIZE <= image_size <= MAX_IMAGE_SIZE:
            raise ConfigError(f"image_size={image_size} is out of range; use {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE}.")
        super().__init__()
        self.backbone_name, self.model_hash, self.image_size = backbone, model.fingerprint, image_size
        self.refine_from: RefinerStart = refine_from
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

    @property
    def crop_size(self) -> int:
        """Side in pixels below which a crop shows the network less than it can use."""
        return crop_size(self.image_size, refiner=self.refiner is not None)

    def inputs(
        self, crops: Float[Tensor, "B 3 H H"], camera: Camera, *, landmarks468_px: Float[Tensor, "B 468 2"]
    ) -> tuple[Tensor, ...]:
        """Prepare the inputs of `forward`: one, two or four tensors, depending on how the encoder was built.

        Args:
            crops: Square crops of any size, RGB in [0, 1].
            camera: The cameras of the crops, in the crops' pixels.
            landmarks468_px: Detected points in the crops' pixels.
        """
        tensors = [_resized(crops, self.image_size)]
        if self.points is not None:
            tensors.append(landmarks468_px / crops.shape[-1] - 0.5)
        if self.refiner is not None:
            lens = torch.cat([camera.focal_px[:, None], camera.centre_px], dim=1) / crops.shape[-1]
            tensors += [_resized(crops, REFINER_SIZE), lens]
        return tuple(tensors)

    def forward(
        self,
        images: Float[Tensor, "B 3 S S"],
        points: Float[Tensor, "B 468 2"] | None = None,
        refiner_images: Float[Tensor, "B 3 R R"] | None = None,
        lens: Float[Tensor, "B 3"] | None = None,
        start: Float[Tensor, "B K"] | None = None,
        *,
        refine_steps: int = 1,
    ) -> list[dict[str, Float[Tensor, "B N"]]]:
        """Predict the heads' tensors by name, once per refinement step.

        Returns plain tensors in float32, since DDP, Lightning Fabric and ONNX cannot pass on a frozen dataclass; see
        `parameters_of`. Differentiable in the weights. No step is differentiated through the step before it.

        Args:
            images: RGB crops in [0, 1].
            points: Detected points in sides of the crop from its centre, y down; for an encoder with points.
            refiner_images: The crops at the refiner's size; for an encoder with a refiner, as is `lens`.
            lens: Focal length and principal point (x, y) of the cameras, in sides of the crop.
            start: What the refiner corrects instead of the heads' prediction, see `start_of`.
            refine_steps: Number of refinement steps, at least 1. An encoder without a refiner takes 1 only.

        Returns:
            One prediction per refinement step, the last one last; one prediction without a refiner.

        Raises:
            TypeError: An input is missing, or the encoder was built without it.
            ConfigError: `refine_steps` is out of range.
        """
        refining = self.refiner is not None and (self.refine_from == "prediction" or start is not None)
        self._check_inputs(points, refiner_images, lens, refine_steps, refining=refining)
        first = self._heads_of(images, points) if start is None else self._started(start)
        if points is None or refiner_images is None or lens is None:
            return [first.tensors()]
        steps = [self._refined(first, points, refiner_images, lens)]
        while len(steps) < refine_steps:
            steps.append(self._refined(_detached(steps[-1]), points, refiner_images, lens))
        return [step.tensors() for step in steps]

    def start_of(self, faces: CropSpaceParameters) -> Float[Tensor, "B K"]:
        """Faces as the `start` of `forward`: all heads in the order of `HEAD_UNITS`."""
        return torch.cat(list(faces.tensors().values()), dim=1)

    def _started(self, start: Float[Tensor, "B K"]) -> CropSpaceParameters:
        """The inverse of `start_of`."""
        sizes = [head.out_features for head in self.heads.values()]
        return self.parameters_of(dict(zip(HEAD_UNITS, start.split(sizes, dim=1), strict=True)))

    def _check_inputs(
        self,
        points: Tensor | None,
        refiner_images: Tensor | None,
        lens: Tensor | None,
        refine_steps: int,
        *,
        refining: bool,
    ) -> None:
        expected = (self.points is not None, refining, refining)
        if tuple(given is not None for given in (points, refiner_images, lens)) != expected:
            raise TypeError(
                f"this encoder was built {'without' if self.points is None else 'with'} points and "
                f"{'without' if self.refiner is None else 'with'} a refiner; pass what `inputs` returns (and `start`, "
                "if the refiner starts from the landmarks)"
            )
        if refine_steps < 1 or (refine_steps > 1 and self.refiner is None):
            allowed = "must be 1 without a refiner" if self.refiner is None else "must be at least 1"
            raise ConfigError(f"refine_steps={refine_steps} is out of range: it {allowed}.")

    def _heads_of(
        self, images: Float[Tensor, "B 3 S S"], points: Float[Tensor, "B 468 2"] | None
    ) -> CropSpaceParameters:
        """The prediction before refinement."""
        features = self.dropout(self.backbone(images)).float()
        with torch.autocast(features.device.type, enabled=False):
            if self.points is not None and points is not None:
                features = torch.cat([features, self.points(points.float())], dim=1)
            predicted = {name: self.heads[name](features) * unit for name, unit in HEAD_UNITS.items()}
        predicted["translation"] = predicted["translation"] + self.origin
        return self.parameters_of(predicted)

    def _refined(
        self,
        before: CropSpaceParameters,
        points: Float[Tensor, "B 468 2"],
        refiner_images: Float[Tensor, "B 3 R R"],
        lens: Float[Tensor, "B 3"],
    ) -> CropSpaceParameters:
        """The prediction after one refinement step; without a refiner the prediction itself."""
        if self.refiner is None:
            return before
        camera = Camera(lens[:, 0] * REFINER_SIZE, lens[:, 1:] * REFINER_SIZE, image_size=(REFINER_SIZE, REFINER_SIZE))
        names = (*SHAPE_HEADS, *POSE_HEADS)
        old = before.tensors()
        correction = self.refiner(
            refiner_images,
            shape=torch.cat([before.identity, before.clamped_expression()], dim=1),
            pose=before.pose(camera),
            camera=camera,
            state=torch.cat([old[name] for name in names], dim=1),
            points=points,
        )
        parts = correction.split([old[name].shape[1] for name in names], dim=1)
        return self.parameters_of(old | {name: old[name] + part for name, part in zip(names, parts, strict=True)})

    def parameters_of(self, prediction: dict[str, Float[Tensor, "B _"]]) -> CropSpaceParameters:
        """Wrap one prediction of `forward`.

        Args:
            prediction: One element of the list that `forward` returns.
        """
        return CropSpaceParameters.from_tensors(prediction, sides_per_m=self.sides_per_m)

    def encode(
        self,
        crops: Float[Tensor, "B 3 H H"],
        camera: Camera,
        *,
        landmarks468_px: Float[Tensor, "B 468 2"],
        refine_steps: int = REFINE_STEPS,
    ) -> FaceCoefficients:
        """Predict coefficients of faces, averaged over crop and mirror image where the model is symmetric.

        The errors for a crop and for its mirror image differ, so their mean is better than either.

        Args:
            crops: Square crops of any size, as `face_crop` cuts them; RGB in [0, 1].
            camera: The cameras of the crops, in the crops' pixels.
            landmarks468_px: Detected points in the crops' pixels; ignored by an encoder without points.
            refine_steps: Number of refinement steps, at least 1; ignored by an encoder without a refiner, and by one
                whose refiner starts from the landmarks.

        Returns:
            Coefficients with metric poses under `camera`.

        Raises:
            ConfigError: `refine_steps` is below 1.

        Example:
            >>> face = encoder.encode(crops, camera, landmarks468_px=points_px)
            >>> vertices = face.pose.to_camera(model.vertices(face.identity, face.expression))
        """
        if refine_steps < 1:
            raise ConfigError(f"refine_steps={refine_steps} is out of range: it must be at least 1.")
        inputs = self._inputs_with_mirror(crops, camera, landmarks468_px)
        return self._averaged(self._predict(inputs, refine_steps), len(crops)).coefficients(camera)

    def refine(
        self,
        crops: Float[Tensor, "B 3 H H"],
        camera: Camera,
        coefficients: FaceCoefficients,
        *,
        landmarks468_px: Float[Tensor, "B 468 2"],
    ) -> FaceCoefficients:
        """Correct shape and pose of faces that were fitted to the landmarks, from the pixels of the crop.

        As in `encode`, the correction is the mean over crop and mirror image. Light and albedo are kept. Not
        differentiable in the faces.

        Args:
            crops: As for `encode`.
            camera: The cameras of the crops, in the crops' pixels.
            coefficients: The faces, with poses of scale 1.
            landmarks468_px: Detected points in the crops' pixels.

        Raises:
            ConfigError: This encoder has no refiner that starts from the landmarks.
        """
        if self.refiner is None or self.refine_from != "landmarks":
            raise ConfigError("this encoder has no refiner that starts from the landmarks; use `encode` alone.")
        faces = to_crop_space(coefficients, camera, sides_per_m=self.sides_per_m)
        if self.mirror is not None:
            faces = CropSpaceParameters.join([faces, faces.mirrored(self.mirror)])
        _, points, refiner_images, lens = self._inputs_with_mirror(crops, camera, landmarks468_px)
        refined = self._averaged(self._refined(faces, points, refiner_images, lens), len(crops)).coefficients(camera)
        return replace(refined, lighting=coefficients.lighting, albedo=coefficients.albedo)

    def _inputs_with_mirror(
        self, crops: Float[Tensor, "B 3 H H"], camera: Camera, landmarks468_px: Float[Tensor, "B 468 2"]
    ) -> tuple[Tensor, ...]:
        """The inputs of `forward`, followed by those of the mirror images if the model is symmetric."""
        upright = self.inputs(crops, camera, landmarks468_px=landmarks468_px)
        if self.mirror is None:
            return upright
        points = mirrored_points(landmarks468_px, self.mirror.mesh, side=crops.shape[-1])
        flipped = self.inputs(crops.flip(-1), mirrored_camera(camera), landmarks468_px=points)
        return tuple(torch.cat(pair) for pair in zip(upright, flipped, strict=True))

    def _averaged(self, faces: CropSpaceParameters, count: int) -> CropSpaceParameters:
        """The mean of the first `count` faces and their mirror images, which follow them if the model is symmetric."""
        return faces if self.mirror is None else faces[:count].averaged(faces[count:].mirrored(self.mirror))

    def _predict(self, inputs: tuple[Tensor, ...], refine_steps: int) -> CropSpaceParameters:
        """The prediction after all steps; other than in `forward`, its gradient passes through every step."""
        if self.refine_from == "landmarks":
            return self._heads_of(inputs[0], inputs[1])
        prediction = self.parameters_of(self(*inputs)[-1])
        if self.refiner is not None:
            _, points, refiner_images, lens = inputs
            for _ in range(refine_steps - 1):
                prediction = self._refined(prediction, points, refiner_images, lens)
        return prediction

    def to_onnx(self, path: Path) -> None:
        """Write the network as ONNX: `forward` with one refinement step, one named output per head, any batch size.

        The inputs are those of `forward`; `refiner_images` is called `sharp` in the file. A refiner that starts from
        the landmarks is left out: the file then has the heads' prediction, from images and points. The file does not
        take the mean over crop and mirror image that `encode` takes. Switches the network to evaluation mode.

        Args:
            path: File to write.

        Raises:
            AssetError: The packages of `mien[onnx]` are missing.
        """
        try:
            import onnxscript  # noqa: F401, PLC0415  # torch's exporter needs it; its own message is unclear
        except ImportError as error:
            raise AssetError("the ONNX export needs more packages; run pip install 'mien[onnx]'.") from error
        camera = Camera.from_fov(30.0, image_size=(self.crop_size, self.crop_size), batch=2)
        crops = torch.zeros(2, 3, self.crop_size, self.crop_size)
        example = self.inputs(crops, camera, landmarks468_px=torch.zeros(2, POINT_COUNT, 2))
        if self.refine_from == "landmarks":
            example = example[:2]
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
    """Copy an encoder and add points and, if asked for, a refiner; its predictions change little.

    Args:
        encoder: The encoder to copy; it is not changed. Its refiner, if any, is copied too.
        model: Face model that the encoder belongs to.
        refiner: Whether the copy gets a refiner.
    """
    larger = FaceEncoder(
        encoder.backbone_name,
        model,
        image_size=encoder.image_size,
        dropout=encoder.dropout.p,
        points=True,
        refiner=refiner or encoder.refiner is not None,
        refine_from=encoder.refine_from,
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


def _detached(prediction: CropSpaceParameters) -> CropSpaceParameters:
    """The prediction without gradient where the refiner corrects it; albedo and lighting keep theirs."""
    tensors = prediction.tensors()
    tensors |= {name: tensors[name].detach() for name in (*SHAPE_HEADS, *POSE_HEADS)}
    return CropSpaceParameters.from_tensors(tensors, sides_per_m=prediction.sides_per_m)


def _resized(crops: Float[Tensor, "B 3 H H"], size: int) -> Float[Tensor, "B 3 S S"]:
    if crops.shape[-1] == size:
        return crops
    return nn.functional.interpolate(crops, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def _head(features: int, outputs: int) -> nn.Linear:
    head = nn.Linear(features, outputs)
    nn.init.normal_(head.weight, std=FIRST_WEIGHT)
    nn.init.zeros_(head.bias)
    return head
