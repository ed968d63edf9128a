"""The encoder: its initial prediction, the effect of the camera, refinement, and its files."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from mien.camera import Camera, Pose
from mien.errors import ConfigError, FormatError, ModelMismatch, OutOfMemory
from mien.morphable import FaceCoefficients, MorphableModel, load_model
from mien.morphable.symmetry import mirrored_camera, mirrored_points
from mien.networks import FaceEncoder, load_encoder, save_encoder
from mien.networks.crop_space import (
    HEAD_UNITS,
    POSE_HEADS,
    SHAPE_HEADS,
    mean_face_frame,
    to_crop_space,
)
from mien.networks.encoder import REFINE_STEPS, extend_encoder
from mien.networks.refiner import MAX_CORRECTION, MAX_UNITS, POINT_UNIT, Refiner
from mien.networks.weights_file import current_names
from mien.perception import face_crop
from tests.tiny import tiny_model

SIZE = 64


@pytest.fixture
def encoder(tiny: MorphableModel) -> FaceEncoder:
    return FaceEncoder("efficientnet_lite0", tiny, image_size=SIZE).eval()


def randomized(encoder: FaceEncoder) -> FaceEncoder:
    """With batch statistics of some images, without which all features are 0, and with random heads."""
    for norm in (m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.momentum = 1.0
    with torch.no_grad():
        encoder.backbone.train()(torch.rand(4, 3, SIZE, SIZE))
    for head in encoder.heads.values():
        torch.nn.init.normal_(head.get_parameter("weight"), std=0.05)
        torch.nn.init.normal_(head.get_parameter("bias"))
    return encoder.eval()


@pytest.fixture
def trained(encoder: FaceEncoder) -> FaceEncoder:
    return randomized(encoder)


@pytest.fixture
def pointed(tiny: MorphableModel) -> FaceEncoder:
    return randomized(FaceEncoder("efficientnet_lite0", tiny, image_size=SIZE, points=True))


@pytest.fixture
def refining(tiny: MorphableModel) -> FaceEncoder:
    encoder = FaceEncoder("efficientnet_lite0", tiny, image_size=SIZE, points=True, refiner=True)
    assert encoder.refiner is not None
    torch.nn.init.normal_(encoder.refiner.head.weight, std=0.01)
    return randomized(encoder)


def inputs_of(encoder: FaceEncoder, count: int) -> tuple[torch.Tensor, ...]:
    """Inputs of the network for images of noise with plausible points."""
    side = encoder.crop_size
    camera = Camera.from_fov(20.0, image_size=(side, side), batch=count)
    return encoder.inputs(torch.rand(count, 3, side, side), camera, landmarks468_px=(some_points(count) + 0.5) * side)


def some_points(count: int) -> torch.Tensor:
    """Points near those of the mean face, in sides of the crop from its centre."""
    return mean_face_frame(tiny_model()).points + 0.05 * torch.randn(count, 468, 2)


def off_centre_camera() -> Camera:
    return Camera(torch.tensor([150.0]), torch.tensor([[-20.0, 95.0]]), image_size=(SIZE, SIZE))


@pytest.mark.parametrize("points", [False, True])
def test_training_starts_at_the_mean_face_straight_and_in_place(points: bool) -> None:
    model = load_model()
    encoder = FaceEncoder("efficientnet_lite0", model, image_size=SIZE, points=points).eval()
    camera = Camera.from_fov(12.0, image_size=(SIZE, SIZE))
    points_there = mean_face_frame(model).points + 0.05 * torch.randn(1, 468, 2)
    crop, landmarks468_px = torch.rand(1, 3, 2 * SIZE, 2 * SIZE), (points_there + 0.5) * 2 * SIZE
    with torch.no_grad():
        face = encoder.encode(crop, camera, landmarks468_px=landmarks468_px)
    assert face.identity.abs().max() < 0.1
    assert face.expression.max() < 0.05
    assert face.pose.rotation.abs().max() < 0.05
    vertices = face.pose.to_camera(model.vertices(face.identity, face.expression))
    crop = face_crop(camera.project(model.mediapipe_points(vertices))[0], size=SIZE)
    # The crop that perception would cut around the predicted face is the image itself, up to perspective.
    assert abs(crop.scale - 1) < 0.1
    assert crop.to_photo(torch.tensor([[SIZE / 2, SIZE / 2]])).sub(SIZE / 2).abs().max() < 0.05 * SIZE


@pytest.mark.parametrize("kind", ["trained", "pointed", "refining"])
def test_encoders_are_saved_in_half_precision(
    kind: str, request: pytest.FixtureRequest, tiny: MorphableModel, tmp_path: Path
) -> None:
    path, kept = tmp_path / "encoder.safetensors", request.getfixturevalue(kind)
    save_encoder(kept, path, notes={"steps": "3"})
    again = load_encoder(tiny, path)
    for name, tensor in kept.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.half().float() if tensor.is_floating_point() else tensor)
    # With rounded weights both networks predict the same.
    kept.load_state_dict(again.state_dict())
    inputs = inputs_of(kept, 2)
    with torch.no_grad():
        found = again(*inputs)[-1]
        for name, value in kept(*inputs)[-1].items():
            torch.testing.assert_close(found[name], value)
            assert value.abs().max() > 0.1 * HEAD_UNITS[name], name
    assert not any(p.requires_grad for p in again.parameters())


def test_a_moved_point_changes_the_prediction_linearly(pointed: FaceEncoder) -> None:
    """At the mean face's points the branch gives only its biases; a point that moves by one unit adds one column."""
    images, mean = torch.rand(1, 3, SIZE, SIZE), mean_face_frame(tiny_model()).points[None]
    assert pointed.points is not None
    torch.testing.assert_close(pointed.points.mean, mean[0])
    torch.nn.init.zeros_(pointed.points.first.bias)
    torch.nn.init.zeros_(pointed.points.second.bias)
    with torch.no_grad():
        assert pointed.points(mean).abs().max() == 0
        there = pointed(images, mean)[-1]
        moved = mean.clone()
        moved[0, 7, 1] += 0.05  # one unit
        column = pointed.points.first.weight[:, 2 * 7 + 1]
        hidden = column + pointed.points.second.weight @ torch.nn.functional.silu(column)
        off = pointed(images, moved)[-1]["rotation"] - there["rotation"]
        weight = pointed.heads["rotation"].get_parameter("weight")[:, -len(hidden) :]
        expected = weight @ hidden * HEAD_UNITS["rotation"]
    torch.testing.assert_close(off[0], expected, atol=1e-5, rtol=1e-4)


def test_points_are_given_in_sides_of_the_crop_from_its_centre(pointed: FaceEncoder) -> None:
    crops, landmarks468_px = torch.rand(1, 3, 2 * SIZE, 2 * SIZE), torch.zeros(1, 468, 2)
    landmarks468_px[0, 3] = torch.tensor(
        [2.0 * SIZE, 0.5 * SIZE]
    )  # on the right edge, a quarter of the side above the centre
    images, points = pointed.inputs(
        crops, Camera.from_fov(20.0, image_size=(2 * SIZE, 2 * SIZE)), landmarks468_px=landmarks468_px
    )
    assert images.shape[-1] == SIZE
    assert points[0, [0, 3]].tolist() == [[-0.5, -0.5], [0.5, -0.25]]


def test_missing_and_superfluous_inputs_are_refused(pointed: FaceEncoder, encoder: FaceEncoder) -> None:
    images = torch.rand(1, 3, SIZE, SIZE)
    with pytest.raises(TypeError, match="built with points"):
        pointed(images)
    with pytest.raises(TypeError, match="built without points"):
        encoder(images, some_points(1))
    assert len(inputs_of(encoder, 1)) == 1
    with pytest.raises(TypeError, match="without a refiner"):
        pointed(images, some_points(1), images, torch.ones(1, 3))
    with pytest.raises(ConfigError, match="needs points=True"):
        FaceEncoder("efficientnet_lite0", tiny_model(), refiner=True)


def test_adding_points_changes_the_prediction_little(trained: FaceEncoder, tiny: MorphableModel) -> None:
    larger = extend_encoder(trained, tiny, refiner=False).eval()
    images, points = torch.rand(2, 3, SIZE, SIZE), some_points(2)
    with torch.no_grad():
        before, after = trained(images)[-1], larger(images, points)[-1]
    for name, value in before.items():
        assert 0 < (after[name] - value).abs().max() < 0.1 * HEAD_UNITS[name], name
        assert value.abs().max() > 0.1 * HEAD_UNITS[name], name
    # The new branch gets a gradient.
    sum(v.square().sum() for v in larger(images, points)[-1].values()).backward()  # pyright: ignore
    assert larger.points is not None
    assert larger.points.first.weight.grad is not None
    assert larger.points.first.weight.grad.abs().sum() > 0


def test_adding_a_refiner_changes_the_prediction_little(pointed: FaceEncoder, tiny: MorphableModel) -> None:
    larger = extend_encoder(pointed, tiny, refiner=True).eval()
    inputs = inputs_of(larger, 2)
    with torch.no_grad():
        before, after = pointed(*(nn.functional.interpolate(inputs[0], size=SIZE), inputs[1]))[-1], larger(*inputs)[-1]
    for name in ("albedo", "lighting"):
        torch.testing.assert_close(after[name], before[name])
    for name in (*SHAPE_HEADS, *POSE_HEADS):
        assert 0 < (after[name] - before[name]).abs().max() < 0.2 * HEAD_UNITS[name], name
    assert extend_encoder(larger, tiny, refiner=False).refiner is not None


def test_the_refiner_gets_the_residuals_of_the_prediction_under_the_camera(
    refining: FaceEncoder, tiny: MorphableModel
) -> None:
    side, first, seen = refining.crop_size, deepcopy(refining), []
    first.refiner = None
    assert refining.refiner is not None
    refining.refiner.state_layer.register_forward_hook(lambda _module, given, _output: seen.append(given[0]))
    camera = Camera(torch.tensor([300.0]), torch.tensor([[-40.0, 190.0]]), image_size=(side, side))
    crops, landmarks468_px = torch.rand(1, 3, side, side), (some_points(1) + 0.5) * side
    with torch.no_grad():
        refining.encode(crops, camera, landmarks468_px=landmarks468_px)
        face = first.encode(crops, camera, landmarks468_px=landmarks468_px)
    shape = tiny.vertices(face.identity, face.expression)
    there = camera.project(tiny.mediapipe_points(face.pose.to_camera(shape)))
    count = len(refining.refiner.units)
    torch.testing.assert_close(
        seen[0][:, count:].unflatten(1, (-1, 2)), (landmarks468_px - there) / side / POINT_UNIT, atol=2e-3, rtol=1e-4
    )
    identity = (face.identity / HEAD_UNITS["identity"]).clamp(-MAX_UNITS, MAX_UNITS)
    torch.testing.assert_close(seen[0][:, : identity.shape[1]], identity)


def test_encode_takes_several_refinement_steps(refining: FaceEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    side = refining.crop_size
    camera = Camera.from_fov(20.0, image_size=(side, side), batch=1)
    crops, landmarks468_px = torch.rand(1, 3, side, side), (some_points(1) + 0.5) * side
    first = deepcopy(refining)
    first.refiner = None
    monkeypatch.setattr(Refiner, "forward", lambda refiner, *_, **__: refiner.units[None] * 0.1)
    with torch.no_grad():
        before, after = (e.encode(crops, camera, landmarks468_px=landmarks468_px) for e in (first, refining))
        once = refining.encode(crops, camera, landmarks468_px=landmarks468_px, refine_steps=1)
    torch.testing.assert_close(after.identity - before.identity, torch.full_like(before.identity, REFINE_STEPS * 0.1))
    torch.testing.assert_close(once.identity - before.identity, torch.full_like(before.identity, 0.1))
    with pytest.raises(ConfigError, match="refine_steps=0 is out of range"):
        refining.encode(crops, camera, landmarks468_px=landmarks468_px, refine_steps=0)


def test_corrections_have_a_limit_and_a_gradient_everywhere(refining: FaceEncoder) -> None:
    assert refining.refiner is not None
    refiner, lengths = refining.refiner, []
    refiner.register_forward_hook(lambda *call: lengths.append((call[2] / refiner.units).square().mean(1).sqrt()))
    for scale in (0.0, 0.1, 1e4):
        with torch.no_grad():
            refiner.head.weight.normal_(std=0.01 * scale)
            refiner.head.bias.zero_()
        refining(*inputs_of(refining, 2))[-1]["identity"].sum().backward()
    assert lengths[0].max() == 0
    assert 0 < lengths[1].max() < MAX_CORRECTION
    torch.testing.assert_close(lengths[2], torch.full_like(lengths[2], MAX_CORRECTION))
    assert refiner.head.weight.grad is not None
    assert refiner.head.weight.grad.isfinite().all()


def test_encode_is_the_mean_over_crop_and_mirror_image() -> None:
    """Of all parameters, with the mirror image's prediction mirrored back."""
    model = load_model()
    encoder = randomized(FaceEncoder("efficientnet_lite0", model, image_size=SIZE, points=True))
    mirror = encoder.mirror
    assert mirror is not None
    camera = off_centre_camera()
    crop, points = torch.rand(1, 3, SIZE, SIZE), (mean_face_frame(model).points[None] + 0.5) * SIZE
    flipped = mirrored_points(points, mirror.mesh, side=SIZE)
    with torch.no_grad():
        face = encoder.encode(crop, camera, landmarks468_px=points)
        upright = encoder.parameters_of(encoder(*encoder.inputs(crop, camera, landmarks468_px=points))[-1])
        inputs = encoder.inputs(crop.flip(-1), mirrored_camera(camera), landmarks468_px=flipped)
        other = encoder.parameters_of(encoder(*inputs)[-1]).mirrored(mirror)
    pred = to_crop_space(face, camera, sides_per_m=encoder.sides_per_m).tensors()
    for name in set(HEAD_UNITS) - {"expression"}:
        mean = (getattr(upright, name) + getattr(other, name)) / 2
        torch.testing.assert_close(pred[name], mean, atol=1e-4, rtol=1e-4, msg=name)
    mean = (upright.expression + other.expression) / 2
    torch.testing.assert_close(face.expression, mean.clamp(0, 1), atol=1e-5, rtol=1e-4)


def test_forward_predicts_once_per_refinement_step(refining: FaceEncoder) -> None:
    """Each step has B rows, corrects the step before it, and is not differentiated through that step."""
    inputs, bias = inputs_of(refining, 3), refining.refiner.head.bias  # pyright: ignore[reportOptionalMemberAccess]
    first = refining.parameters_of(refining(*inputs)[-1])
    second = refining._refined(first, *inputs[1:])
    third = refining._refined(second, *inputs[1:])
    steps = refining(*inputs, refine_steps=3)
    assert len(steps) == 3
    for step, expected in zip(steps, (first, second, third), strict=True):
        for name, tensor in step.items():
            assert len(tensor) == 3
            torch.testing.assert_close(tensor, getattr(expected, name))
    assert not torch.equal(first.rotation, second.rotation)
    (gradient,) = torch.autograd.grad(steps[1]["rotation"].sum(), bias)
    fixed = refining.parameters_of({name: tensor.detach() for name, tensor in first.tensors().items()})
    (expected,) = torch.autograd.grad(refining._refined(fixed, *inputs[1:]).rotation.sum(), bias)
    torch.testing.assert_close(gradient, expected)


@pytest.fixture
def from_landmarks() -> FaceEncoder:
    """With the packaged model, which is symmetric."""
    encoder = FaceEncoder(
        "efficientnet_lite0", load_model(), image_size=SIZE, points=True, refiner=True, refine_from="landmarks"
    )
    assert encoder.refiner is not None
    torch.nn.init.normal_(encoder.refiner.head.weight, std=0.01)
    return randomized(encoder)


def a_face(encoder: FaceEncoder, camera: Camera) -> FaceCoefficients:
    counts = load_model().counts
    face = FaceCoefficients(
        torch.randn(1, counts[0]) * 0.5,
        torch.rand(1, counts[1]) * 0.3 + 0.3,
        torch.randn(1, counts[2]),
        torch.rand(1, 9, 3),
        Pose(torch.tensor([[0.1, -0.2, 0.05]]), camera.ray(torch.tensor([[30.0, 36.0]])) * 0.9, torch.ones(1)),
    )
    back = to_crop_space(face, camera, sides_per_m=encoder.sides_per_m).coefficients(camera)
    torch.testing.assert_close(back.pose.translation, face.pose.translation)
    return face


def test_a_given_face_is_corrected_as_its_mirror_image_is(from_landmarks: FaceEncoder) -> None:
    """Pixels change shape and pose; light and albedo stay, and `encode` leaves the correction out."""
    encoder, camera, crop = from_landmarks, off_centre_camera(), torch.rand(1, 3, SIZE, SIZE)
    mirror, face = encoder.mirror, a_face(from_landmarks, camera)
    assert mirror is not None
    points = torch.rand(1, 468, 2) * SIZE
    with torch.no_grad():
        found = encoder.refine(crop, camera, face, landmarks468_px=points)
        other = encoder.refine(torch.rand_like(crop), camera, face, landmarks468_px=points)
        inputs = encoder.inputs(crop, camera, landmarks468_px=points)
        start = encoder.start_of(to_crop_space(face, camera, sides_per_m=encoder.sides_per_m))
        one_sided = encoder.parameters_of(encoder(*inputs, start)[-1])
        there = to_crop_space(face, camera, sides_per_m=encoder.sides_per_m).mirrored(mirror)
        flipped = encoder.refine(
            crop.flip(-1),
            mirrored_camera(camera),
            there.coefficients(mirrored_camera(camera)),
            landmarks468_px=mirrored_points(points, mirror.mesh, side=SIZE),
        )
        heads = encoder.encode(crop, camera, landmarks468_px=points)
        encoder.refiner = None
        torch.testing.assert_close(heads.identity, encoder.encode(crop, camera, landmarks468_px=points).identity)
    assert torch.equal(found.lighting, face.lighting)
    assert torch.equal(found.albedo, face.albedo)
    assert 1e-3 < float((found.identity - face.identity).square().mean().sqrt()) < 2 * MAX_CORRECTION
    assert not torch.allclose(found.identity, other.identity, atol=1e-4)
    assert not torch.allclose(found.identity, one_sided.identity, atol=1e-5)
    torch.testing.assert_close(one_sided.albedo, face.albedo)
    torch.testing.assert_close(flipped.identity, found.identity @ mirror.identity, atol=1e-4, rtol=1e-4)


def test_a_refiner_for_predictions_corrects_no_given_face(refining: FaceEncoder) -> None:
    face = FaceCoefficients.mean(identity=12, expression=4, albedo=5)
    with pytest.raises(ConfigError, match="no refiner that starts from the landmarks"):
        refining.refine(torch.rand(1, 3, 64, 64), off_centre_camera(), face, landmarks468_px=torch.rand(1, 468, 2))


def test_the_file_keeps_where_the_refiner_starts(from_landmarks: FaceEncoder, tmp_path: Path) -> None:
    save_encoder(from_landmarks, tmp_path / "encoder.safetensors", notes={})
    loaded = load_encoder(load_model(), tmp_path / "encoder.safetensors")
    assert loaded.refine_from == "landmarks"
    camera = off_centre_camera()
    face, points = a_face(loaded, camera), torch.rand(1, 468, 2) * SIZE
    crop = torch.rand(1, 3, SIZE, SIZE)
    again, before = (e.refine(crop, camera, face, landmarks468_px=points) for e in (loaded, from_landmarks))
    torch.testing.assert_close(again.identity, before.identity, atol=5e-3, rtol=0)


def test_training_mode_does_not_change_the_number_of_predictions(refining: FaceEncoder) -> None:
    inputs = inputs_of(refining, 2)
    for steps in (1, 2):
        counts = [len(network(*inputs, refine_steps=steps)) for network in (refining.train(), refining.eval())]
        assert counts == [steps, steps]


def test_refinement_steps_out_of_range_are_refused(refining: FaceEncoder, pointed: FaceEncoder) -> None:
    with pytest.raises(ConfigError, match="refine_steps=0 is out of range: it must be at least 1"):
        refining(*inputs_of(refining, 1), refine_steps=0)
    with pytest.raises(ConfigError, match="refine_steps=2 is out of range: it must be 1 without a refiner"):
        pointed(*inputs_of(pointed, 1), refine_steps=2)


def test_files_of_version_0_1_load(refining: FaceEncoder, tiny: MorphableModel, tmp_path: Path) -> None:
    """Version 0.1 called the refiner `look`, and its layers `seen`, `told` and `second`."""
    path = tmp_path / "encoder.safetensors"
    save_encoder(refining, path, notes={})
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    old_names = {"refiner": "look", "map_layer": "seen", "state_layer": "told", "hidden_layer": "second"}

    def old(name: str) -> str:
        parts = name.split(".")
        return ".".join([old_names.get(part, part) for part in parts] if parts[0] == "refiner" else parts)

    header = metadata | {"encoder": metadata["encoder"].replace("refiner", "look")}
    save_file({old(name): tensor for name, tensor in tensors.items()}, path, metadata=header)
    assert any(name.startswith("look.seen.") for name in map(old, tensors))
    loaded = load_encoder(tiny, path).state_dict()
    assert all(torch.equal(loaded[name], tensor.to(loaded[name].dtype)) for name, tensor in tensors.items())
    prefixed = {
        f"{part}{old(name)}.exp_avg" for part in ("network.", "average.module.", "optimizer.") for name in tensors
    }
    current = current_names(dict.fromkeys(prefixed, torch.zeros(1)))
    assert {
        f"{part}{name}.exp_avg" for part in ("network.", "average.module.", "optimizer.") for name in tensors
    } == set(current)


def test_another_face_model_is_refused(trained: FaceEncoder, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(trained, path, notes={})
    with pytest.raises(ModelMismatch, match="another face model"):
        load_encoder(tiny_model(seed=1), path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "mien-encoder-1"}, "has format 'mien-encoder-1'"),
        ({"encoder": "{}"}, "does not hold a network"),
        ({"encoder": "not JSON"}, "does not hold a network"),
        ({"encoder": '{"backbone": "vgg", "image_size": 64, "points": false}'}, "backbone 'vgg' is unknown"),
        ({"encoder": '{"backbone": "resnet50", "image_size": 64, "points": false}'}, "does not hold a network"),
        ({}, "does not hold a network"),
        ({"encoder": '{"backbone": "efficientnet_lite0", "image_size": 0, "points": false}'}, "image_size=0"),
        ({"encoder": '{"backbone": "efficientnet_lite0", "image_size": -4, "points": false}'}, "image_size=-4"),
        ({"encoder": '{"backbone": "efficientnet_lite0", "image_size": 1099511627776, "points": false}'}, "32 to 1024"),
        ({"encoder": '{"backbone": "efficientnet_lite0", "image_size": "x", "points": false}'}, "at `$.image_size`"),
        ({"encoder": '{"backbone": "efficientnet_lite0", "image_size": 64, "points": "no"}'}, "at `$.points`"),
        ({"encoder": "[" * 100_000}, "nested too deep"),
        ({"encoder": '{"backbone": "efficientnet_lite0", "image_size": 1' + "0" * 5000 + "}"}, "5001 digits"),
    ],
)
def test_other_files_are_refused(tiny: MorphableModel, tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    path = tmp_path / "encoder.safetensors"
    header = {"format": "mien-encoder-2", "model_hash": tiny.fingerprint, **metadata}
    save_file({"x": torch.zeros(1)}, path, metadata=header)
    with pytest.raises(FormatError, match=re.escape(message)):
        load_encoder(tiny, path)
    save_file({"x": torch.zeros(1)}, path, metadata={"format": "mien-encoder-2"})
    with pytest.raises(FormatError, match="does not hold a network of format mien-encoder-2: 'model_hash'"):
        load_encoder(tiny, path)
    path.write_bytes(b"no tensors")
    with pytest.raises(FormatError, match="not a readable safetensors"):
        load_encoder(tiny, path)


def test_weights_that_are_not_finite_are_refused(trained: FaceEncoder, tiny: MorphableModel, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(trained, path, notes={})
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["heads.identity.weight"][0, 0] = torch.nan
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(FormatError, match=r"the weights heads\.\w+\.weight hold values that are not finite"):
        load_encoder(tiny, path)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Cannot allocate memory (os error 12)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_short_memory_is_not_called_damage(
    trained: FaceEncoder, tiny: MorphableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(trained, path, notes={})

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as context:
        context.setattr("mien.io.tensors.safe_open", fail)
        with pytest.raises(OutOfMemory, match="memory ran out"):
            load_encoder(tiny, path)
    monkeypatch.setattr("mien.networks.encoder.make_backbone", fail)
    with pytest.raises(OutOfMemory, match="memory ran out"):
        load_encoder(tiny, path)


def test_a_file_that_may_not_be_read_is_not_called_damaged(
    tiny: MorphableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(b"content")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("mien.io.tensors.safe_open", refuse)
    with pytest.raises(FormatError, match=r"cannot be read \(Permission denied\); check the file's permissions"):
        load_encoder(tiny, path)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("trained", ["images"]),
        ("pointed", ["images", "points"]),
        ("refining", ["images", "points", "sharp", "lens"]),
        ("from_landmarks", ["images", "points"]),
    ],
)
def test_onnx_predicts_the_same_for_any_batch(
    kind: str, names: list[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    kept = request.getfixturevalue(kind)
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "encoder.onnx"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports that torchvision is missing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter uses its own deprecated functions
        kept.to_onnx(path)
    session = onnxruntime.InferenceSession(str(path))
    assert [given.name for given in session.get_inputs()] == names
    assert [output.name for output in session.get_outputs()] == list(HEAD_UNITS)
    for count in (1, 3):
        inputs = inputs_of(kept, count)[: len(names)]
        found = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
        with torch.no_grad():
            for array, expected in zip(found, kept(*inputs)[-1].values(), strict=True):
                np.testing.assert_allclose(array, expected.numpy(), atol=2e-4, rtol=1e-4)


COMPILED = """
import warnings
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from mien.camera import Camera, Pose
from mien.networks.encoder import FaceEncoder
from tests.tiny import tiny_model

warnings.simplefilter("ignore")
for points, refiner in ((False, False), (True, False), (True, True)):
    encoder = FaceEncoder("efficientnet_lite0", tiny_model(), image_size=64, points=points, refiner=refiner).eval()
    camera = Camera.from_fov(20.0, image_size=(64, 64), batch=2)
    inputs = encoder.inputs(torch.rand(2, 3, 64, 64), camera, landmarks468_px=torch.rand(2, 468, 2) * 64)
    with torch.no_grad():
        compiled = torch.compile(encoder, backend="eager", fullgraph=True)(*inputs, refine_steps=1 + refiner)
        plain = encoder(*inputs, refine_steps=1 + refiner)
    pairs = [(c[name], p[name]) for c, p in zip(compiled, plain, strict=True) for name in p]
    print(all(torch.allclose(*pair, atol=1e-6) for pair in pairs), len(plain))
"""


def test_the_compiler_takes_the_whole_network() -> None:
    """One graph without breaks; compiling it with a real back end is PyTorch's part and takes minutes.

    In its own process: the tests' runtime checks of annotations cannot be compiled.
    """
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout == "True 1\nTrue 1\nTrue 2\n", done.stderr
