"""From a real photo to a result; scikit-image's astronaut is in the public domain."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mien.camera import Camera
from mien.errors import (
    BackendUnavailable,
    ConfigError,
    FaceLeftOut,
    FitDiverged,
    ModelMismatch,
    NoFaceFound,
    OutOfMemory,
)
from mien.export.images import FacePainter, overlay_image
from mien.fitting import DetailSettings, FitSettings, FitTargets
from mien.geometry import align_points
from mien.io.photo import Photo
from mien.lighting import rolled_lighting
from mien.morphable import FaceCoefficients, load_model
from mien.networks import FaceEncoder, save_encoder
from mien.perception import IdentityNetwork
from mien.pipeline import PhotoInputs, Reconstructor
from mien.pipeline.coefficients import CoefficientFinder, _check_in_front
from mien.result import Reconstruction
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    from skimage.data import astronaut

    return astronaut()


@pytest.fixture(scope="module")
def reconstructor() -> Reconstructor:
    return Reconstructor(mode="fit", settings=FitSettings(photometric_steps=10))


@pytest.fixture(scope="module")
def progress() -> list[tuple[str, float]]:
    """What the reconstruction of `face` reported."""
    return []


@pytest.fixture(scope="module")
def face(astronaut: np.ndarray, reconstructor: Reconstructor, progress: list[tuple[str, float]]) -> Reconstruction:
    (found,) = reconstructor(astronaut, progress=lambda name, share: progress.append((name, share)))
    return found


def test_progress_has_the_stages_in_order_and_each_step(
    face: Reconstruction, progress: list[tuple[str, float]]
) -> None:
    assert list(dict(progress)) == [name for name, _ in face.stage_seconds]
    shares = {stage: [share for name, share in progress if name == stage] for stage in dict(progress)}
    assert shares["photometric"][:5] == [step / 10 for step in range(5)]
    assert shares["photometric"] == sorted(shares["photometric"])
    assert shares["photometric"][-1] == 1.0  # also if it converges before the last step
    assert len(shares["maps"]) > 3
    assert shares["maps"] == sorted(shares["maps"])
    assert shares["maps"][-1] == 1.0
    assert {tuple(shares[name]) for name in ("perception", "landmarks", "light and albedo")} == {(0.0,)}


def test_the_face_is_where_the_photo_shows_it(face: Reconstruction) -> None:
    assert face.landmark_error < 0.06
    eyes = face.landmarks68[[36, 45]].mean(0)
    assert np.abs(eyes - [228, 113]).max() < 15
    assert face.landmarks68[36, 0] < face.landmarks68[45, 0]  # the person's right eye is on the image's left


def test_positions_obey_the_documented_camera(face: Reconstruction) -> None:
    flip = np.array([1, -1, -1])
    camera = face.scale * face.vertices_model @ face.rotation.T * flip + face.translation
    np.testing.assert_allclose(camera, face.vertices, atol=1e-5)
    pixels = face.focal_px * face.vertices[:, :2] / face.vertices[:, 2:] + face.centre_px
    np.testing.assert_allclose(pixels, face.xy, atol=0.05)
    np.testing.assert_allclose(face.centre_px, [256, 256], atol=1e-3)
    np.testing.assert_allclose(face.landmarks68, face.xy[face.landmarks68_vertices], atol=1e-4)


def test_the_textured_mesh_looks_like_the_photo(face: Reconstruction) -> None:
    assert face.photometric_error < 0.06
    assert face.visible.mean() > 0.3
    assert 0 <= face.texture.min() <= face.texture.max() <= 1
    assert 1e-5 < np.abs(face.displacement).max() < 5e-3


def test_the_head_has_a_heads_size_and_distance(face: Reconstruction) -> None:
    height = np.ptp(face.vertices_model[:, 1])
    assert 0.15 < height < 0.3
    assert 0.3 < face.translation[2] < 3


def test_the_same_photo_gives_the_same_face(astronaut: np.ndarray, reconstructor: Reconstructor) -> None:
    plain = replace_detail(reconstructor, detail=False)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        (first,), (again,) = plain(astronaut), plain(astronaut)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(first.identity, again.identity)
    np.testing.assert_array_equal(first.texture, again.texture)
    assert not first.displacement.any()


def replace_detail(reconstructor: Reconstructor, *, detail: bool) -> Reconstructor:
    return Reconstructor(reconstructor.model, detail=detail, settings=reconstructor.settings)


def test_two_faces_in_one_photo(astronaut: np.ndarray, reconstructor: Reconstructor, face: Reconstruction) -> None:
    both = np.concatenate([astronaut[:300, 100:370], astronaut[:300, 100:370][:, ::-1]], axis=1)
    found = replace_detail(reconstructor, detail=False)(both)
    assert len(found) == 2
    left, right = sorted(found, key=lambda f: f.xy[:, 0].mean())
    assert left.landmark_error < 0.06
    assert right.landmark_error < 0.06
    one = Reconstructor(reconstructor.model, detail=False, max_faces=1, settings=reconstructor.settings)(both)
    assert len(one) == 1


@pytest.mark.parametrize("distance", [-0.3, 0.01, float("nan")])
def test_faces_behind_the_camera_are_refused_with_advice(distance: float) -> None:
    """As the network predicts them where the given focal length is far too short."""
    face = FaceCoefficients.mean(identity=2, expression=2, albedo=2, distance=distance)
    with pytest.raises(FitDiverged, match="give another focal_px"):
        _check_in_front(face)
    _check_in_front(FaceCoefficients.mean(identity=2, expression=2, albedo=2, distance=0.1))


def test_a_face_predicted_behind_the_camera_costs_no_other_face_its_steps(
    astronaut: np.ndarray, reconstructor: Reconstructor, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = CoefficientFinder.predict

    def predict_left_behind(finder: CoefficientFinder, inputs: PhotoInputs, **how: bool) -> FaceCoefficients:
        faces = predict(finder, inputs, **how)
        for k, face in enumerate(inputs.faces):
            if face.detection.landmarks468_px[:, 0].mean() < 270:
                faces.pose.translation[k, 2] = -0.1
        return faces

    monkeypatch.setattr(CoefficientFinder, "predict", predict_left_behind)
    head = astronaut[:300, 100:370]
    by_network = Reconstructor(reconstructor.model, detail=False, mode="net")
    with pytest.warns(FaceLeftOut, match=r"face . of 2 was not fitted: the network places the face"):
        steps = list(by_network.steps(np.concatenate([head, head], axis=1)))
    assert [step.name for step in steps] == ["detected", "network", "detail"]
    for step in steps[1:]:
        (left,) = (k for k, face in enumerate(step.detections) if face.landmarks468_px[:, 0].mean() < 270)
        assert [face is None for face in step.faces] == [k == left for k in range(2)]
    with pytest.raises(FitDiverged, match="give another focal_px"):
        list(by_network.steps(head))


@pytest.mark.filterwarnings("ignore::mien.errors.FaceDoubtful")  # the bright one is overexposed
def test_grey_dark_and_bright_photos_give_nearly_the_same_shape(
    astronaut: np.ndarray, reconstructor: Reconstructor, face: Reconstruction
) -> None:
    plain = replace_detail(reconstructor, detail=False)
    photo = astronaut.astype(np.float32)
    variants = {
        "grey": np.repeat(photo.mean(2, keepdims=True), 3, axis=2),
        "dark": photo * 0.3,
        "bright": np.minimum(photo * 1.7, 255),
    }
    for name, variant in variants.items():
        (found,) = plain(variant.astype(np.uint8))
        offset = found.vertices_model - face.vertices_model
        error = np.linalg.norm(offset - offset.mean(0), axis=1).mean()
        assert error < 4e-3, name


def test_a_given_focal_length_is_in_pixels_of_the_file_even_if_the_photo_is_reduced(astronaut: np.ndarray) -> None:
    reconstructor = Reconstructor(mode="net", detail=False)
    photo = Photo(astronaut, 1500.0, Path("a.jpg"), reduction=2)
    (face,) = reconstructor(photo, focal_px=2000.0, principal_point_px=(500.0, -30.0))
    assert face.focal_px == pytest.approx(1000)
    np.testing.assert_allclose(face.centre_px, [250, -15], atol=1e-3)
    assert face.focal_source == "given"
    (face,) = reconstructor(photo)
    assert face.focal_px == pytest.approx(1500)
    np.testing.assert_allclose(face.centre_px, [256, 256], atol=1e-3)
    assert face.focal_source == "exif"


def test_a_photo_without_a_face_is_an_error(reconstructor: Reconstructor) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    with pytest.raises(NoFaceFound, match=r"400 × 300 photo; .* Use a larger or sharper photo of it\.$"):
        reconstructor(noise)


def test_a_face_without_a_known_focal_length_is_at_the_typical_distance(face: Reconstruction) -> None:
    assert face.focal_source == "prior"
    assert face.translation[2] == pytest.approx(0.8, rel=0.2)


def test_a_photo_and_its_crops_give_one_shape(astronaut: np.ndarray, reconstructor: Reconstructor) -> None:
    plain = replace_detail(reconstructor, detail=False)
    shapes = []
    for left, top, right, bottom in ((0, 0, 512, 512), (110, 10, 350, 260), (146, 44, 306, 206)):
        crop = np.ascontiguousarray(astronaut[top:bottom, left:right])
        # The face is far from the middle of the photo, so a crop needs to know where that was.
        (found,) = plain(crop, principal_point_px=(256.0 - left, 256.0 - top))
        shapes.append(torch.from_numpy(found.vertices_model)[None])
    for shape in shapes[1:]:
        moved = align_points(shape, shapes[0])(shape)
        # 0.3 mm at 1.8 face widths, 0.81 at 1.2.
        assert float((moved - shapes[0]).square().sum(-1).mean().sqrt()) < 0.9e-3


def test_saved_and_loaded_it_is_the_same(face: Reconstruction, tmp_path: Path) -> None:
    face.save(tmp_path / "face0")
    loaded = Reconstruction.load(tmp_path / "face0")
    np.testing.assert_array_equal(loaded.vertices, face.vertices)
    np.testing.assert_allclose(loaded.identity, face.identity)
    np.testing.assert_allclose(loaded.vertices_model, face.vertices_model, atol=1e-5)
    assert replace(loaded, stage_seconds=()).model_name == "mien-face"


def test_the_packaged_encoder_alone_places_the_face_and_loads_no_identity_network(
    astronaut: np.ndarray, reconstructor: Reconstructor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> IdentityNetwork:
        raise AssertionError("mode net has no identity loss")

    monkeypatch.setattr(IdentityNetwork, "from_assets", refuse)
    by_network = Reconstructor(reconstructor.model, detail=False, mode="net")
    (found,) = by_network(astronaut)
    assert found.landmark_error < 0.12
    assert np.abs(found.landmarks68[[36, 45]].mean(0) - [228, 113]).max() < 15
    assert dict(found.stage_seconds).keys() == {"perception", "network", "maps"}
    assert ((found.expression >= 0) & (found.expression <= 1)).all()


def test_a_face_that_cannot_be_fitted_does_not_cost_the_others(
    astronaut: np.ndarray, reconstructor: Reconstructor, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = np.concatenate([astronaut[:300, 100:370], astronaut[:300, 100:370][:, ::-1]], axis=1)
    by_network = Reconstructor(reconstructor.model, detail=False, mode="net")
    whole = by_network(both)
    build, fails_from_px = by_network.texture_builder, 270.0

    def failing(inputs: PhotoInputs, coefficients: FaceCoefficients, camera: Camera, **rest: Any) -> Reconstruction:
        if inputs.faces[0].detection.landmarks468_px[:, 0].mean() > fails_from_px:
            raise FitDiverged("diverged on purpose")
        return build(inputs, coefficients, camera, **rest)

    monkeypatch.setattr(by_network, "texture_builder", failing)
    with pytest.warns(FaceLeftOut, match=r"face . of 2 .* diverged on purpose"):
        (left,) = by_network(both)
    expected = min(whole, key=lambda face: face.xy[:, 0].mean())
    np.testing.assert_allclose(left.xy, expected.xy, atol=1e-3)
    fails_from_px = 0.0
    with pytest.warns(FaceLeftOut), pytest.raises(FitDiverged, match="diverged on purpose"):
        by_network(both)


def test_faces_that_need_too_much_memory_together_are_computed_in_smaller_batches(
    astronaut: np.ndarray, reconstructor: Reconstructor, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = astronaut[:300, 100:370]
    three = np.concatenate([face, face[:, ::-1], face], axis=1)
    by_network = Reconstructor(reconstructor.model, detail=False, mode="net")
    whole, predict, tried = by_network(three), CoefficientFinder.predict, []
    largest, refused = 1, -1.0

    def predict_few(finder: CoefficientFinder, inputs: PhotoInputs) -> FaceCoefficients:
        tried.append(len(inputs))
        if len(inputs) > largest or inputs.faces[0].detection.landmarks468_px[:, 0].mean() < refused:
            torch.empty(10**15)  # more than any address space
        return predict(finder, inputs)

    monkeypatch.setattr(CoefficientFinder, "predict", predict_few)
    found = by_network(three)
    assert tried == [3, 2, 1, 1, 1]
    for one, other in zip(found, whole, strict=True):
        np.testing.assert_allclose(one.xy, other.xy, atol=1e-2)
    largest, refused = 2, 270.0
    with pytest.warns(FaceLeftOut, match=r"^face . of 3 was left out: memory ran out"):
        assert len(by_network(three)) == 2
    largest = 0
    with pytest.warns(FaceLeftOut), pytest.raises(OutOfMemory, match="memory ran out"):
        by_network(three)


@pytest.mark.parametrize("turns", [1, 2])
def test_a_head_on_its_side_or_upside_down_is_the_same_face_to_the_network(
    astronaut: np.ndarray, reconstructor: Reconstructor, turns: int
) -> None:
    by_network = Reconstructor(reconstructor.model, detail=False, mode="net")
    (upright,), (turned,) = by_network(astronaut), by_network(np.ascontiguousarray(np.rot90(astronaut, turns)))
    assert turned.landmark_error < upright.landmark_error + 0.01
    difference = turned.vertices_model - upright.vertices_model
    assert np.linalg.norm(difference - difference.mean(0), axis=1).mean() < 1e-3
    back = turned.landmarks68 - 256
    for _ in range(turns):  # a quarter turn clockwise, as the picture's was counter-clockwise
        back = np.stack([-back[:, 1], back[:, 0]], axis=1)
    assert np.linalg.norm(back + 256 - upright.landmarks68, axis=1).mean() < 2
    light = torch.from_numpy(upright.lighting)[None]
    expected = rolled_lighting(light, torch.tensor([-turns * math.pi / 2]))[0].numpy()
    np.testing.assert_allclose(turned.lighting, expected, atol=0.05)


def test_a_fit_from_the_networks_guess_is_as_near_in_fewer_steps(
    astronaut: np.ndarray, reconstructor: Reconstructor, face: Reconstruction
) -> None:
    settings = replace(reconstructor.settings, warm_photometric_steps=4)
    (found,) = Reconstructor(reconstructor.model, detail=False, mode="auto", settings=settings)(astronaut)
    assert found.landmark_error < face.landmark_error + 0.01
    assert "network" in dict(found.stage_seconds)


def test_an_encoder_of_another_model_is_refused(tmp_path: Path, reconstructor: Reconstructor) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(FaceEncoder("efficientnet_lite0", tiny_model(), image_size=64), path, notes={})
    with pytest.raises(ModelMismatch, match="another face model"):
        Reconstructor(reconstructor.model, mode="net", encoder=path)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="resolution=300 is not offered"):
        Reconstructor(resolution=300)
    with pytest.raises(ConfigError, match="max_faces"):
        Reconstructor(max_faces=0)
    with pytest.raises(ConfigError, match="not a device"):
        Reconstructor(device="abacus")
    with pytest.raises(ConfigError, match="device='meta' is not supported"):
        Reconstructor(device="meta")
    with pytest.raises(ConfigError, match="mode='guess' is not a mode; choose one of fit, net, auto"):
        Reconstructor(mode="guess")


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "fit", "encoder": "mine.safetensors"},
        {"mode": "net", "refine_focal": True},
        {"mode": "net", "settings": FitSettings(photometric_steps=1)},
        {"detail": False, "detail_mode": "net"},
        {"detail_mode": "net", "detail_settings": DetailSettings(unseen_symmetry=2.0)},
        {"detail_network": "mine.safetensors"},
        {"mode": "net", "detail_mode": "fit", "detail_network": "mine.safetensors"},
    ],
)
def test_a_setting_that_the_modes_do_not_use_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{list(settings)[-1]}=.* is not used with mode="):
        Reconstructor(**settings)


@pytest.mark.parametrize("focal_px", [0.0, -5.0, float("nan"), float("inf"), 20.0])
def test_a_focal_length_out_of_range_is_refused(
    astronaut: np.ndarray, reconstructor: Reconstructor, focal_px: float
) -> None:
    with pytest.raises(ConfigError, match=r"focal_px=.* is out of range for a 512 × 512 photo; use .* at least 51"):
        reconstructor(astronaut, focal_px=focal_px)


def test_the_default_mode_uses_the_encoder_that_was_made_for_the_model(reconstructor: Reconstructor) -> None:
    assert Reconstructor(reconstructor.model, detail=False).mode == "auto"
    other = Reconstructor(tiny_model(), detail=False)
    assert (other.mode, other.encoder) == ("fit", None)


def test_a_missing_gpu_is_an_error_not_a_fallback() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(BackendUnavailable, match="cuda"):
        Reconstructor(device="cuda")


def test_a_model_on_another_device_is_copied_and_the_callers_stays(
    reconstructor: Reconstructor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Reconstructor(reconstructor.model, detail=False).model is reconstructor.model
    model = load_model()
    monkeypatch.setattr("mien.pipeline.reconstructor._checked_device", lambda _: torch.device("meta"))
    elsewhere = Reconstructor(model, detail=False, mode="fit")
    assert elsewhere.model.mean.device.type == "meta"
    assert {tensor.device.type for tensor in model.buffers()} == {"cpu"}


def test_the_identity_network_is_loaded_once_and_given_to_the_fit(
    astronaut: np.ndarray, reconstructor: Reconstructor, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, given = [], []
    load = IdentityNetwork.from_assets

    def counted() -> IdentityNetwork:
        loads.append(1)
        return load()

    def diverging(*_: Any, recognition: IdentityNetwork | None, **__: Any) -> FitTargets:
        given.append(recognition)
        raise FitDiverged("diverged on purpose")

    monkeypatch.setattr(IdentityNetwork, "from_assets", counted)
    monkeypatch.setattr("mien.pipeline.coefficients.fit", diverging)
    plain = replace_detail(reconstructor, detail=False)
    assert loads == []
    for _ in range(2):
        with pytest.raises(FitDiverged):
            plain(astronaut)
    assert len(loads) == 1
    assert given == [plain.identity_network] * 2
    without = Reconstructor(reconstructor.model, detail=False, settings=FitSettings(recognition_weight=0.0))
    with pytest.raises(FitDiverged):
        without(astronaut)
    assert len(loads) == 1
    assert given[2] is None


def test_a_refined_focal_length_is_reported_and_the_errors_are_measured_with_it(
    astronaut: np.ndarray, reconstructor: Reconstructor
) -> None:
    photo, settings = np.ascontiguousarray(astronaut[:256, 96:352]), FitSettings(photometric_steps=3)
    faces = {}
    for refine in (False, True):
        plain = Reconstructor(reconstructor.model, detail=False, refine_focal=refine, settings=settings)
        (faces[refine],) = plain(photo, focal_px=300.0)
    fixed, refined = faces[False], faces[True]
    assert fixed.focal_px == pytest.approx(300)
    assert (fixed.focal_source, refined.focal_source) == ("given", "fitted")
    assert refined.focal_px > 330  # the portrait's lens was longer
    pixels = refined.focal_px * refined.vertices[:, :2] / refined.vertices[:, 2:] + refined.centre_px
    np.testing.assert_allclose(pixels, refined.xy, atol=0.05)
    # With the camera before the refinement the mesh would be rendered too small: an error of 0.15 instead of 0.03.
    assert refined.photometric_error < 1.2 * fixed.photometric_error
    overlay = overlay_image(refined, FacePainter(refined, reconstructor.model), Photo(photo, None, Path("a.png")))
    changed = np.abs(overlay.astype(int) - photo).max(-1) > 8
    rows, columns = np.nonzero(changed)
    low, high = refined.xy.min(0), refined.xy.max(0)
    assert (np.abs([columns.min() - low[0], rows.min() - low[1], columns.max() - high[0]]) < 6).all()
