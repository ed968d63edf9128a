"""The encoder: where it starts, what it says under which camera, and the ways it is kept."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mien.camera import Camera
from mien.encoder import (
    HEAD_UNITS,
    FaceEncoder,
    Regression,
    appearance,
    framed_by_crop,
    load_encoder,
    save_encoder,
)
from mien.errors import FormatError, ModelMismatch
from mien.morphable import MorphableModel, load_model
from mien.perception import face_crop
from tests.tiny import tiny_model

SIZE = 64


@pytest.fixture
def encoder(tiny: MorphableModel) -> FaceEncoder:
    return FaceEncoder("efficientnet_lite0", tiny, image_size=SIZE).eval()


@pytest.fixture
def trained(encoder: FaceEncoder) -> FaceEncoder:
    """Heads that say something."""
    for head in encoder.heads.values():
        torch.nn.init.normal_(head.weight, std=0.3)  # pyright: ignore[reportArgumentType]
    return encoder


def off_centre_camera() -> Camera:
    return Camera(torch.tensor([150.0]), torch.tensor([[-20.0, 95.0]]), image_size=(SIZE, SIZE))


def some_regression(model: MorphableModel, encoder: FaceEncoder) -> Regression:
    identity, expression, albedo = model.counts
    return Regression(
        identity=torch.randn(1, identity),
        expression=torch.rand(1, expression),
        albedo=torch.randn(1, albedo),
        lighting=torch.randn(1, 27) * 0.1,
        rotation=torch.tensor([[0.2, -0.5, 0.1]]),
        translation=torch.tensor([[0.06, -0.04]]),
        scale=torch.tensor([[0.15]]),
        sides_per_m=encoder.sides_per_m,
    )


def test_training_starts_at_the_mean_face_straight_and_in_place(encoder: FaceEncoder) -> None:
    model = load_model()
    encoder = FaceEncoder("efficientnet_lite0", model, image_size=SIZE).eval()
    camera = Camera.from_fov(12.0, image_size=(SIZE, SIZE))
    with torch.no_grad():
        face = encoder.encode(torch.rand(1, 3, 2 * SIZE, 2 * SIZE), camera)
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
    back = appearance(said.coefficients(camera), camera, sides_per_m=encoder.sides_per_m)
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


def test_encoders_are_kept_in_half_precision(trained: FaceEncoder, tiny: MorphableModel, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(trained, path, notes={"steps": "3"})
    again = load_encoder(tiny, path)
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        for name, value in trained(images).items():
            torch.testing.assert_close(again(images)[name], value, atol=5e-3, rtol=5e-3)
    assert not any(p.requires_grad for p in again.parameters())


def test_another_face_model_is_refused(trained: FaceEncoder, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(trained, path, notes={})
    with pytest.raises(ModelMismatch, match="another face model"):
        load_encoder(tiny_model(seed=1), path)


def test_other_files_are_refused(tiny: MorphableModel, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(FormatError, match="not a readable safetensors"):
        load_encoder(tiny, path)


def test_onnx_says_the_same_for_any_batch(trained: FaceEncoder, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "encoder.onnx"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports that torchvision is missing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter uses its own deprecated functions
        trained.to_onnx(path)
    session = onnxruntime.InferenceSession(str(path))
    assert [output.name for output in session.get_outputs()] == list(HEAD_UNITS)
    for count in (1, 3):
        images = torch.rand(count, 3, SIZE, SIZE)
        found = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            for array, expected in zip(found, trained(images).values(), strict=True):
                np.testing.assert_allclose(array, expected.numpy(), atol=2e-4)


COMPILED = """
import warnings
import torch
from mien.encoder import FaceEncoder
from tests.tiny import tiny_model

warnings.simplefilter("ignore")
encoder = FaceEncoder("efficientnet_lite0", tiny_model(), image_size=64).eval()
images = torch.rand(2, 3, 64, 64)
with torch.no_grad():
    compiled, plain = torch.compile(encoder, backend="eager", fullgraph=True)(images), encoder(images)
print(all(torch.equal(compiled[name], plain[name]) for name in plain))
"""


def test_the_compiler_takes_the_whole_network() -> None:
    """One graph without breaks; what a back end makes of it is PyTorch's business and takes minutes.

    In a process of its own: the checks of annotations that the tests switch on cannot be compiled.
    """
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout == "True\n", done.stderr


def test_a_face_lies_where_its_crop_was_cut() -> None:
    model, camera = load_model(), Camera.from_fov(12.0, image_size=(SIZE, SIZE))
    encoder = FaceEncoder("efficientnet_lite0", model, image_size=SIZE).eval()
    with torch.no_grad():
        said = encoder.encode(torch.rand(1, 3, SIZE, SIZE), camera)
    # Off by 2 cm and by a sixth of its size.
    moved = said.pose.translation * torch.tensor([1.0, 1.0, 1.2]) + torch.tensor([0.02, -0.02, 0.0])
    framed = framed_by_crop(model, replace(said, pose=replace(said.pose, translation=moved)), camera)
    vertices = framed.pose.to_camera(model.vertices(framed.identity, framed.expression))
    crop = face_crop(camera.project(model.mediapipe_points(vertices))[0], size=SIZE)
    assert crop.scale == pytest.approx(1, abs=0.01)
    assert crop.to_photo(torch.tensor([[SIZE / 2, SIZE / 2]])).sub(SIZE / 2).abs().max() < 0.01 * SIZE
