"""Pictures of the whole head: the studio, the turntable, the sheet of expressions."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mien.errors import ConfigError, ModelMismatch
from mien.export import turntable, write_reconstruction, write_turntable
from mien.export.head_painter import BACKDROP, FACE, HeadPainter
from mien.export.images import PANEL_SIDE, FacePainter, sheet_image
from mien.export.model_face import model_face
from mien.export.turntable import EXPRESSIONS, expression_sheet
from mien.io.animation import write_animation
from mien.io.photo import Photo
from mien.lighting import ambient_lighting
from mien.morphable import MorphableModel, load_model
from mien.morphable.head import has_head
from mien.result import Reconstruction
from mien.typing import Bool, Float, Tensor, UInt8
from tests.tiny_face import tiny_model, tiny_photo, tiny_reconstruction

SIDE = 96


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module")
def face(model: MorphableModel) -> Reconstruction:
    """The mean face in white light, with a grey texture."""
    face, _ = model_face(torch.zeros(model.counts[0]), model)
    return replace(face, texture=np.full((64, 64, 3), 0.5, np.float32), lighting=ambient_lighting(1)[0].numpy())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turntable of few and small pictures."""
    monkeypatch.setattr(turntable, "FRAMES", 12)
    monkeypatch.setattr(turntable, "SIDE_PX", SIDE)


def shown(picture: UInt8[np.ndarray, "S S 3"]) -> Bool[np.ndarray, "S S"]:
    return (picture != np.array(BACKDROP, np.uint8)).any(-1)


def expression_of(model: MorphableModel, **actions: float) -> Float[Tensor, "E"]:
    strengths = torch.zeros(model.counts[1])
    for name, strength in actions.items():
        strengths[model.expression_names.index(name)] = strength
    return strengths


def test_the_head_fills_the_picture_from_the_crown_to_the_neck(model: MorphableModel, face: Reconstruction) -> None:
    mask = shown(HeadPainter(face, model).picture(yaw_deg=0.0, side_px=SIDE))
    rows = np.flatnonzero(mask.any(1))
    assert 0.03 * SIDE < rows[0] < 0.2 * SIDE
    assert rows[-1] == SIDE - 1  # the neck
    np.testing.assert_allclose(mask.mean(), mask[:, ::-1].mean(), atol=0.01)


def test_a_positive_turn_shows_the_right_side(model: MorphableModel, face: Reconstruction) -> None:
    """The nose of a head that shows its right side points to the right in the picture."""
    mask = shown(HeadPainter(face, model).picture(yaw_deg=90.0, side_px=SIDE))
    level = mask[SIDE // 2 - 2 : SIDE // 2 + 8]  # about the nose
    ends = [np.flatnonzero(row)[[0, -1]] for row in level]
    from_axis = np.array(ends) - SIDE / 2
    assert from_axis[:, 1].max() > -from_axis[:, 0].min()


def test_the_texture_is_relit(model: MorphableModel, face: Reconstruction) -> None:
    """A photo of the same skin in half the light has half the texture: the studio shows the same picture."""
    dim = replace(face, texture=0.5 * face.texture, lighting=0.5 * face.lighting)
    pictures = [HeadPainter(one, model).picture(yaw_deg=-30.0, side_px=SIDE).astype(int) for one in (face, dim)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    dark = replace(face, texture=0.5 * face.texture)
    assert np.abs(pictures[0] - HeadPainter(dark, model).picture(yaw_deg=-30.0, side_px=SIDE)).mean() > 5


def test_heads_of_grey_photos_are_grey(model: MorphableModel, face: Reconstruction) -> None:
    """Fitted albedo and light have a colour, and tongue and gums are red: a grey photo has nothing of that."""
    shading = np.linspace(0.6, 1.4, 64, dtype=np.float32)[:, None, None]  # one grey level would not tell a tint
    warm = face.lighting * np.array([1.1, 1.0, 0.9], np.float32)
    grey = replace(face, texture=0.5 * shading * np.ones((64, 64, 3), np.float32), lighting=warm)
    jaw = expression_of(model, jawOpen=0.8)
    picture = HeadPainter(grey, model).picture(yaw_deg=0.0, side_px=SIDE, framing=FACE, expression=jaw)
    inner = picture[shown(picture)].astype(int)
    assert np.mean(np.ptp(inner, axis=1) <= 2) > 0.97  # the outline is mixed with the backdrop


def test_the_lamps_stand_still_while_the_head_turns(model: MorphableModel, face: Reconstruction) -> None:
    """The key light comes from the upper left, from whatever side the head is seen."""
    for yaw in (0.0, 90.0, 180.0):
        picture = HeadPainter(face, model, scalp="skin").picture(yaw_deg=yaw, side_px=SIDE)
        row = slice(SIDE // 5, SIDE // 4)  # the skull
        brightness = np.where(shown(picture), picture.mean(-1), np.nan)[row]
        middle = (np.flatnonzero(shown(picture)[row].any(0))[[0, -1]].sum() + 1) // 2
        assert np.nanmean(brightness[:, :middle]) > np.nanmean(brightness[:, middle:]) + 3, yaw


def test_the_skin_around_the_face_continues_its_colour(model: MorphableModel, face: Reconstruction) -> None:
    """From behind there is no face, and the whole head is grey."""
    picture = HeadPainter(face, model, scalp="skin").picture(yaw_deg=180.0, side_px=SIDE)
    colours = picture[shown(picture)].astype(int)
    inner = colours[np.ptp(colours, axis=1) <= 2]
    assert len(inner) > 0.95 * len(colours)
    red = replace(face, texture=face.texture * np.array([1.0, 0.2, 0.2], np.float32))
    painter = HeadPainter(red, model, scalp="skin")
    behind = painter.picture(yaw_deg=180.0, side_px=SIDE)[shown(picture)].astype(int)
    assert np.mean(behind[:, 0] > 1.5 * behind[:, 1]) > 0.95


def test_hair_has_its_colour_and_leaves_the_face_free(model: MorphableModel, face: Reconstruction) -> None:
    blue = replace(face, hair_colour=np.array([0.1, 0.1, 0.6], np.float32))
    hair, skin = (
        HeadPainter(blue, model, scalp=scalp).picture(yaw_deg=0.0, side_px=SIDE).astype(int)
        for scalp in ("hair", "skin")
    )
    is_blue = shown(hair.astype(np.uint8)) & (hair[..., 2] > 1.5 * hair[..., 0])
    assert is_blue[: SIDE // 4].sum() > 0.5 * shown(hair.astype(np.uint8))[: SIDE // 4].sum()
    middle = slice(SIDE * 2 // 5, SIDE * 3 // 5)
    np.testing.assert_array_equal(hair[middle, middle], skin[middle, middle])


def test_an_expression_moves_the_face_and_the_inside_of_the_mouth(model: MorphableModel, face: Reconstruction) -> None:
    painter = HeadPainter(face, model)
    still = painter.picture(yaw_deg=0.0, side_px=SIDE, framing=FACE).astype(int)
    jaw, chin = expression_of(model, jawOpen=0.8), slice(SIDE // 2, None)
    open_mouth = painter.picture(yaw_deg=0.0, side_px=SIDE, framing=FACE, expression=jaw).astype(int)
    changed = np.abs(open_mouth - still).max(-1) > 40
    assert changed[chin].mean() > 0.02
    assert not changed[: SIDE // 3].any()  # forehead and eyes
    own = expression_of(model)
    np.testing.assert_allclose(painter.vertices(own), painter.vertices(), atol=1e-6)


def test_the_photos_expression_is_the_default(model: MorphableModel, face: Reconstruction) -> None:
    smile = expression_of(model, mouthSmileLeft=0.7, mouthSmileRight=0.7)
    shape = model.vertices(torch.from_numpy(face.identity)[None], smile[None])[0].numpy()
    smiling = HeadPainter(replace(face, expression=smile.numpy(), vertices_model=shape), model)
    neutral = HeadPainter(face, model)
    np.testing.assert_allclose(smiling.vertices(), neutral.vertices(smile), atol=1e-6)
    np.testing.assert_allclose(smiling.vertices(torch.zeros_like(smile)), neutral.vertices(), atol=1e-6)


def test_models_without_a_head_say_so(model: MorphableModel) -> None:
    assert has_head(model)
    assert not has_head(tiny_model())
    with pytest.raises(ModelMismatch, match="only mien-face has one"):
        HeadPainter(tiny_reconstruction(), tiny_model())


def test_the_sheet_shows_the_head(model: MorphableModel, face: Reconstruction) -> None:
    sheet = sheet_image(face, FacePainter(face, model), photo_of(face))
    last = sheet[-PANEL_SIDE - 42 : -42, -PANEL_SIDE - 16 : -16]
    np.testing.assert_array_equal(last, HeadPainter(face, model).picture(yaw_deg=-90.0, side_px=PANEL_SIDE))


@pytest.mark.usefixtures("quick")
def test_a_turntable_turns_once_and_repeats(model: MorphableModel, face: Reconstruction, tmp_path: Path) -> None:
    write_turntable(face, tmp_path / "new" / "head.webp", model=model)
    with Image.open(tmp_path / "new" / "head.webp") as animation:
        assert (animation.n_frames, animation.size, animation.info["loop"]) == (12, (SIDE, SIDE), 0)
        frames = []
        for number in range(12):
            animation.seek(number)
            frames.append(np.asarray(animation.convert("RGB")).astype(int))
    painter = HeadPainter(face, model)
    for number in (0, 3, 6, 11):
        true = painter.picture(yaw_deg=-30.0 * number, pitch_deg=4.0, side_px=SIDE).astype(int)
        distances = [np.abs(frame - true).mean() for frame in frames]
        assert int(np.argmin(distances)) == number
        assert distances[number] < 3  # of 255; WebP is lossy


def test_turntables_are_webp_or_mp4(model: MorphableModel, face: Reconstruction, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in '\.gif'; use one of \.webp, \.mp4"):
        write_turntable(face, tmp_path / "head.gif", model=model)
    with pytest.raises(ModelMismatch):
        write_turntable(tiny_reconstruction(), tmp_path / "head.webp", model=tiny_model())
    assert list(tmp_path.iterdir()) == []


def test_mp4_without_pyav_says_what_to_install(
    model: MorphableModel, face: Reconstruction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"pip install 'mien\[video\]'"):
        write_turntable(face, tmp_path / "head.mp4", model=model)


def test_mp4_holds_the_pictures(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="needs PyAV")
    frames = [np.full((32, 48, 3), (shade, 60, 90), np.uint8) for shade in (40, 120, 200)]
    write_animation(frames, tmp_path / "a.mp4", frames_per_second=25)
    with av.open(str(tmp_path / "a.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, float(stream.average_rate)) == ("h264", 25.0)
        read = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
    assert len(read) == len(frames)
    for before, after in zip(frames, read, strict=True):
        np.testing.assert_allclose(after.astype(int), before, atol=8)


def test_the_sheet_of_expressions_shows_each_of_them(model: MorphableModel, face: Reconstruction) -> None:
    sheet = expression_sheet(HeadPainter(face, model), model.expression_names)
    panels = [
        sheet[16 + row * 362 : 336 + row * 362, 16 + column * 336 : 336 + column * 336].astype(int)
        for row in range(3)
        for column in range(4)
    ]
    assert len(EXPRESSIONS) == len(panels)
    for number, (label, _) in enumerate(EXPRESSIONS[1:], 1):
        assert np.abs(panels[number] - panels[0]).max() > 30, label


@pytest.mark.usefixtures("quick")
def test_files_of_the_head_are_written_and_removed(model: MorphableModel, face: Reconstruction, tmp_path: Path) -> None:
    write_reconstruction(face, model, None, tmp_path / "face0", "expressions,turntable")
    assert {path.name for path in (tmp_path / "face0").iterdir()} == {"expressions.png", "turntable.webp"}
    write_reconstruction(face, model, None, tmp_path / "face0", "json")
    assert {path.name for path in (tmp_path / "face0").iterdir()} == {"coefficients.json"}


def photo_of(face: Reconstruction) -> Photo:
    width, height = face.image_size
    return Photo(np.full((height, width, 3), 128, np.uint8), None, Path("photo.png"))


def test_the_sheet_of_a_model_without_a_head_shows_the_mask() -> None:
    tiny = tiny_reconstruction()
    assert sheet_image(tiny, FacePainter(tiny, tiny_model()), tiny_photo()).shape[1] == 16 + 4 * (PANEL_SIDE + 16)
