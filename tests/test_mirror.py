"""Mirror images of faces: exact for symmetric models, refused for asymmetric ones, and equivariant encoders."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from mien.camera import Camera
from mien.morphable import FaceCoefficients, MorphableModel, load_model
from mien.morphable.symmetry import FLIP, Mirror, mirror_mesh, mirrored_camera, mirrored_points
from mien.networks import FaceEncoder
from mien.networks.crop_space import CropSpaceParameters, mean_face_frame
from mien.networks.encoder import REFINE_STEPS

SIZE = 64


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


def asymmetric(model: MorphableModel, name: str, *, share: float) -> MorphableModel:
    """The model with one component that is larger on one side of the face."""
    other = deepcopy(model)
    basis = getattr(other, name).clone()
    basis[0, model.mean[:, 0] > 0] *= 1 + share
    other.register_buffer(name, basis)
    return other


def test_mirrored_coefficients_give_the_mirrored_face(model: MorphableModel) -> None:
    mirror = Mirror.of(model)
    assert mirror is not None
    counts = model.counts
    identity, expression, albedo = torch.randn(1, counts[0]), torch.rand(1, counts[1]), torch.randn(1, counts[2])
    face = model.vertices(identity, expression)
    image = model.vertices(identity @ mirror.identity, expression @ mirror.expression)
    flip = face.new_tensor(FLIP)
    mean = model.vertices(torch.zeros_like(identity), torch.zeros_like(expression))
    offset = (mean[:, model.mirror] * flip - mean).abs().max()  # the mean's own asymmetry
    torch.testing.assert_close(image, face[:, model.mirror] * flip, atol=float(offset) + 2e-5, rtol=0)
    assert (image - face).norm(dim=-1).mean() > 1e-3
    colours = (albedo @ mirror.albedo) @ model.albedo_basis.flatten(1)
    right = albedo @ model.albedo_basis[:, model.mirror].flatten(1)
    assert (colours - right).norm() < 0.01 * right.norm()


def test_components_that_mirror_each_other_are_exchanged(model: MorphableModel) -> None:
    halves = deepcopy(model)
    left = (model.mean[:, :1] > 0).to(model.albedo_basis)
    basis = model.albedo_basis.clone()
    basis[1] = basis[0] * left
    basis[0] = basis[1][model.mirror]
    halves.register_buffer("albedo_basis", basis)
    mirror = Mirror.of(halves)
    assert mirror is not None
    counts = halves.counts
    prediction = CropSpaceParameters(
        identity=torch.zeros(1, counts[0]),
        expression=torch.zeros(1, counts[1]),
        albedo=torch.eye(counts[2])[:1],
        lighting=torch.zeros(1, 27),
        rotation=torch.zeros(1, 3),
        translation=torch.zeros(1, 2),
        scale=torch.zeros(1, 1),
        sides_per_m=3.0,
    )
    torch.testing.assert_close(prediction.mirrored(mirror).albedo, torch.eye(counts[2])[1:2], atol=0.02, rtol=0)


@pytest.mark.parametrize("name", ["identity_basis", "expression_basis", "albedo_basis"])
def test_a_slightly_asymmetric_basis_has_no_mirror(model: MorphableModel, name: str) -> None:
    assert Mirror.of(asymmetric(model, name, share=0.001)) is not None
    assert Mirror.of(asymmetric(model, name, share=0.8)) is None


def test_an_asymmetric_mean_face_has_no_mirror(model: MorphableModel) -> None:
    for name in ("mean", "albedo_mean"):
        other = deepcopy(model)
        other.register_buffer(name, getattr(model, name) + 0.002 * (model.mean[:, :1] > 0))
        assert Mirror.of(other) is None


def test_zero_components_are_accepted(model: MorphableModel) -> None:
    padded = deepcopy(model)
    padded.register_buffer("albedo_basis", torch.cat([model.albedo_basis, torch.zeros_like(model.albedo_basis[:1])]))
    mirror = Mirror.of(padded)
    assert mirror is not None
    assert torch.isfinite(mirror.albedo).all()


def test_points_and_camera_are_mirrored_together() -> None:
    camera = Camera(torch.tensor([90.0]), torch.tensor([[20.0, 41.0]]), image_size=(48, SIZE))
    points = torch.randn(1, 5, 3) * 0.05 + torch.tensor([0.0, 0.0, 0.6])
    order = torch.arange(5)
    mirrored = mirrored_points(camera.project(points), order, side=SIZE)
    torch.testing.assert_close(mirrored_camera(camera).project(points * points.new_tensor(FLIP)), mirrored)
    torch.testing.assert_close(mirrored_camera(camera).centre_px, torch.tensor([[SIZE - 20.0, 41.0]]))
    torch.testing.assert_close(mirrored_points(mirrored, order, side=SIZE), camera.project(points))


@pytest.mark.parametrize("refiner", [False, True])
def test_the_encoder_commutes_with_mirroring(model: MorphableModel, refiner: bool) -> None:
    encoder = FaceEncoder("efficientnet_lite0", model, image_size=SIZE, points=True, refiner=refiner).eval()
    for head in encoder.heads.values():
        torch.nn.init.normal_(head.get_parameter("weight"), std=0.02)
    mirror = Mirror.of(model)
    assert mirror is not None
    camera = Camera(torch.tensor([300.0]), torch.tensor([[50.0, 90.0]]), image_size=(128, 128))
    points = (mean_face_frame(model).points + 0.03 * torch.randn(1, 468, 2) + 0.5) * 128
    crop = torch.rand(1, 3, 128, 128)
    turned_points = mirrored_points(points, mirror_mesh(model), side=128)
    with torch.no_grad():
        face = encoder.encode(crop, camera, landmarks468_px=points)
        image = encoder.encode(crop.flip(-1), mirrored_camera(camera), landmarks468_px=turned_points)
        once = encoder._predict(encoder.inputs(crop, camera, landmarks468_px=points), REFINE_STEPS).coefficients(camera)
    torch.testing.assert_close(image.identity, face.identity @ mirror.identity, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(image.albedo, face.albedo @ mirror.albedo, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(image.lighting, face.lighting * mirror.harmonics[:, None], atol=1e-4, rtol=1e-3)
    assert (once.identity - face.identity).abs().max() > 0.01
    there, back = (_points(model, prediction) for prediction in (face, image))
    torch.testing.assert_close(
        mirrored_camera(camera).project(back),
        mirrored_points(camera.project(there), mirror.mesh, side=128),
        atol=0.05,
        rtol=0,
    )


def _points(model: MorphableModel, face: FaceCoefficients) -> torch.Tensor:
    return model.mediapipe_points(face.pose.to_camera(model.vertices(face.identity, face.expression)))
