"""The camera of a photo without EXIF: the same in a photo and in its crops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mien.camera import Camera, Pose
from mien.errors import ConfigError
from mien.fitting import FitSettings, mesh_point_weights
from mien.fitting.landmarks import LandmarkPriors, fit_landmarks
from mien.morphable import MorphableModel, load_model
from mien.perception import FaceDetection, typical_focal_px
from mien.perception.focal_prior import TYPICAL_DISTANCE_M, WIDEST_FOCAL
from mien.pipeline import PhotoInputs
from tests.tiny import tiny_model

SIZE = (900, 700)
CROPS = [(0, 0, 700, 900), (150, 200, 560, 700), (180, 240, 500, 640), (250, 300, 690, 880)]
"""Left, top, right and bottom of parts of the photo that show the face."""


@pytest.fixture(scope="module")
def tiny() -> MorphableModel:
    return tiny_model()


def detection(model: MorphableModel, camera: Camera, pose: Pose, identity: torch.Tensor | None = None) -> FaceDetection:
    """A face whose points and depths are exact."""
    identity = torch.zeros(1, model.counts[0]) if identity is None else identity
    points = pose.to_camera(model.mediapipe_points(model.vertices(identity, torch.zeros(1, model.counts[1]))))
    scale = camera.focal_px[0] / points[0, :, 2].mean()
    found = torch.cat([camera.project(points)[0], points[0, :, 2:] * scale], dim=1).double().numpy()
    box = np.concatenate([found[:, :2].min(0), found[:, :2].max(0)])
    return FaceDetection(1.0, box, np.zeros((6, 2)), found, np.zeros((2, 5, 2)), 1.0)


def posed(yaw_deg: float, distance_m: float) -> Pose:
    return Pose(
        torch.tensor([[0.1, math.radians(yaw_deg), 0.2]]), torch.tensor([[0.0, 0.0, distance_m]]), torch.ones(1)
    )


def moved(face: FaceDetection, left: float, top: float) -> FaceDetection:
    """The same face in a part of the photo."""
    shift = np.array([left, top])
    points = face.landmarks468_px - np.array([left, top, 0])
    return replace(face, box_px=face.box_px - np.tile(shift, 2), landmarks468_px=points)


def photo(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), dtype=np.uint8)


def inputs_of(pixels: np.ndarray, faces: list[FaceDetection], **camera: object) -> PhotoInputs:
    return PhotoInputs.of(pixels, faces, device=torch.device("cpu"), **camera)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("yaw_deg", [0.0, 30.0, -80.0])
@pytest.mark.parametrize("focal_px", [500.0, 4000.0])
def test_the_face_stands_at_the_typical_distance_for_every_lens_and_pose(yaw_deg: float, focal_px: float) -> None:
    model = load_model()
    camera = Camera(torch.tensor([focal_px]), torch.tensor([[200.0, 200.0]]), (400, 400))
    face = detection(model, camera, posed(yaw_deg, 1.5))
    found = typical_focal_px(face.landmarks468_px, image_size=(400, 400), centre_px=(200.0, 200.0))
    # At this focal length the same points are as far away as the typical distance; perspective changes them little.
    assert found * 1.5 / focal_px == pytest.approx(TYPICAL_DISTANCE_M, rel=0.06)


def test_a_small_face_does_not_make_the_lens_wider_than_that_of_a_phone() -> None:
    points = np.random.default_rng(0).normal(size=(468, 3)) * 10
    found = typical_focal_px(points, image_size=(3000, 4000), centre_px=(2000.0, 1500.0))
    assert found == pytest.approx(WIDEST_FOCAL * 4000)
    assert 2 * math.degrees(math.atan(2000 / found)) < 75
    # A principal point at a corner: the photo is a quarter of one with twice the sides.
    quarter = typical_focal_px(points, image_size=(1500, 2000), centre_px=(2000.0, 1500.0))
    assert quarter == pytest.approx(found)


def test_all_crops_of_a_photo_give_one_focal_length_and_one_shape(tiny: MorphableModel) -> None:
    camera = Camera(torch.tensor([2000.0]), torch.tensor([[350.0, 450.0]]), SIZE)
    identity = torch.randn(1, tiny.counts[0], generator=torch.Generator().manual_seed(1))
    whole, settings = detection(tiny, camera, posed(15.0, 1.1), identity), FitSettings()
    priors = LandmarkPriors(settings.landmark_sigma, settings.depth_sigma, settings.lid_sigma, 1.0, 0.25, None)
    focals, shapes = [], []
    for left, top, right, bottom in CROPS:
        part = np.ascontiguousarray(photo()[top:bottom, left:right])
        inputs = inputs_of(part, [moved(whole, left, top)])
        focals.append(float(inputs.camera.focal_px))
        targets = inputs.targets
        found = fit_landmarks(
            tiny, targets.landmarks468_px, targets.camera, point_weights=mesh_point_weights(tiny)[None], priors=priors
        )
        shapes.append(tiny.vertices(found.identity, found.expression)[0])
    assert focals == pytest.approx([focals[0]] * len(CROPS), rel=1e-6)
    for shape in shapes[1:]:
        # Off the axis the perspective is a little different. A fixed field of view of 30° gave 1.3 to 1.9 mm.
        assert float((shape - shapes[0]).square().sum(-1).mean().sqrt()) < 6e-4


def test_a_given_focal_length_wins_over_exif_and_exif_over_the_prior(tiny: MorphableModel) -> None:
    camera = Camera(torch.tensor([2000.0]), torch.tensor([[350.0, 450.0]]), SIZE)
    near, far = (detection(tiny, camera, posed(0.0, distance)) for distance in (1.1, 2.5))
    pixels = photo()
    given = inputs_of(pixels, [near], focal_px=1234.0, exif_focal_px=999.0)
    exif, prior = inputs_of(pixels, [near], exif_focal_px=999.0), inputs_of(pixels, [near, far])
    assert [found.focal_source for found in (given, exif, prior)] == ["given", "exif", "prior"]
    assert given.camera.focal_px.tolist() == [1234.0]
    assert exif.camera.focal_px.tolist() == [999.0]
    assert prior[1:].focal_source == "prior"
    # All faces of a photo have one camera, that of the most prominent.
    alone = float(inputs_of(pixels, [near]).camera.focal_px)
    assert prior.camera.focal_px.tolist() == [alone, alone]


def test_a_crop_with_the_principal_point_of_the_photo_has_the_cameras_of_the_photo(tiny: MorphableModel) -> None:
    camera = Camera(torch.tensor([2000.0]), torch.tensor([[350.0, 450.0]]), SIZE)
    face, pixels = detection(tiny, camera, posed(0.0, 1.1)), photo()
    whole = inputs_of(pixels, [face], focal_px=2000.0)
    left, top = 360, 100  # the optical axis is left of the crop
    part = inputs_of(
        np.ascontiguousarray(pixels[top:, left:]),
        [moved(face, left, top)],
        focal_px=2000.0,
        principal_point_px=(350.0 - left, 450.0 - top),
    )
    assert part.camera.centre_px.tolist() == [[-10.0, 350.0]]
    torch.testing.assert_close(part.targets.camera.centre_px, whole.targets.camera.centre_px, atol=1e-3, rtol=0)
    torch.testing.assert_close(part.targets.camera.focal_px, whole.targets.camera.focal_px)


def test_outside_the_photo_the_encoder_sees_its_mirror_image(tiny: MorphableModel) -> None:
    camera = Camera(torch.tensor([2000.0]), torch.tensor([[350.0, 450.0]]), SIZE)
    face = detection(tiny, camera, posed(0.0, 1.1))
    pixels = np.repeat(np.linspace(0, 255, SIZE[1]).astype(np.uint8)[None, :, None], SIZE[0], 0).repeat(3, 2)
    cut = int(np.median(face.landmarks468_px[:, 0]))
    inputs = inputs_of(np.ascontiguousarray(pixels[:, cut:]), [moved(face, cut, 0)])
    row = inputs.rolled([0.0]).crops[0, 0, 112]
    border = int(inputs.faces[0].crop.to_crop(torch.zeros(1, 2, dtype=torch.float64))[0, 0].round())
    assert 60 < border < 164
    torch.testing.assert_close(row[:border].flip(0)[:50], row[border : border + 50], atol=0.01, rtol=0)
    assert float(row[border] - row[border + 50]) < -0.05


@pytest.mark.parametrize("point", [(math.nan, 0.0), (0.0, math.inf), (9000.0, 450.0)])
def test_a_principal_point_out_of_range_is_refused(tiny: MorphableModel, point: tuple[float, float]) -> None:
    camera = Camera(torch.tensor([2000.0]), torch.tensor([[350.0, 450.0]]), SIZE)
    face = detection(tiny, camera, posed(0.0, 1.1))
    with pytest.raises(ConfigError, match=r"^principal_point_px=\(.*; use "):
        inputs_of(photo(), [face], focal_px=1000.0, principal_point_px=point)
