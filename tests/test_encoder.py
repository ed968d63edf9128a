"""The encoder: where it starts, what it says under which camera, and the ways it is kept."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import warnings
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mien.camera import Camera
from mien.errors import ConfigError, FormatError, ModelMismatch
from mien.morphable import MorphableModel, load_model
from mien.networks import FaceEncoder, load_encoder, save_encoder
from mien.networks.crop_space import (
    HEAD_UNITS,
    POSE_HEADS,
    SHAPE_HEADS,
    CropSpaceParameters,
    mean_face_frame,
    to_crop_space,
)
from mien.networks.encoder import REFINE_STEPS, extend_encoder
from mien.networks.refiner import FARTHEST, LARGEST, POINT_UNIT, Refiner
from mien.perception import face_crop
from tests.tiny import tiny_model

SIZE = 64


@pytest.fixture
def encoder(tiny: MorphableModel) -> FaceEncoder:
    return FaceEncoder("efficientnet_lite0", tiny, image_size=SIZE).eval()


def outspoken(encoder: FaceEncoder) -> FaceEncoder:
    """With batch statistics of some pictures, without which no features come out, and heads that say something."""
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
    return outspoken(encoder)


@pytest.fixture
def pointed(tiny: MorphableModel) -> FaceEncoder:
    return outspoken(FaceEncoder("efficientnet_lite0", tiny, image_size=SIZE, points=True))


@pytest.fixture
def looking(tiny: MorphableModel) -> FaceEncoder:
    encoder = FaceEncoder("efficientnet_lite0", tiny, image_size=SIZE, points=True, refiner=True)
    assert encoder.refiner is not None
    torch.nn.init.normal_(encoder.refiner.head.weight, std=0.01)
    return outspoken(encoder)


def inputs_of(encoder: FaceEncoder, count: int) -> tuple[torch.Tensor, ...]:
    """What the network takes of pictures of noise, about where a face would be."""
    side = encoder.crop_size
    camera = Camera.from_fov(20.0, image_size=(side, side), batch=count)
    return encoder.inputs(torch.rand(count, 3, side, side), camera, landmarks468_px=(some_points(count) + 0.5) * side)


def some_points(count: int) -> torch.Tensor:
    """Points in sides of the crop from its centre, about where the mean face's lie."""
    return mean_face_frame(tiny_model()).points + 0.05 * torch.randn(count, 468, 2)


def off_centre_camera() -> Camera:
    return Camera(torch.tensor([150.0]), torch.tensor([[-20.0, 95.0]]), image_size=(SIZE, SIZE))


def some_regression(model: MorphableModel, encoder: FaceEncoder) -> CropSpaceParameters:
    identity, expression, albedo = model.counts
    return CropSpaceParameters(
        identity=torch.randn(1, identity),
        expression=torch.rand(1, expression),
        albedo=torch.randn(1, albedo),
        lighting=torch.randn(1, 27) * 0.1,
        rotation=torch.tensor([[0.2, -0.5, 0.1]]),
        translation=torch.tensor([[0.06, -0.04]]),
        scale=torch.tensor([[0.15]]),
        sides_per_m=encoder.sides_per_m,
    )


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
    # The crop that perception would cut around the drawn face is the picture itself, up to perspective.
    assert abs(crop.scale - 1) < 0.1
    assert crop.to_photo(torch.tensor([[SIZE / 2, SIZE / 2]])).sub(SIZE / 2).abs().max() < 0.05 * SIZE


def test_appearance_undoes_the_camera(tiny: MorphableModel, encoder: FaceEncoder) -> None:
    said, camera = some_regression(tiny, encoder), off_centre_camera()
    back = to_crop_space(said.coefficients(camera), camera, sides_per_m=encoder.sides_per_m)
    for name in HEAD_UNITS:
        torch.testing.assert_close(getattr(back, name), getattr(said, name), atol=2e-6, rtol=1e-5, msg=name)


def test_a_longer_lens_puts_the_same_face_farther_away(tiny: MorphableModel, encoder: FaceEncoder) -> None:
    said, camera = some_regression(tiny, encoder), off_centre_camera()
    near, far = said.coefficients(camera), said.coefficients(camera.with_focal_scale(torch.tensor([3.0])))
    torch.testing.assert_close(far.pose.translation[:, 2], 3 * near.pose.translation[:, 2])
    place = camera.project(near.pose.translation[:, None])[0, 0]
    torch.testing.assert_close(place, torch.tensor([0.56 * SIZE, 0.46 * SIZE]))


def test_a_face_beside_the_axis_is_seen_as_by_a_camera_turned_to_it(tiny: MorphableModel, encoder: FaceEncoder) -> None:
    """Turning the camera to the face changes its picture only by a homography, so its nose keeps its direction."""
    said = replace(some_regression(tiny, encoder), translation=torch.zeros(1, 2))
    straight = Camera.from_fov(20.0, image_size=(SIZE, SIZE))
    expected = said.coefficients(straight).pose.rotmat()[0, 2, 2]
    for camera in (straight, off_centre_camera()):
        face = said.coefficients(camera)
        to_viewer = -face.pose.translation / face.pose.translation.norm() * torch.tensor([1.0, -1.0, -1.0])
        nose = face.pose.rotmat()[0, :, 2]
        assert abs(float(nose @ to_viewer[0]) - float(expected)) < 1e-5


def test_expressions_are_held_but_keep_their_gradient(tiny: MorphableModel, encoder: FaceEncoder) -> None:
    said = some_regression(tiny, encoder)
    raw = torch.tensor([[-0.5, 0.3, 1.5, 0.0]], requires_grad=True)
    held = replace(said, expression=raw).coefficients(off_centre_camera()).expression
    torch.testing.assert_close(held, torch.tensor([[0.0, 0.3, 1.0, 0.0]]))
    held.sum().backward()
    assert raw.grad is not None
    assert raw.grad.tolist() == [[1.0, 1.0, 1.0, 1.0]]


def test_frozen_blocks_neither_learn_nor_count(encoder: FaceEncoder) -> None:
    encoder.freeze(blocks=3, batchnorm=False)
    encoder.train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    engine = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.1)
    sum(v.square().sum() for v in encoder(torch.rand(2, 3, SIZE, SIZE)).values()).backward()  # pyright: ignore
    engine.step()
    changed = {k for k, v in encoder.state_dict().items() if not torch.equal(v, before[k])}
    assert not {k for k in changed if k.startswith(("backbone._conv_stem", "backbone._bn0", "backbone._blocks.2."))}
    assert "backbone._blocks.3._depthwise_conv.weight" in changed
    assert "backbone._blocks.3._bn1.running_mean" in changed


@pytest.mark.parametrize("kind", ["trained", "pointed", "looking"])
def test_encoders_are_kept_in_half_precision(
    kind: str, request: pytest.FixtureRequest, tiny: MorphableModel, tmp_path: Path
) -> None:
    path, kept = tmp_path / "encoder.safetensors", request.getfixturevalue(kind)
    save_encoder(kept, path, notes={"steps": "3"})
    again = load_encoder(tiny, path)
    for name, tensor in kept.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.half().float() if tensor.is_floating_point() else tensor)
    # Rounded, it answers as it does when it is read again.
    kept.load_state_dict(again.state_dict())
    inputs = inputs_of(kept, 2)
    with torch.no_grad():
        found = again(*inputs)
        for name, value in kept(*inputs).items():
            torch.testing.assert_close(found[name], value)
            assert value.abs().max() > 0.1 * HEAD_UNITS[name], name
    assert not any(p.requires_grad for p in again.parameters())


def test_points_have_a_say_and_none_where_the_mean_face_has_them(pointed: FaceEncoder) -> None:
    """At the mean face's points the branch is only its biases; a point that moves moves the answer."""
    images, mean = torch.rand(1, 3, SIZE, SIZE), mean_face_frame(tiny_model()).points[None]
    assert pointed.points is not None
    torch.testing.assert_close(pointed.points.mean, mean[0])
    torch.nn.init.zeros_(pointed.points.first.bias)
    torch.nn.init.zeros_(pointed.points.second.bias)
    with torch.no_grad():
        assert pointed.points(mean).abs().max() == 0
        there = pointed(images, mean)
        moved = mean.clone()
        moved[0, 7, 1] += 0.05  # one unit
        column = pointed.points.first.weight[:, 2 * 7 + 1]
        hidden = column + pointed.points.second.weight @ torch.nn.functional.silu(column)
        off = pointed(images, moved)["rotation"] - there["rotation"]
        weight = pointed.heads["rotation"].get_parameter("weight")[:, -len(hidden) :]
        expected = weight @ hidden * HEAD_UNITS["rotation"]
    torch.testing.assert_close(off[0], expected, atol=1e-5, rtol=1e-4)


def test_points_are_told_in_sides_of_the_crop_from_its_centre(pointed: FaceEncoder) -> None:
    crops, landmarks468_px = torch.rand(1, 3, 2 * SIZE, 2 * SIZE), torch.zeros(1, 468, 2)
    landmarks468_px[0, 3] = torch.tensor(
        [2.0 * SIZE, 0.5 * SIZE]
    )  # on the right edge, a quarter of the side above the centre
    images, points = pointed.inputs(
        crops, Camera.from_fov(20.0, image_size=(2 * SIZE, 2 * SIZE)), landmarks468_px=landmarks468_px
    )
    assert images.shape[-1] == SIZE
    assert points[0, [0, 3]].tolist() == [[-0.5, -0.5], [0.5, -0.25]]


def test_points_are_neither_left_out_nor_slipped_in(pointed: FaceEncoder, encoder: FaceEncoder) -> None:
    images = torch.rand(1, 3, SIZE, SIZE)
    with pytest.raises(TypeError, match="made with points"):
        pointed(images)
    with pytest.raises(TypeError, match="made without points"):
        encoder(images, some_points(1))
    assert len(inputs_of(encoder, 1)) == 1
    with pytest.raises(TypeError, match="without a second look"):
        pointed(images, some_points(1), images, torch.ones(1, 3))
    with pytest.raises(ConfigError, match="needs points"):
        FaceEncoder("efficientnet_lite0", tiny_model(), refiner=True)


def test_an_encoder_given_points_answers_nearly_as_before(trained: FaceEncoder, tiny: MorphableModel) -> None:
    larger = extend_encoder(trained, tiny, refiner=False).eval()
    images, points = torch.rand(2, 3, SIZE, SIZE), some_points(2)
    with torch.no_grad():
        before, after = trained(images), larger(images, points)
    for name, value in before.items():
        assert 0 < (after[name] - value).abs().max() < 0.1 * HEAD_UNITS[name], name
        assert value.abs().max() > 0.1 * HEAD_UNITS[name], name
    # And learns: the points' columns of the heads get a gradient, and so the branch.
    sum(v.square().sum() for v in larger(images, points).values()).backward()  # pyright: ignore
    assert larger.points is not None
    assert larger.points.first.weight.grad is not None
    assert larger.points.first.weight.grad.abs().sum() > 0


def test_an_encoder_given_a_second_look_keeps_its_first(pointed: FaceEncoder, tiny: MorphableModel) -> None:
    larger = extend_encoder(pointed, tiny, refiner=True).eval()
    inputs = inputs_of(larger, 2)
    with torch.no_grad():
        before, after = pointed(*(nn.functional.interpolate(inputs[0], size=SIZE), inputs[1])), larger(*inputs)
    for name in ("albedo", "lighting"):
        torch.testing.assert_close(after[name], before[name])
    for name in (*SHAPE_HEADS, *POSE_HEADS):
        assert 0 < (after[name] - before[name]).abs().max() < 0.2 * HEAD_UNITS[name], name
    assert extend_encoder(larger, tiny, refiner=False).refiner is not None


def test_a_second_look_is_told_of_the_first_answer_as_the_camera_shows_it(
    looking: FaceEncoder, tiny: MorphableModel
) -> None:
    side, first, heard = looking.crop_size, deepcopy(looking), []
    first.refiner = None
    assert looking.refiner is not None
    looking.refiner.told.register_forward_hook(lambda _module, given, _answer: heard.append(given[0]))
    camera = Camera(torch.tensor([300.0]), torch.tensor([[-40.0, 190.0]]), image_size=(side, side))
    crops, landmarks468_px = torch.rand(1, 3, side, side), (some_points(1) + 0.5) * side
    with torch.no_grad():
        looking.encode(crops, camera, landmarks468_px=landmarks468_px)
        face = first.encode(crops, camera, landmarks468_px=landmarks468_px)
    shape = tiny.vertices(face.identity, face.expression)
    there = camera.project(tiny.mediapipe_points(face.pose.to_camera(shape)))
    count = len(looking.refiner.units)
    torch.testing.assert_close(
        heard[0][:, count:].unflatten(1, (-1, 2)), (landmarks468_px - there) / side / POINT_UNIT, atol=2e-3, rtol=1e-4
    )
    identity = (face.identity / HEAD_UNITS["identity"]).clamp(-FARTHEST, FARTHEST)
    torch.testing.assert_close(heard[0][:, : identity.shape[1]], identity)


def test_a_second_look_is_taken_several_times_for_an_answer(
    looking: FaceEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = looking.crop_size
    camera = Camera.from_fov(20.0, image_size=(side, side), batch=1)
    crops, landmarks468_px = torch.rand(1, 3, side, side), (some_points(1) + 0.5) * side
    first = deepcopy(looking)
    first.refiner = None
    monkeypatch.setattr(Refiner, "forward", lambda refiner, *_, **__: refiner.units[None] * 0.1)
    with torch.no_grad():
        before, after = (e.encode(crops, camera, landmarks468_px=landmarks468_px) for e in (first, looking))
        once = looking.encode(crops, camera, landmarks468_px=landmarks468_px, refine_steps=1)
    torch.testing.assert_close(after.identity - before.identity, torch.full_like(before.identity, REFINE_STEPS * 0.1))
    torch.testing.assert_close(once.identity - before.identity, torch.full_like(before.identity, 0.1))
    with pytest.raises(ConfigError, match="at least once, not 0 times"):
        looking.encode(crops, camera, landmarks468_px=landmarks468_px, refine_steps=0)


def test_a_correction_has_a_longest_length_and_a_gradient_everywhere(looking: FaceEncoder) -> None:
    assert looking.refiner is not None
    refiner, lengths = looking.refiner, []
    refiner.register_forward_hook(lambda *call: lengths.append((call[2] / refiner.units).square().mean(1).sqrt()))
    for scale in (0.0, 0.1, 1e4):
        with torch.no_grad():
            refiner.head.weight.normal_(std=0.01 * scale)
            refiner.head.bias.zero_()
        looking(*inputs_of(looking, 2))["identity"].sum().backward()
    assert lengths[0].max() == 0
    assert 0 < lengths[1].max() < LARGEST
    torch.testing.assert_close(lengths[2], torch.full_like(lengths[2], LARGEST))
    assert refiner.head.weight.grad is not None
    assert refiner.head.weight.grad.isfinite().all()


def test_a_second_look_learns_alone(looking: FaceEncoder) -> None:
    looking.freeze(blocks=0, batchnorm=False, refiner_only=True)
    looking.train()
    before = {k: v.clone() for k, v in looking.state_dict().items()}
    learning = [p for p in looking.parameters() if p.requires_grad]
    engine = torch.optim.SGD(learning, lr=0.1)
    sum(v.square().sum() for v in looking(*inputs_of(looking, 2)).values()).backward()  # pyright: ignore
    engine.step()
    changed = {k for k, v in looking.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {f"refiner.{name}" for name, _ in looking.refiner.named_parameters()}  # pyright: ignore


def test_in_training_several_looks_are_taken_each_at_the_answer_before(looking: FaceEncoder) -> None:
    shown, looking.practice = inputs_of(looking, 3), 3
    looking.freeze(blocks=0, batchnorm=False, refiner_only=True)
    once = looking(*shown)  # not in evaluation
    assert len(once["identity"]) == 3
    twice = looking._corrected(once, *shown[1:])
    thrice = looking._corrected(twice, *shown[1:])
    said = looking.train()(*shown)
    for name, tensor in said.items():
        torch.testing.assert_close(tensor, torch.cat([once[name], twice[name], thrice[name]]))
    assert not torch.equal(once["rotation"], twice["rotation"])
    # Every look is learnt from where it stands: through none of them the one before it.
    assert looking.refiner is not None
    bias = looking.refiner.head.bias
    each = [torch.autograd.grad(answer["rotation"].sum(), bias, retain_graph=True)[0] for answer in (once, twice)]
    given = {name: tensor.detach() for name, tensor in once.items()}
    alone = torch.autograd.grad(looking._corrected(given, *shown[1:])["rotation"].sum(), bias)[0]
    (second,) = torch.autograd.grad(said["rotation"][3:6].sum(), bias)
    torch.testing.assert_close(second, alone)
    torch.testing.assert_close(each[0] + alone, each[1])


def test_another_face_model_is_refused(trained: FaceEncoder, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(trained, path, notes={})
    with pytest.raises(ModelMismatch, match="another face model"):
        load_encoder(tiny_model(seed=1), path)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"format": "mien-encoder-1"}, "says format 'mien-encoder-1'"),
        ({"encoder": "{}"}, "does not hold a network"),
        ({"encoder": "not JSON"}, "does not hold a network"),
        ({"encoder": '{"backbone": "vgg", "image_size": 64, "points": false}'}, "encoder 'vgg' is not known"),
        ({"encoder": '{"backbone": "resnet50", "image_size": 64, "points": false}'}, "does not hold a network"),
        ({}, "does not hold a network"),
    ],
)
def test_other_files_are_refused(tiny: MorphableModel, tmp_path: Path, metadata: dict[str, str], said: str) -> None:
    path = tmp_path / "encoder.safetensors"
    header = {"format": "mien-encoder-2", "model_hash": tiny.fingerprint, **metadata}
    save_file({"x": torch.zeros(1)}, path, metadata=header)
    with pytest.raises(FormatError, match=re.escape(said)):
        load_encoder(tiny, path)
    save_file({"x": torch.zeros(1)}, path, metadata={"format": "mien-encoder-2"})
    with pytest.raises(FormatError, match="does not hold a network of format mien-encoder-2: 'model_hash'"):
        load_encoder(tiny, path)
    path.write_bytes(b"no tensors")
    with pytest.raises(FormatError, match="not a readable safetensors"):
        load_encoder(tiny, path)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("trained", ["images"]),
        ("pointed", ["images", "points"]),
        ("looking", ["images", "points", "sharp", "lens"]),
    ],
)
def test_onnx_says_the_same_for_any_batch(
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
        inputs = inputs_of(kept, count)
        found = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
        with torch.no_grad():
            for array, expected in zip(found, kept(*inputs).values(), strict=True):
                np.testing.assert_allclose(array, expected.numpy(), atol=2e-4, rtol=1e-4)


COMPILED = """
import warnings
import torch
from safetensors.torch import save_file
from mien.camera import Camera
from mien.networks.encoder import FaceEncoder
from tests.tiny import tiny_model

warnings.simplefilter("ignore")
for points, look in ((False, False), (True, False), (True, True)):
    encoder = FaceEncoder("efficientnet_lite0", tiny_model(), image_size=64, points=points, refiner=look).eval()
    camera = Camera.from_fov(20.0, image_size=(64, 64), batch=2)
    inputs = encoder.inputs(torch.rand(2, 3, 64, 64), camera, landmarks468_px=torch.rand(2, 468, 2) * 64)
    with torch.no_grad():
        compiled, plain = torch.compile(encoder, backend="eager", fullgraph=True)(*inputs), encoder(*inputs)
    print(all(torch.equal(compiled[name], plain[name]) for name in plain))
"""


def test_the_compiler_takes_the_whole_network() -> None:
    """One graph without breaks; what a back end makes of it is PyTorch's business and takes minutes.

    In a process of its own: the checks of annotations that the tests switch on cannot be compiled.
    """
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout == "True\nTrue\nTrue\n", done.stderr
