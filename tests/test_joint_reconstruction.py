"""One person from several real photos; scikit-image's astronaut is in the public domain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mien.errors import ConfigError, ImageError, NoFaceFound, PhotoLeftOut
from mien.fitting import FitSettings
from mien.pipeline import Reconstructor
from mien.result import PersonReconstruction
from tests.astronaut import astronaut


@pytest.fixture(scope="module")
def reconstructor() -> Reconstructor:
    return Reconstructor(mode="net", detail=False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path | np.ndarray]:
    """The photo as a file, darker and larger, and without a face."""
    folder = tmp_path_factory.mktemp("photos")
    photo = Image.fromarray(astronaut())
    photo.save(folder / "a.png")
    photo.rotate(12).point([round(0.7 * value) for value in range(256)] * 3).resize((640, 640)).save(folder / "b.png")
    return [folder / "a.png", np.zeros((200, 200, 3), np.uint8), folder / "b.png"]


@pytest.fixture(scope="module")
def reported() -> list[tuple[str, float]]:
    """Stage and share of each report of the progress of `person`."""
    return []


@pytest.fixture(scope="module")
def person(
    reconstructor: Reconstructor, photos: list[Path | np.ndarray], reported: list[tuple[str, float]]
) -> PersonReconstruction:
    with pytest.warns(PhotoLeftOut, match="photo 1: no face was found"):
        return reconstructor.joint(photos, progress=lambda *report: reported.append(report))


def test_the_photos_share_identity_and_albedo(person: PersonReconstruction) -> None:
    first, nothing, second = person.faces
    assert nothing is None
    assert first is not None
    assert second is not None
    assert np.array_equal(first.identity, second.identity)
    assert np.array_equal(first.albedo, second.albedo)
    assert not np.array_equal(first.expression, second.expression)
    assert person.photo_weights == (1.0, 0.0, 1.0)
    assert [bool(reason) for reason in person.reasons] == [False, True, False]
    assert person.face is (first if person.reference == 0 else second)
    assert "photos=3, shown_in=2" in repr(person)


@pytest.mark.usefixtures("person")
def test_the_progress_of_each_stage_only_rises(reported: list[tuple[str, float]]) -> None:
    for stage in ("perception", "maps"):
        shares = [share for name, share in reported if name == stage]
        assert shares == sorted(shares)
        assert len(set(shares)) > 3
        assert shares[-1] == 1


def test_each_face_lies_on_its_photo(person: PersonReconstruction) -> None:
    for face, size in zip((person.faces[0], person.faces[2]), ((512, 512), (640, 640)), strict=True):
        assert face is not None
        assert face.image_size == size
        assert face.landmark_error < 0.06
        assert face.photometric_error < 0.09
        assert [name for name, _ in face.stage_seconds] == ["perception", "maps", "network"]


def test_the_texture_is_the_same_up_to_the_light(person: PersonReconstruction) -> None:
    bright, dark = (face.texture for face in (person.faces[0], person.faces[2]) if face is not None)
    middle = slice(60, 200)
    ratio = dark[middle, middle].mean(-1) / bright[middle, middle].mean(-1).clip(0.05)
    assert 0.55 < np.median(ratio) < 0.9
    colours = np.corrcoef(bright[middle, middle].mean(-1).ravel(), dark[middle, middle].mean(-1).ravel())[0, 1]
    assert colours > 0.8


def test_one_photo_of_mode_net_is_as_alone(reconstructor: Reconstructor) -> None:
    (alone,) = reconstructor(astronaut())
    joint = reconstructor.joint([astronaut()]).face
    np.testing.assert_allclose(joint.identity, alone.identity, atol=1e-4)
    np.testing.assert_allclose(joint.vertices, alone.vertices, atol=1e-3)
    assert np.abs(joint.texture - alone.texture).mean() < 0.02


def test_the_pixels_of_photos_are_not_kept(
    reconstructor: Reconstructor, photos: list[Path | np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, original = [], reconstructor.texture_builder._result

    def result(inputs: Any, view: Any, *arguments: Any) -> Any:
        kept.append(view.photo.untyped_storage().nbytes())
        return original(inputs, view, *arguments)

    monkeypatch.setattr(reconstructor.texture_builder, "_result", result)
    reconstructor.joint([photos[0], photos[2]])
    assert kept == [0, 0]


def test_a_fitted_focal_length_is_named_so() -> None:
    settings = FitSettings(photometric_steps=1)
    reconstructor = Reconstructor(mode="fit", detail=False, texture_size=256, refine_focal=True, settings=settings)
    assert reconstructor.joint([astronaut()]).face.focal_source == "fitted"
    *_, last = reconstructor.steps(astronaut())
    assert [face.focal_source for face in last.faces if face is not None] == ["fitted"]


def test_photos_without_faces_are_refused(reconstructor: Reconstructor, tmp_path: Path) -> None:
    black = np.zeros((200, 200, 3), np.uint8)
    with pytest.raises(NoFaceFound, match="in any of the 2 photos"):
        reconstructor.joint([black, black])
    with pytest.raises(ConfigError, match="empty"):
        reconstructor.joint([])
    (tmp_path / "broken.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"broken\.png"):
        reconstructor.joint([tmp_path / "broken.png"])
    with pytest.warns(PhotoLeftOut, match=r"broken\.png"):
        found = reconstructor.joint([tmp_path / "broken.png", astronaut()])
    assert found.reference == 1
