"""The encoder: its initial prediction, the effect of the camera, and refinement."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from mien.camera import Camera
from mien.errors import ConfigError
from mien.morphable import FaceCoefficients, MorphableModel, load_model
from mien.morphable.symmetry import mirrored_camera, mirrored_points
from mien.networks import FaceEncoder
from mien.networks.crop_space import (
    HEAD_UNITS,
    POSE_HEADS,
    SHAPE_HEADS,
    mean_face_frame,
    to_crop_space,
)
from mien.networks.encoder import REFINE_STEPS, extend_encoder
from mien.networks.refiner import MAX_CORRECTION, MAX_UNITS, POINT_UNIT, Refiner
from mien.perception import face_crop
from tests.tiny import tiny_model
from tests.tiny_encoder import SIZE, a_face, inputs_of, off_centre_camera, randomized, some_points


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
